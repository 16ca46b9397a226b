//! What is kept of a lifecycle beyond the end of its supervisor, and how one goes on from there.

use super::{BootMillis, Exit, Life, Phase};

/// A lifecycle as it is written down.
///
/// It says what was going on, not what exists: what an operation came to, its supervisor may not have lived to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// The phase; never `Gone`.
    pub phase: Phase,
    /// The life that runs or ran last; 0 if there has been none.
    pub life: Life,
    /// Whether that life's leader is known to have run.
    pub ran: bool,
    /// Whether a start that fails leaves the definition.
    pub kept: bool,
    /// Whether a Shutdown is under way.
    pub shutdown: bool,
    /// How the life ended, where that is known.
    pub exit: Option<Exit>,
    /// Until when it may take to end by itself, if a stop is under way and it has been asked.
    pub until: Option<BootMillis>,
}
