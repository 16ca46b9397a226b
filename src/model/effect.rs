//! What the machine wants done. The shell does it, in order, and decides nothing.

use super::{BootMillis, Exit, Life, OpId, Phase};

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Let everybody see this phase.
    Publish(Phase),
    /// Run this operation on this life, and report its end.
    Begin {
        /// Under this number.
        op: OpId,
        /// What to run.
        operation: Operation,
        /// On which life.
        life: Life,
    },
    /// Drop this operation if it still runs. Its report no longer matters.
    Cancel(OpId),
    /// Answer everybody who waits for this.
    Settle(OpId, Outcome),
    /// Tell everybody who waits for the end of this life. Once per life.
    Tell(Life, Exit),
    /// Report [`Due`](super::Observation::Due) at this moment, and forget any earlier one.
    Arm(BootMillis),
    /// Forget the armed moment.
    Disarm,
}

/// What a backend is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Prepare.
    Create,
    /// Start the leader.
    Start,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Ask it to end.
    Ask,
    /// End every process of it.
    Kill,
    /// End and remove whatever is left.
    Delete,
    /// Find out what exists.
    Reattach,
}

/// What a caller who waited is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It came to nothing.
    Failed(Cause),
}

/// Why something came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// This operation failed; the shell has its error.
    Operation(OpId),
    /// A Stop ended it.
    Stop,
    /// A Shutdown ended it.
    Shutdown,
    /// The instance ended first.
    Exited(Exit),
    /// Its owner was lost while it was under way.
    OwnerLost,
}
