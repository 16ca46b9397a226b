//! What the daemon is told by signals.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::Log;
use crate::error::{Error, ErrorKind};

/// SIGTERM and SIGINT; SIGHUP is heard, and does nothing.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Error> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Internal, "listen for signals", "the system refuses").caused_by(error)
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            hangup: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    /// Resolves when the daemon is to end.
    pub(super) async fn first(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => tracing::info!("SIGHUP does nothing; the configuration is read at the start"),
            }
        }
    }

    /// Ends the process when the daemon is told a second time: sandboxes and records are as safe as they are from SIGKILL.
    pub(super) async fn exit_at_the_next(mut self, log: Log) {
        let signal = self.first().await;
        tracing::warn!(signal, "told twice; the daemon ends at once");
        log.flush();
        std::process::exit(1);
    }
}

/// Ends the process once `limit` is over, whatever hangs: it is not asked for anything.
pub(super) fn exit_within(limit: Duration, log: Log) {
    let exit = move || {
        pause(limit);
        tracing::error!(?limit, "something does not let go; the daemon ends all the same");
        log.flush();
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("sandkeeper-end".to_owned()).spawn(exit);
    if let Err(error) = thread {
        tracing::warn!(%error, "there is no thread that would see to it that the daemon ends");
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, which must not depend on anything")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}
