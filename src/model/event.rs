//! What reaches the machine: commands, which may be refused, and observations, which may not.

use super::{Exit, Life};

/// Numbers the operations of one sandbox, and the goals its callers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Keep the definition, whatever becomes of a start that is under way.
    Define,
    /// Prepare. `life` is the number of the life that begins, if one does.
    Create {
        /// Never used before.
        life: Life,
    },
    /// Prepare if need be, and start.
    Start {
        /// Never used before.
        life: Life,
    },
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// End the instance and keep the record.
    Stop {
        /// How long it may take to end by itself.
        grace_millis: u64,
    },
    /// End the instance and forget it.
    Shutdown {
        /// How long it may take to end by itself.
        grace_millis: u64,
    },
}

impl Command {
    /// Whether it would begin something.
    pub(crate) fn begins(self) -> bool {
        matches!(self, Command::Define | Command::Create { .. } | Command::Start { .. })
    }

    /// The verb in the infinitive.
    pub fn verb(self) -> &'static str {
        match self {
            Command::Define => "define",
            Command::Create { .. } => "create",
            Command::Start { .. } => "start",
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::Stop { .. } => "stop",
            Command::Shutdown { .. } => "shut down",
        }
    }
}

/// What the world reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observation {
    /// An operation came to its end; `failed` if it did not do what it was for.
    Ended {
        /// Which.
        op: OpId,
        /// Whether it failed.
        failed: bool,
    },
    /// A life came to its end.
    Exited {
        /// Which.
        life: Life,
        /// How.
        exit: Exit,
        /// Whether nothing of the instance runs any more.
        all_ended: bool,
    },
    /// The armed deadline may have passed.
    Due,
    /// Whoever kept track of this sandbox lost it; operations that ran may or may not have come to anything.
    OwnerLost,
    /// What a reattach found.
    Found {
        /// The reattach.
        op: OpId,
        /// What there is.
        found: Found,
    },
}

/// What exists of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Prepared, never started.
    Created,
    /// It runs.
    Running {
        /// Whether it is frozen.
        frozen: bool,
    },
    /// It has ended.
    Ended(Exit),
}
