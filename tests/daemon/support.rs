//! The real daemon in a directory of its own, and nothing of it left afterwards.
#![allow(dead_code)]
#![expect(clippy::print_stderr, reason = "whoever reads a failed test wants the log of the daemon")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::SandboxStatus;
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::{Error, SandboxKey};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// The size of a test: scaled down, or full on request.
pub(crate) fn size(scaled: usize, full: usize) -> usize {
    if std::env::var_os("SANDKEEPER_FULL").is_some_and(|value| value == "1") { full } else { scaled }
}

/// Runs a test on a tokio runtime with two threads.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(10 * LONG, test).await.expect("it does not stick") })
}

/// Waits for a condition. Blocks, which the other threads of a test's runtime make up for.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a test has nothing else to do on this thread")]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

/// The program, with whatever its environment says of daemons left out.
pub(crate) fn program() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_sandkeeper")))
}

fn clean(mut command: Command) -> Command {
    for name in ["SANDKEEPER_SOCKET", "SANDKEEPER_NAMESPACE", "SANDKEEPER_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A directory in memory, as a daemon's is, if there is such a place.
pub(crate) fn directory() -> tempfile::TempDir {
    let above = ["/dev/shm", "/run"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/tmp");
    tempfile::Builder::new().prefix("sandkeeper-daemon-").tempdir_in(above).unwrap()
}

/// How a daemon is started.
#[derive(Default, Clone)]
pub(crate) struct Plan {
    pub(crate) options: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Both limits on descriptors.
    pub(crate) descriptors: Option<u32>,
}

/// A daemon that runs, or has ended and can be started again. Dropping it ends whatever exists under its directory.
pub(crate) struct Daemon {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) state_dir: PathBuf,
    pub(crate) plan: Plan,
    child: Child,
}

impl Daemon {
    pub(crate) async fn start(options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self::start_as(Plan { options, ..Plan::default() }).await
    }

    pub(crate) async fn start_as(plan: Plan) -> Self {
        let directory = directory();
        let state_dir = directory.path().join("state");
        let child = spawn(directory.path(), &state_dir, &plan, None);
        let mut daemon = Self { directory, state_dir, plan, child };
        daemon.is_up().await;
        daemon
    }

    /// Starts it on its directory again.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "it still runs");
        self.child = spawn(self.directory.path(), &self.state_dir, &self.plan, None);
        self.is_up().await;
    }

    /// Starts it on its directory again, with its log going elsewhere.
    pub(crate) async fn start_again_with_log(&mut self, log: Stdio) {
        self.child = spawn(self.directory.path(), &self.state_dir, &self.plan, Some(log));
        self.is_up().await;
    }

    async fn is_up(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                panic!("the daemon has ended as it came up: {ended}\n{}", self.log());
            }
            if let Ok(mut client) = Client::connect(&self.socket()).await
                && client.version().await.is_ok_and(|version| version.pid == self.pid())
            {
                return;
            }
            assert!(begun.elapsed() < LONG, "the daemon does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state_dir.join("sandkeeper.sock")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.state_dir.join("journal.redb")
    }

    pub(crate) fn log(&self) -> String {
        read_if_there(&self.directory.path().join("log"))
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket()).await.expect("it is served").within(LONG)
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        assert!(self.child.try_wait().unwrap().is_none(), "it has ended already\n{}", self.log());
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`. Returns when it is gone.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.ended().signal(), Some(9));
    }

    /// SIGTERM; gives its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ended().code()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the daemon has ended", || child.try_wait().unwrap())
    }

    /// All sandboxes, once none is being found out about any more.
    pub(crate) async fn settled(&self) -> Vec<SandboxStatus> {
        let mut client = self.client().await;
        let begun = Instant::now();
        while client.version().await.unwrap().recovering > 0 {
            assert!(begun.elapsed() < LONG, "still recovering\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        client.list(ListRequest::default()).await.unwrap()
    }

    /// Where its cgroups are, while there are any.
    pub(crate) fn cgroup_root(&self) -> Option<PathBuf> {
        let noted = read_if_there(&self.state_dir.join("linux.root"));
        Some(PathBuf::from(noted.strip_suffix('\n')?)).filter(|path| path.is_dir())
    }

    /// The cgroups of its sandboxes.
    pub(crate) fn groups(&self) -> Vec<String> {
        let Some(root) = self.cgroup_root() else { return Vec::new() };
        let names = subdirectories(&root).into_iter();
        let names = names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != "zygotes").collect();
        names.sort_unstable();
        names
    }

    /// How many descriptors the daemon has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

fn read_if_there(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|_| Vec::new());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn spawn(directory: &Path, state_dir: &Path, plan: &Plan, log: Option<Stdio>) -> Child {
    let mut command = match plan.descriptors {
        None => program(),
        Some(limit) => {
            let mut shell = clean(Command::new("/bin/sh"));
            shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
            shell.arg(env!("CARGO_BIN_EXE_sandkeeper"));
            shell
        }
    };
    let log = log.unwrap_or_else(|| {
        File::options().create(true).append(true).open(directory.join("log")).unwrap().into()
    });
    command.args(["serve", "--zygotes", "1", "--ready-networks", "2", "--state-dir"]).arg(state_dir);
    command.args(&plan.options).envs(plan.environment.iter().cloned());
    command.stdout(Stdio::null()).stderr(log).spawn().expect("it runs")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        // It cannot have ended and be another's: nobody but us waits for it. The kernel ends what it has left, all at once.
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
        if let Some(root) = self.cgroup_root() {
            remove_group(&root);
        }
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    // A group that is gone has none.
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Ends every process in a cgroup and in those below it, and removes them all.
fn remove_group(root: &Path) {
    let begun = Instant::now();
    while root.exists() {
        // Frozen processes die of it too. What is not there any more needs no killing.
        let _gone = std::fs::write(root.join("cgroup.kill"), "1");
        let mut groups = vec![root.to_owned()];
        let mut next = 0;
        while next < groups.len() {
            groups.extend(subdirectories(&groups[next]));
            next += 1;
        }
        for group in groups.iter().rev() {
            // Not as long as something in it ends; the next round tries again.
            let _busy = std::fs::remove_dir(group);
        }
        if begun.elapsed() > LONG {
            eprintln!("{} is left behind", root.display());
            return;
        }
        std::thread::yield_now();
    }
}

/// A sandbox in the host's root that runs a program.
pub(crate) fn in_host(argv: &[&str]) -> SandboxSpec {
    let mut process = ProcessSpec::new(argv.iter().copied());
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() }
}

pub(crate) fn sleeper() -> SandboxSpec {
    in_host(&["/bin/sleep", "1000000"])
}

/// Starts a sandbox; gives its PID 1.
pub(crate) async fn run(client: &mut Client, id: &str, spec: SandboxSpec) -> u32 {
    client.start(&key(id), Some(&spec)).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    client.status(&key(id)).await.unwrap().pid
}

/// A phase that a sandbox is going to be in.
pub(crate) async fn phase(client: &mut Client, id: &str, expected: &str) {
    let begun = Instant::now();
    loop {
        let phase = client.status(&key(id)).await.unwrap().phase;
        if phase == expected {
            return;
        }
        assert!(begun.elapsed() < LONG, "{id} is {phase}, and not {expected}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A file of a process in /proc; nothing if the process is gone.
fn of_process(pid: u32, file: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// Whether it has ended, reaped or not.
pub(crate) fn has_ended(pid: u32) -> bool {
    of_process(pid, "status").is_none_or(|status| status.contains("State:\tZ"))
}

/// Waits until the only child of a sandbox's PID 1 catches SIGTERM, or ignores it, as `mask` of its status says.
pub(crate) fn minds_sigterm(pid: u32, mask: &str) {
    until("the program has set its trap", || {
        let children = of_process(pid, &format!("task/{pid}/children"))?;
        let child: u32 = children.split_whitespace().next()?.parse().ok()?;
        let status = of_process(child, "status")?;
        let signals = status.lines().find_map(|line| line.strip_prefix(mask))?;
        let signals = u64::from_str_radix(signals.trim(), 16).ok()?;
        (signals & 1 << (Signal::TERM.as_raw() - 1) != 0).then_some(())
    });
}

/// A signal to a process of a sandbox of this test's own making.
pub(crate) fn send(pid: u32, signal: Signal) {
    assert!(pid > 1, "never to be sent to {pid}");
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// What an error is of.
#[track_caller]
pub(crate) fn refused<T>(answer: Result<T, Error>) -> Error {
    match answer {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error,
    }
}
