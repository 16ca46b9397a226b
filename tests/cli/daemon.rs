//! A daemon of a test's own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sandkeeper");

/// Waits for a condition.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        #[expect(clippy::disallowed_methods, reason = "a test's own thread, between two looks")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("it is text"),
            err: String::from_utf8(output.stderr).expect("it is text"),
        }
    }
}

impl Said {
    /// All went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// It went wrong in this way.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, with: &str) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(with), "{self:?} does not say {with:?}");
        self.out
    }

    /// The line of JSON that it says.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The program with these arguments, in an environment without settings of ours.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = clean(Command::new(PROGRAM));
    command.args(arguments);
    command
}

fn clean(mut command: Command) -> Command {
    command.stdin(Stdio::null());
    for name in ["SANDKEEPER_SOCKET", "SANDKEEPER_NAMESPACE", "SANDKEEPER_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// A daemon on a state directory of its own. When it is dropped nothing of it is left.
pub(crate) struct Daemon {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) state_dir: PathBuf,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    pub(crate) fn begin() -> Self {
        Self::begin_with(&[])
    }

    pub(crate) fn begin_with(options: &[&str]) -> Self {
        let directory = directory();
        let state_dir = directory.path().join("state");
        Self::begin_at(directory, state_dir, options)
    }

    pub(crate) fn begin_at(directory: tempfile::TempDir, state_dir: PathBuf, options: &[&str]) -> Self {
        let command = program(&[]);
        Self::begin_by(command, directory, state_dir, options)
    }

    /// A daemon with a limit on its descriptors.
    pub(crate) fn begin_limited(descriptors: u32) -> Self {
        let directory = directory();
        let state_dir = directory.path().join("state");
        let mut command = clean(Command::new("bash"));
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), PROGRAM]);
        Self::begin_by(command, directory, state_dir, &[])
    }

    /// A daemon whose log nobody reads once it is up.
    pub(crate) fn begin_unheard() -> Self {
        let directory = directory();
        let state_dir = directory.path().join("state");
        let (child, log) = spawn(program(&[]), &state_dir, &[], Some("the daemon is up"));
        let mut daemon = Self { directory, state_dir, child, log };
        daemon.wait_for_it();
        daemon
    }

    fn begin_by(
        command: Command,
        directory: tempfile::TempDir,
        state_dir: PathBuf,
        options: &[&str],
    ) -> Self {
        let (child, log) = spawn(command, &state_dir, options, None);
        let mut daemon = Self { directory, state_dir, child, log };
        daemon.wait_for_it();
        daemon
    }

    fn wait_for_it(&mut self) {
        let log = Arc::clone(&self.log);
        let child = &mut self.child;
        until("the daemon is up", || {
            let log = log.lock().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the daemon has ended: {log}");
            log.contains("the daemon is up").then_some(())
        });
    }

    /// The next daemon on the same directory, once this one has ended.
    #[allow(dead_code)] // Not every test that has a daemon kills it.
    pub(crate) fn begin_again(&mut self, options: &[&str]) {
        self.begin_again_unwaited(options);
        self.wait_for_it();
    }

    /// The next daemon on the same directory, which may not answer yet.
    pub(crate) fn begin_again_unwaited(&mut self, options: &[&str]) {
        (self.child, self.log) = spawn(program(&[]), &self.state_dir, options, None);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state_dir.join("sandkeeper.sock")
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(arguments);
        command.env("SANDKEEPER_SOCKET", self.socket());
        command
    }

    /// Runs a verb.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("it runs").into()
    }

    /// Runs a verb that is given something to read.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).expect("it is our child");
    }

    /// Waits for the daemon to end, and gives its exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        until("the daemon has ended", || child.try_wait().unwrap()).code()
    }
}

/// A directory on a file system in memory, as a daemon's is.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sandkeeper-cli-").tempdir_in("/run").unwrap()
}

/// Begins a daemon, whose log is read to its end or to a line that says this.
fn spawn(
    mut command: Command,
    state_dir: &Path,
    options: &[&str],
    until: Option<&'static str>,
) -> (Child, Arc<Mutex<String>>) {
    command.args(["serve", "--zygotes", "1", "--ready-networks", "2", "--state-dir"]);
    command.arg(state_dir).args(options).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let log = Arc::new(Mutex::new(String::new()));
    let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let last = until.is_some_and(|until| line.contains(until));
            written.lock().unwrap().push_str(&(line + "\n"));
            if last {
                return;
            }
        }
    });
    (child, log)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_some() {
            if !self.state_dir.join("linux.root").exists() {
                return;
            }
            // It left its sandboxes to the next one.
            (self.child, self.log) = spawn(program(&[]), &self.state_dir, &[], None);
            let log = Arc::clone(&self.log);
            until("a daemon is up to clear up", || {
                log.lock().unwrap().contains("the daemon is up").then_some(())
            });
        }
        // A test that failed may have left it standing still.
        self.signal(Signal::CONT);
        for namespace in ["default", "other"] {
            let left = self.run(&["-n", namespace, "shutdown", "--all", "--grace", "0"]);
            if left.code != 0 {
                eprintln!("left behind: {left:?}\n{}", self.log());
            }
        }
        self.signal(Signal::TERM);
        self.ended();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// Reads what a child writes, a line at a time.
pub(crate) struct Reader(BufReader<std::process::ChildStdout>);

impl Reader {
    pub(crate) fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().expect("it is piped")))
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it is text");
        line
    }

    pub(crate) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).expect("it is text");
        rest
    }
}
