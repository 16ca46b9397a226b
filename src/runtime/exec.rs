//! Running another program inside a sandbox.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use tokio::net::unix::pipe;

use crate::model::ExitReason;
use crate::spec::ProcessSpec;

/// A program to run inside a sandbox that runs, under the same isolation as its main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// What to run; its `stdio` is not looked at.
    pub process: ProcessSpec,
    /// Whether it gets a standard input; else it reads `/dev/null`.
    pub stdin: bool,
    /// Lets it go on when [`Exec`] is dropped; its output then goes to `/dev/null`. Else it is killed.
    pub detached: bool,
}

/// A program that runs inside a sandbox. Dropping it kills the program, unless it is detached.
pub struct Exec {
    /// Its number on the host.
    pub pid: u32,
    /// Its standard input, if it has one; dropping it closes that.
    pub stdin: Option<pipe::Sender>,
    /// Its standard output; nothing if it is detached.
    pub stdout: Option<pipe::Receiver>,
    /// Its standard error; nothing if it is detached.
    pub stderr: Option<pipe::Receiver>,
    /// Resolves to how it ended. Dropping it kills the program unless it is detached.
    pub exit: Pin<Box<dyn Future<Output = ExitReason> + Send>>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("pid", &self.pid).finish_non_exhaustive()
    }
}
