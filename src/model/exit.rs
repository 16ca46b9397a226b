//! How a life ends.

use std::fmt;

/// Numbers the lives of all sandboxes of a keeper; a number is never used again, whatever sandbox it was for.
///
/// Every start of an ID begins a new life. Timers, exit notices and cleanups carry the life they belong to, so that
/// the past cannot touch the present. 0 stands for "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Life(pub u64);

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds of boot time (`CLOCK_BOOTTIME`): a clock that nobody can set and that a suspend does not stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootMillis(pub u64);

/// Why a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitReason {
    /// The main process ended by itself with this status.
    Exited(u8),
    /// This signal ended the main process.
    Signalled(u8),
    /// The kernel ended it for want of memory.
    OomKilled,
    /// It is gone, and nobody can tell how.
    Lost,
    /// It was stopped before it ran.
    NeverRan,
}

impl ExitReason {
    /// Its name: `oom-killed`.
    pub fn name(self) -> &'static str {
        match self {
            ExitReason::Exited(_) => "exited",
            ExitReason::Signalled(_) => "signalled",
            ExitReason::OomKilled => "oom-killed",
            ExitReason::Lost => "lost",
            ExitReason::NeverRan => "never-ran",
        }
    }
}

/// The end of a life: why, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// When, in nanoseconds since the Unix epoch; 0 if nobody can tell.
    pub at_unix_nanos: i64,
}

impl Exit {
    /// The status as a shell would show it: the process's own, or 128 and the signal's number (137 for a kill for want
    /// of memory). What is unknown is 255, and what never ran 137; never 0.
    pub fn status(&self) -> u32 {
        match self.reason {
            ExitReason::Exited(status) => status.into(),
            ExitReason::Signalled(signal) => 128 + u32::from(signal),
            ExitReason::OomKilled | ExitReason::NeverRan => 137,
            ExitReason::Lost => 255,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            ExitReason::Exited(status) => write!(f, "exited with {status}"),
            ExitReason::Signalled(signal) => write!(f, "ended by signal {signal}"),
            ExitReason::OomKilled => f.write_str("ended by the kernel for want of memory"),
            ExitReason::Lost => f.write_str("gone, nobody can tell how"),
            ExitReason::NeverRan => f.write_str("stopped before it ran"),
        }
    }
}
