//! Programs run inside a sandbox, and what its main process has written.

use crate::controller::default_deadline;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Life, Phase};
use crate::runtime::{Exec, ExecRequest, LogPage};

use super::Keeper;

impl Keeper {
    /// Runs a program inside a sandbox, under the isolation of its main process. Returns when it has been executed.
    ///
    /// What is returned kills it when dropped, unless it is detached. It ends with the sandbox, and with this keeper's process.
    ///
    /// # Errors
    /// - `NotFound`: nobody has this name.
    /// - `FailedPrecondition`: it does not run, or is paused.
    /// - `InvalidArgument`: the program is not there.
    /// - `Unimplemented`: its runtime cannot.
    pub async fn exec(&self, key: &SandboxKey, request: &ExecRequest) -> Result<Exec, Error> {
        let (cell, instance) = self.instance(key, "run a program in")?;
        let phase = cell.pulse().phase();
        if phase != Phase::Running {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "run a program in",
                format!("it is {phase}"),
            )
            .on(key)
            .remedy(if phase == Phase::Paused {
                "resume it first"
            } else {
                "wait for that to end"
            }));
        }
        self.in_limit(
            key,
            "run a program in",
            self.limit(default_deadline::START),
            cell.runtime.exec(&instance, request),
        )
        .await
    }

    /// Reads what a sandbox's main process has written, from a position on (0 for the oldest that is kept), about so many bytes
    /// at most. Also of one that has ended, until it is started again or shut down.
    ///
    /// # Errors
    /// - `NotFound`: nobody has this name.
    /// - `FailedPrecondition`: it was never started.
    /// - `Unimplemented`: its runtime keeps no logs.
    pub async fn logs(&self, key: &SandboxKey, from: u64, most_bytes: usize) -> Result<LogPage, Error> {
        let cell = self.cell(key, "read the log of")?;
        let life = cell.pulse().life();
        if life == Life(0) {
            return Err(
                Error::new(ErrorKind::FailedPrecondition, "read the log of", "it was never started").on(key)
            );
        }
        self.in_time(key, "read the log of", cell.runtime.logs(&cell.instance(life), from, most_bytes)).await
    }
}
