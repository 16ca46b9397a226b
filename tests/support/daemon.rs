//! The real daemon in a directory of its own, and nothing of it left afterwards. For all tests that have one.
#![allow(dead_code, clippy::print_stderr)] // None needs all of it; and who reads a failed test wants the log of the daemon.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sandkeeper::surface::grpc::Client;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sandkeeper");

/// Waits for a condition. Blocks, which the other threads of a test's runtime make up for.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has nothing else to do on this thread")]
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// The program, with whatever its environment says of daemons left out.
pub(crate) fn program() -> Command {
    clean(Command::new(PROGRAM))
}

fn clean(mut command: Command) -> Command {
    for name in ["SANDKEEPER_SOCKET", "SANDKEEPER_NAMESPACE", "SANDKEEPER_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// An ordinary user, who need not have a name.
pub(crate) const USER: u32 = 54_321;

/// The program as that user without any right, in a cgroup. Its file comes along as standard input: the directory that it is in
/// may be closed to others.
pub(crate) fn as_user_in(group: &Path) -> Command {
    let mut shell = clean(Command::new("/bin/sh"));
    let script = format!(
        "echo $$ > \"$0/cgroup.procs\" && exec 9<&0 </dev/null && exec setpriv --reuid {USER} --regid {USER} --clear-groups \
         --inh-caps=-all --bounding-set=-all /proc/self/fd/9 \"$@\""
    );
    shell.stdin(File::open(PROGRAM).unwrap());
    shell.arg("-c").arg(script).arg(group);
    shell
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
    /// The cgroup in which it runs as an ordinary user; see `unprivileged`.
    pub(crate) as_user_in: Option<PathBuf>,
}

/// A daemon that runs, or has ended and can be started again. Dropping it ends whatever exists under its directory.
pub(crate) struct Daemon {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) state_dir: PathBuf,
    pub(crate) plan: Plan,
    child: Child,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_as(Plan { options: owned(options), ..Plan::default() })
    }

    pub(crate) fn start_as(plan: Plan) -> Self {
        let directory = directory();
        if plan.as_user_in.is_some() {
            std::os::unix::fs::chown(directory.path(), Some(USER), Some(USER)).unwrap();
        }
        let state_dir = directory.path().join("state");
        Self::start_in(directory, state_dir, plan)
    }

    pub(crate) fn start_in(directory: tempfile::TempDir, state_dir: PathBuf, plan: Plan) -> Self {
        let child = spawn(directory.path(), &state_dir, &plan, None);
        let mut daemon = Self { directory, state_dir, plan, child };
        daemon.is_up();
        daemon
    }

    /// Starts it on its directory again.
    pub(crate) fn start_again(&mut self) {
        self.start_again_unwaited();
        self.is_up();
    }

    /// As [`start_again`](Self::start_again), with other options.
    pub(crate) fn start_again_with(&mut self, options: &[&str]) {
        self.plan.options = owned(options);
        self.start_again();
    }

    /// As [`start_again`](Self::start_again), with its log going elsewhere.
    pub(crate) fn start_again_with_log(&mut self, log: Stdio) {
        self.spawn_again(Some(log));
        self.is_up();
    }

    /// As [`start_again`](Self::start_again), and it may not answer yet.
    pub(crate) fn start_again_unwaited(&mut self) {
        self.spawn_again(None);
    }

    fn spawn_again(&mut self, log: Option<Stdio>) {
        assert!(self.child.try_wait().unwrap().is_some(), "it still runs");
        self.child = spawn(self.directory.path(), &self.state_dir, &self.plan, log);
    }

    fn is_up(&mut self) {
        let begun = Instant::now();
        while !answers(&self.socket(), self.pid()) {
            if let Some(ended) = self.child.try_wait().unwrap() {
                panic!("the daemon has ended as it came up: {ended}\n{}", self.log());
            }
            assert!(begun.elapsed() < LONG, "the daemon does not answer\n{}", self.log());
            pause();
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

fn owned(options: &[&str]) -> Vec<String> {
    options.iter().map(|&option| option.to_owned()).collect()
}

/// Whether the daemon that is this process answers there. On a thread of its own: the caller may be one of an async runtime.
fn answers(socket: &Path, pid: u32) -> bool {
    let ask = async || Client::connect(socket).await?.within(LONG).version().await;
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let version = std::thread::scope(|scope| scope.spawn(|| runtime().block_on(ask())).join().unwrap());
    version.is_ok_and(|version| version.pid == pid)
}

pub(crate) fn read_if_there(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|_| Vec::new());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn spawn(directory: &Path, state_dir: &Path, plan: &Plan, log: Option<Stdio>) -> Child {
    let mut command = match (plan.descriptors, &plan.as_user_in) {
        (_, Some(group)) => as_user_in(group),
        (None, None) => program(),
        (Some(limit), None) => {
            let mut shell = clean(Command::new("/bin/sh"));
            shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
            shell.arg(PROGRAM);
            shell
        }
    };
    let log = log.unwrap_or_else(|| {
        File::options().create(true).append(true).open(directory.join("log")).unwrap().into()
    });
    // Those of an ordinary user cannot stand in for each other everywhere.
    let zygotes = if plan.as_user_in.is_some() { "2" } else { "1" };
    command.args(["serve", "--zygotes", zygotes, "--ready-networks", "2", "--state-dir"]).arg(state_dir);
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
pub(crate) fn remove_group(root: &Path) {
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
