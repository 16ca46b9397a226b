//! Why a command is refused.

use std::fmt;

use super::{Command, Phase};

/// A command that this moment does not permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// What was asked.
    pub command: Command,
    /// The phase that forbids it.
    pub phase: Phase,
    /// What stands behind the phase.
    pub because: Because,
}

/// What stands behind a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Because {
    /// The phase alone.
    Phase,
    /// A Shutdown is under way, and it wins.
    ShuttingDown,
    /// A start failed, and what it made is being removed.
    Undoing,
    /// A pause failed, and is being withdrawn.
    Withdrawing,
    /// Its owner or its keeper was lost, and what exists is being found out.
    Recovering,
}

impl Refusal {
    /// Whether the same command may succeed in a moment, without anybody doing anything.
    pub fn passes_by_itself(&self) -> bool {
        self.because != Because::Phase
            || matches!(
                self.phase,
                Phase::Creating
                    | Phase::Starting
                    | Phase::Pausing
                    | Phase::Resuming
                    | Phase::Stopping
                    | Phase::Deleting
            )
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match (self.because, self.command, self.phase) {
            (Because::ShuttingDown, ..) => "wait for the shutdown to end, then define it anew",
            (Because::Undoing, ..) => "try again when that is done",
            (Because::Withdrawing, ..) => "try again when that is done, or shut it down",
            (Because::Recovering, ..) => "try again in a moment",
            (_, _, Phase::Defined | Phase::Created) => "start it first",
            (_, _, Phase::Stopped) => "start it again first",
            (_, _, Phase::Stopping) => "wait for it to stop, or shut it down",
            (_, Command::Create { .. }, _) => "stop it first",
            _ => "wait for that to end, or shut it down",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.because {
            Because::Phase => write!(f, "it is {}", self.phase),
            Because::ShuttingDown => f.write_str("it is being shut down"),
            Because::Undoing => f.write_str("its start failed, and what that made is being removed"),
            Because::Withdrawing => f.write_str("a pause of it failed, and is being withdrawn"),
            Because::Recovering => f.write_str("what exists of it is being found out"),
        }
    }
}
