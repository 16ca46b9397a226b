//! The daemon under torture: a process that is started, killed and started again on one state directory.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sandkeeper::surface::grpc::Client;

/// How long a daemon has until it answers.
const COMING_UP: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(2);

/// Where it lives.
pub(crate) struct Place {
    pub(crate) program: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl Place {
    pub(crate) fn new(program: PathBuf, dir: &Path) -> Self {
        let state = dir.join("state");
        Self { program, socket: dir.join("sock"), state, log: dir.join("daemon.log") }
    }

    /// Starts a daemon; `armed` says at which fail-point it is to die.
    pub(crate) fn start(&self, armed: Option<&str>, more: &[&str]) -> std::io::Result<Daemon> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--state-dir").arg(&self.state).arg("--socket").arg(&self.socket).args(more);
        command.env_remove("SANDKEEPER_FAILPOINT");
        if let Some(armed) = armed {
            command.env("SANDKEEPER_FAILPOINT", armed);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Daemon { process: command.spawn()?, started: Instant::now() })
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_else(|error| error.to_string().into_bytes());
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// A daemon that runs, or has died. Dropping it kills it.
pub(crate) struct Daemon {
    process: Child,
    pub(crate) started: Instant,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`. Returns when it is gone.
    pub(crate) fn kill(&mut self) {
        // An error says that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Whether it has ended; by which signal or with which status.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        let status = self.process.try_wait().ok().flatten()?;
        Some(match (status.signal(), status.code()) {
            (Some(9), _) => Ended::Killed,
            (_, Some(0)) => Ended::InOrder,
            _ => Ended::Otherwise(status.to_string()),
        })
    }

    /// Waits until it has ended, for so long at most.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> Option<Ended> {
        let begun = Instant::now();
        loop {
            match self.ended() {
                None if begun.elapsed() < limit => tokio::time::sleep(PAUSE).await,
                ended => return ended,
            }
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.process.id() as i32).expect("it has a number");
        // It was not waited for yet: the number is its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// A client of it, once it answers.
    pub(crate) async fn client(&mut self, place: &Place) -> Result<Client, String> {
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.ended() {
                return Err(format!(
                    "the daemon has ended while it came up: {ended:?}\n{}",
                    place.last_words()
                ));
            }
            if let Ok(mut client) = Client::connect(&place.socket).await
                && client.version().await.is_ok_and(|version| version.pid == self.pid())
            {
                return Ok(client);
            }
            if begun.elapsed() > COMING_UP {
                return Err(format!(
                    "the daemon does not answer within {COMING_UP:?}\n{}",
                    place.last_words()
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a daemon has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Killed,
    InOrder,
    Otherwise(String),
}
