//! The guest: how it is booted, what it reports, and how long it may take.
//!
//! It has two serial lines. The first is the kernel's console, kept in a file and shown when something goes wrong. The
//! second carries the report alone, so that no message of the kernel lands inside it:
//!
//! ```text
//! ready 6.1.0-56-cloud-amd64
//! begin NAME
//! |a line the case printed
//! passed NAME                        or: failed NAME
//! end
//! ```

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::initrd::Initrd;
use crate::place::{Outcome, Tree, is_full};

const QEMU: &str = "qemu-system-x86_64";

/// The longest a guest may live, all cases included.
const GUEST_LIMIT: Duration = Duration::from_secs(240);

/// The same at full size (`SANDKEEPER_FULL`).
const GUEST_LIMIT_FULL: Duration = Duration::from_secs(1_800);

/// How much of the console is shown when the guest fails.
const CONSOLE_LINES: usize = 40;

/// What the guest is told of this machine's environment.
const VARIABLES: [&str; 2] = ["SANDKEEPER_FULL", "RUST_BACKTRACE"];

/// A booted guest.
pub(crate) struct Guest {
    qemu: Mutex<Child>,
    report: Arc<Shared>,
    started: Instant,
    limit: Duration,
    /// Holds the initial RAM disk, the log of the console and that of qemu.
    directory: PathBuf,
    /// The console has been shown: once is enough for all cases that then cannot run.
    explained: AtomicBool,
}

#[derive(Default)]
struct Shared {
    report: Mutex<Report>,
    changed: Condvar,
}

/// What the guest has said so far.
#[derive(Default)]
struct Report {
    /// Its kernel, and when it was up.
    ready: Option<(String, Instant)>,
    /// The case that runs now.
    running: Option<String>,
    printed: String,
    outcomes: HashMap<String, Outcome>,
    /// It says no more.
    ended: bool,
}

impl Guest {
    /// Boots a guest that runs the cases named, or says what is missing.
    pub(crate) fn boot(cases: &[&str]) -> Result<Self, String> {
        let kernel = kernel()?;
        let limit = if is_full() { GUEST_LIMIT_FULL } else { GUEST_LIMIT };
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{}", std::process::id()));
        let packed = fs::create_dir_all(&directory).and_then(|()| pack(cases, limit));
        let packed = packed.map_err(|error| format!("cannot pack the initial RAM disk: {error}"))?;
        fs::write(directory.join("initrd"), packed)
            .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
        let complaints = fs::File::create(directory.join("qemu.log"))
            .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
        let mut qemu = qemu(&kernel, &directory)
            .stderr(complaints)
            .spawn()
            .map_err(|error| format!("cannot run {QEMU}: {error}; run ./test --install"))?;
        let lines = qemu.stdout.take().expect("its output is piped");
        let report = Arc::new(Shared::default());
        let reader = Arc::clone(&report);
        std::thread::spawn(move || reader.follow(lines));
        Ok(Self {
            qemu: Mutex::new(qemu),
            report,
            started: Instant::now(),
            limit,
            directory,
            explained: AtomicBool::new(false),
        })
    }

    /// Waits for what became of a case.
    pub(crate) fn outcome(&self, case: &str) -> Outcome {
        let until = self.started + self.limit;
        let mut report = self.report.lock();
        loop {
            if let Some(outcome) = report.outcomes.get(case) {
                return outcome.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            if report.ended || left.is_zero() {
                let output = self.post_mortem(case, &report, left.is_zero());
                return Outcome { passed: false, output };
            }
            let waited = self.report.changed.wait_timeout(report, left);
            report = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the guest, says where the cases ran, and keeps the console's log if something failed.
    #[expect(clippy::print_stderr, reason = "the report of a test")]
    pub(crate) fn finish(&self, passed: bool) {
        self.kill();
        if let Some((kernel, up)) = &self.report.lock().ready {
            let boot = up.duration_since(self.started).as_secs_f64();
            let total = self.started.elapsed().as_secs_f64();
            eprintln!("ran in a guest with kernel {kernel}: up after {boot:.1} s, {total:.1} s in all\n");
        }
        let _removed = match passed {
            true => fs::remove_dir_all(&self.directory),
            false => fs::remove_file(self.directory.join("initrd")),
        };
    }

    fn kill(&self) {
        let mut qemu = self.qemu.lock().unwrap_or_else(PoisonError::into_inner);
        let _killed = qemu.kill(); // fails when it has gone already
        let _reaped = qemu.wait();
    }

    fn post_mortem(&self, case: &str, report: &Report, timed_out: bool) -> String {
        if timed_out {
            self.kill();
        }
        let how = match (timed_out, &report.ready) {
            (true, None) => format!("the guest is not up after {} s", self.limit.as_secs()),
            (true, Some(_)) => format!("the guest has not ended after {} s", self.limit.as_secs()),
            (false, None) => "the guest ended before it was up".to_owned(),
            (false, Some(_)) => "the guest ended early".to_owned(),
        };
        let when = match report.running.as_deref() {
            Some(running) if running == case => ", in this case".to_owned(),
            Some(running) => format!(", in case {running:?}"),
            None => String::new(),
        };
        if self.explained.swap(true, Ordering::Relaxed) {
            return format!("{how}{when}; its console is shown above");
        }
        let qemu = self.last_lines("qemu.log");
        let console = self.last_lines("console.log");
        format!("{how}{when}\nThe end of its console:\n{console}\nThe emulator's own words:\n{qemu}")
    }

    fn last_lines(&self, file: &str) -> String {
        let log = match fs::read(self.directory.join(file)) {
            Ok(log) => String::from_utf8_lossy(&log).into_owned(),
            Err(error) => format!("no {file}: {error}"),
        };
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, lines: ChildStdout) {
        let mut lines = BufReader::new(lines);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            self.lock().take(text.trim_end_matches(['\r', '\n']));
            self.changed.notify_all();
            line.clear();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

impl Report {
    fn take(&mut self, line: &str) {
        if let Some(printed) = line.strip_prefix('|') {
            let _infallible = writeln!(self.printed, "{printed}");
            return;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" => self.ready = Some((rest.to_owned(), Instant::now())),
            "begin" => self.running = Some(rest.to_owned()),
            "passed" | "failed" => {
                let outcome = Outcome { passed: word == "passed", output: std::mem::take(&mut self.printed) };
                self.outcomes.insert(rest.to_owned(), outcome);
                self.running = None;
            }
            "end" => self.ended = true,
            _ => {
                let _infallible = writeln!(self.printed, "{line}");
            }
        }
    }
}

/// In the guest: runs the cases named and writes the report to the standard output.
pub(crate) fn report(cases: &[String]) -> ExitCode {
    match write_report(cases, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn write_report(cases: &[String], out: &mut impl io::Write) -> io::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(out, "ready {}", release.trim())?;
    let tree = Tree::find();
    for case in cases {
        writeln!(out, "begin {case}")?;
        out.flush()?;
        let outcome = match &tree {
            Ok(tree) => tree.run(case),
            Err(missing) => Outcome { passed: false, output: format!("the guest is no place: {missing}") },
        };
        for line in outcome.output.lines() {
            writeln!(out, "|{line}")?;
        }
        writeln!(out, "{} {case}", if outcome.passed { "passed" } else { "failed" })?;
    }
    writeln!(out, "end")?;
    out.flush()
}

/// The newest kernel that `./test --install` put into the target directory, or the one the environment names.
fn kernel() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("SANDKEEPER_GUEST_KERNEL") {
        return Ok(PathBuf::from(path));
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let newest = entries.filter(is_kernel).max();
    newest.ok_or_else(|| format!("no kernel in {}; run ./test --install", directory.display()))
}

fn qemu(kernel: &Path, directory: &Path) -> Command {
    let mut console = OsString::from("file:");
    console.push(directory.join("console.log"));
    let mut command = Command::new(QEMU);
    command
        .args(["-name", "sandkeeper-guest", "-machine", "q35", "-accel", "tcg", "-cpu", "max"])
        .args(["-smp", "2", "-m", "512", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none"])
        .arg("-serial")
        .arg(console)
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(directory.join("initrd"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// The initial RAM disk: busybox under all its names, this executable, the script that is PID 1, and what to run.
fn pack(cases: &[&str], limit: Duration) -> io::Result<Vec<u8>> {
    let mut initrd = Initrd::default();
    for directory in ["/dev", "/etc", "/mnt", "/proc", "/root", "/run", "/sys", "/tmp", "/usr/bin"] {
        initrd.directory(Path::new(directory));
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
    let busybox = busybox.ok_or_else(|| io::Error::other("no busybox here; run ./test --install"))?;
    initrd.program(Path::new("/bin/busybox"), busybox)?;
    let names = Command::new(busybox).arg("--list").output()?;
    for name in String::from_utf8_lossy(&names.stdout).lines() {
        initrd.link(&Path::new("/bin").join(name), "busybox");
    }
    initrd.program(Path::new("/pure_v2"), &std::env::current_exe()?)?;
    initrd.file(Path::new("/init"), include_bytes!("init.sh"));
    initrd.file(Path::new("/selection"), cases.join(" ").as_bytes());
    initrd.file(Path::new("/limit"), limit.as_secs().to_string().as_bytes());
    let variables =
        VARIABLES.iter().filter_map(|name| Some(format!("{name}={}\n", std::env::var(name).ok()?)));
    initrd.file(Path::new("/environment"), variables.collect::<String>().as_bytes());
    Ok(initrd.finish())
}
