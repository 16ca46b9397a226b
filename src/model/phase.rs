//! The phases of a sandbox.

use std::fmt;

/// Where a sandbox is in its life.
///
/// ```text
/// Defined → Creating → Created → Starting → Running ⇄ (Pausing, Paused, Resuming)
///                                              → Stopping → Stopped → Deleting → Gone
/// ```
/// The whole table of transitions, made from the machine itself, is in `docs/lifecycle.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Only its spec is known. Nothing of it exists.
    Defined = 1,
    /// Its surroundings are being prepared.
    Creating = 2,
    /// Prepared, and not yet started.
    Created = 3,
    /// Its leader is being started.
    Starting = 4,
    /// Its leader runs.
    Running = 5,
    /// It is being frozen, or a freeze that failed is being withdrawn.
    Pausing = 6,
    /// Frozen.
    Paused = 7,
    /// It is being thawed.
    Resuming = 8,
    /// It is being ended.
    Stopping = 9,
    /// It has ended. How is known; its record is kept.
    Stopped = 10,
    /// What is left of it is being removed.
    Deleting = 11,
    /// Removed and forgotten.
    Gone = 12,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 12] = [
        Phase::Defined,
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Deleting,
        Phase::Gone,
    ];

    /// The phase with this discriminant.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its name in lower case: `running`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Defined => "defined",
            Phase::Creating => "creating",
            Phase::Created => "created",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Pausing => "pausing",
            Phase::Paused => "paused",
            Phase::Resuming => "resuming",
            Phase::Stopping => "stopping",
            Phase::Stopped => "stopped",
            Phase::Deleting => "deleting",
            Phase::Gone => "gone",
        }
    }

    /// How a phase without an instance stands in the way of somebody who needs one.
    pub fn not_running(self) -> &'static str {
        match self {
            Phase::Defined => "it is defined, and was not started",
            Phase::Creating => "it is being created",
            Phase::Created => "it is created, and was not started",
            Phase::Starting => "it is starting",
            Phase::Stopped => "it is stopped",
            Phase::Deleting => "it is being removed",
            Phase::Gone => "it is gone",
            _ => "it is not running",
        }
    }

    /// Whether an instance runs, frozen or not, as far as the phase tells.
    pub fn is_alive(self) -> bool {
        matches!(self, Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming | Phase::Stopping)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
