//! One actor per sandbox: it serializes the lifecycle, runs operations beside itself, and never waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::events::EventLog;
use crate::id::SandboxKey;
use crate::journal::Journal;
use crate::model::{BootMillis, Command, Life};

pub(crate) mod cell;
mod link;
pub(crate) mod message;
mod perform;
pub(crate) mod pulse;
pub(crate) mod shell;
pub(crate) mod waiters;

pub(crate) use cell::{Cell, Keepsake, Wait};
pub(crate) use link::{Link, Upward};
pub(crate) use message::{Call, Definition, Lost, Message, OnlyIf, Reply, Restored, Settled};

/// How long each operation may take before it is dropped and counts as failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationDeadlines {
    /// To prepare.
    pub create: Duration,
    /// To start the leader.
    pub start: Duration,
    /// To freeze; the caller's own deadline holds if it is earlier.
    pub pause: Duration,
    /// To thaw; the caller's own deadline holds if it is earlier.
    pub resume: Duration,
    /// To ask it to end.
    pub ask: Duration,
    /// To end every process.
    pub kill: Duration,
    /// To end and remove what is left.
    pub delete: Duration,
    /// To find out what exists.
    pub reattach: Duration,
}

impl Default for OperationDeadlines {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            create: secs(30),
            start: secs(30),
            pause: secs(5),
            resume: secs(5),
            ask: secs(2),
            // Together they end before the caller of a Shutdown gives up, so that it hears what was in the way.
            kill: Duration::from_millis(1_500),
            delete: secs(3),
            reattach: secs(5),
        }
    }
}

/// What is bounded, and where.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) mailbox: u32,
    pub(crate) waiters: usize,
    pub(crate) sandboxes: usize,
    pub(crate) stopped: usize,
    pub(crate) in_flight: usize,
    pub(crate) starts: usize,
    pub(crate) recoveries: usize,
}

/// What all actors of a keeper share.
pub(crate) struct Services {
    pub(crate) clock: Clock,
    pub(crate) events: EventLog,
    pub(crate) bounds: Bounds,
    pub(crate) deadlines: OperationDeadlines,
    /// One permit for each start that may run at a time; handed out in the order of asking.
    pub(crate) starts: Arc<Semaphore>,
    /// One permit for each sandbox of an earlier keeper that may be found out about at a time.
    pub(crate) recoveries: Semaphore,
    pub(crate) registry: Link,
    /// Where it is written what is going on; nothing if the keeper works in memory.
    pub(crate) journal: Option<Journal>,
    lives: AtomicU64,
    in_flight: AtomicUsize,
    closed: AtomicBool,
}

/// A call on its way.
pub(crate) struct InFlight(Arc<Services>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Services {
    /// `epoch` and `next_life` go on from where an earlier keeper on the same journal was.
    pub(crate) fn new(
        bounds: Bounds,
        deadlines: OperationDeadlines,
        journal: Option<Journal>,
        (epoch, next_life): (u64, u64),
    ) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::new(),
            events: EventLog::new(epoch),
            starts: Arc::new(Semaphore::new(bounds.starts)),
            recoveries: Semaphore::new(bounds.recoveries),
            bounds,
            deadlines,
            registry: Link::default(),
            journal,
            lives: AtomicU64::new(next_life),
            in_flight: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// Nothing begins any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Refuses what would begin something once the keeper is closed.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`].
    pub(crate) fn check_open(&self, key: &SandboxKey, command: Command) -> Result<(), Error> {
        if command.begins() && self.closed.load(Ordering::Acquire) {
            let found = "its keeper is closed";
            return Err(Error::new(ErrorKind::Unavailable, command.verb(), found).on(key));
        }
        Ok(())
    }

    /// Counts a call that is on its way, until it is answered.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] at once if too many are.
    pub(crate) fn in_flight(
        self: &Arc<Self>,
        key: &SandboxKey,
        verb: &'static str,
    ) -> Result<InFlight, Error> {
        let bound = self.bounds.in_flight;
        let counted = InFlight(Arc::clone(self));
        if self.in_flight.fetch_add(1, Ordering::AcqRel) < bound {
            return Ok(counted);
        }
        Err(message::full(verb, format!("{bound} calls are on their way already")).on(key))
    }

    /// A number that no life has had.
    pub(crate) fn fresh_life(&self) -> Life {
        Life(self.lives.fetch_add(1, Ordering::Relaxed))
    }
}

/// Boot time, and how tokio's clock relates to it. Tests that pause tokio's clock pause this one with it.
pub(crate) struct Clock {
    boot_at_start: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot_at_start = boot.tv_sec as u64 * 1_000 + boot.tv_nsec as u64 / 1_000_000;
        Self { boot_at_start, start: Instant::now() }
    }

    pub(crate) fn now(&self) -> BootMillis {
        self.boot_millis_of(Instant::now())
    }

    pub(crate) fn boot_millis_of(&self, instant: Instant) -> BootMillis {
        let since = instant.saturating_duration_since(self.start).as_millis();
        BootMillis(self.boot_at_start + u64::try_from(since).unwrap_or(u64::MAX / 2))
    }

    /// Not earlier than the moment meant: what is due then is due when a sleep until then ends.
    pub(crate) fn instant_of(&self, at: BootMillis) -> Instant {
        self.start + Duration::from_millis(at.0.saturating_sub(self.boot_at_start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_hears_what_was_in_its_way_before_it_gives_up() {
        let OperationDeadlines { kill, delete, .. } = OperationDeadlines::default();
        assert!(kill + delete < crate::controller::default_deadline::END_BEYOND_GRACE);
    }
}
