//! The event log: every change of phase once, in order, numbered; and those who watch it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::id::SandboxKey;
use crate::model::{Exit, Life, Phase};

/// How many events are kept for watchers that lag.
pub const KEPT_EVENTS: usize = 65_536;

/// A sandbox entered a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Counts up by one, over all sandboxes of the keeper.
    pub sequence: u64,
    /// Nanoseconds since the Unix epoch.
    pub at_unix_nanos: i64,
    /// Whose.
    pub key: SandboxKey,
    /// The phase entered.
    pub phase: Phase,
    /// The life it belongs to; 0 before the first.
    pub life: Life,
    /// How that life ended, from `Stopped` on.
    pub exit: Option<Exit>,
}

/// An event as it is kept: its number is its place, and its key is shared with its sandbox.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) at_unix_nanos: i64,
    pub(crate) key: Arc<SandboxKey>,
    pub(crate) phase: Phase,
    pub(crate) life: Life,
    pub(crate) exit: Option<Exit>,
}

impl Entry {
    fn numbered(&self, sequence: u64) -> Event {
        let Self { at_unix_nanos, ref key, phase, life, exit } = *self;
        Event { sequence, at_unix_nanos, key: **key, phase, life, exit }
    }
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Entry>,
    /// The number of the event that comes next.
    next: u64,
}

/// Keeps the last events. Whoever reads too slowly loses some and is told so; nobody waits for a reader.
pub(crate) struct EventLog {
    ring: Mutex<Ring>,
    appended: Notify,
    closed: AtomicBool,
    /// How many watch it.
    watchers: AtomicUsize,
    /// Which keeper's this is, of all that the same journal has had.
    epoch: u64,
}

/// What a reader finds.
pub(crate) enum Read {
    /// These, from where it stood.
    Events(Vec<Event>),
    /// Some are gone; it is to take stock and go on from this number.
    Lagged(u64),
}

impl EventLog {
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            ring: Mutex::default(),
            appended: Notify::new(),
            closed: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            epoch,
        }
    }

    /// Counts up with every keeper on the same journal: sequence numbers are worth nothing in another.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Somebody more watches, or somebody fewer.
    pub(crate) fn count_watcher(&self, comes: bool) {
        match comes {
            true => self.watchers.fetch_add(1, Ordering::Relaxed),
            false => self.watchers.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// How many watch it.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    pub(crate) fn append(&self, entry: Entry) {
        {
            let mut ring = self.ring.lock();
            ring.next += 1;
            if ring.events.len() == KEPT_EVENTS {
                ring.events.pop_front();
            }
            ring.events.push_back(entry);
        }
        self.appended.notify_waiters();
    }

    /// The number of the event that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.ring.lock().next
    }

    /// Nobody will append any more: readers end when they have read everything.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.appended.notify_waiters();
    }

    /// Waits for events from number `from` on; at most `most` of them at a time. Nothing once the log is closed.
    pub(crate) async fn read(&self, from: u64, most: usize) -> Option<Read> {
        loop {
            // Registered before the look, so that nothing slips in between.
            let mut appended = std::pin::pin!(self.appended.notified());
            appended.as_mut().enable();
            {
                let ring = self.ring.lock();
                let first = ring.next - ring.events.len() as u64;
                if from < first {
                    return Some(Read::Lagged(ring.next));
                }
                if from < ring.next {
                    let at = (from - first) as usize;
                    let entries = ring.events.iter().skip(at).take(most);
                    return Some(Read::Events(
                        entries.zip(from..).map(|(entry, at)| entry.numbered(at)).collect(),
                    ));
                }
            }
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            appended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(life: u64) -> Entry {
        Entry {
            at_unix_nanos: 0,
            key: Arc::new(SandboxKey::new("default", "a").unwrap()),
            phase: Phase::Running,
            life: Life(life),
            exit: None,
        }
    }

    #[tokio::test]
    async fn a_reader_that_lags_is_told_and_goes_on() {
        let log = EventLog::new(1);
        for life in 0..KEPT_EVENTS as u64 + 10 {
            log.append(event(life));
        }
        let Some(Read::Lagged(next)) = log.read(0, 8).await else { panic!("ten events are gone") };
        log.append(event(7));
        let Some(Read::Events(events)) = log.read(next, 8).await else { panic!("one event is there") };
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].sequence, events[0].life), (next, Life(7)));
        log.close();
        assert!(log.read(next + 1, 8).await.is_none());
    }
}
