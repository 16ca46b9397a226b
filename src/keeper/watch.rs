//! Watches changes of phase.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::actor::Services;
use crate::events::{Event, Read};
use crate::registry::index::Index;
use crate::wire::SandboxStatus;

use super::{Filter, Keeper};

/// Events taken from the log at a time.
const BATCH: usize = 256;

/// A stream of changes. It slows nobody: a watcher that falls more than 65,536 events behind is given a snapshot and goes
/// on from there.
pub struct Watch {
    services: Arc<Services>,
    /// Weak: a watch does not keep its keeper open.
    index: std::sync::Weak<Index>,
    next: u64,
    read: VecDeque<Event>,
    take_stock: bool,
}

/// What a watch yields.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchItem {
    /// Everything there is, by what is published: at the beginning, and whenever events were missed. What follows has
    /// sequence numbers from `next_sequence` on; the snapshot may already contain the effect of some of it.
    Snapshot {
        /// Which keeper's numbers these are ([`Keeper::epoch`]).
        epoch: u64,
        /// The first event that follows.
        next_sequence: u64,
        /// Ordered by key.
        sandboxes: Vec<SandboxStatus>,
    },
    /// A sandbox entered a phase.
    Event(Event),
}

impl Keeper {
    /// Watches every change of phase, once each and in order, beginning with a snapshot.
    pub fn watch(&self) -> Watch {
        self.watch_after(self.inner.services.events.next(), true)
    }

    /// Goes on watching from the event numbered `next_sequence` of an epoch. Where those numbers are another keeper's, or the
    /// event is not kept any more, it begins with a snapshot, which says so.
    pub fn watch_from(&self, epoch: u64, next_sequence: u64) -> Watch {
        let events = &self.inner.services.events;
        if epoch == events.epoch() && next_sequence <= events.next() {
            return self.watch_after(next_sequence, false);
        }
        self.watch()
    }

    /// How many watch at the moment.
    pub fn watchers(&self) -> usize {
        self.inner.services.events.watchers()
    }

    fn watch_after(&self, next: u64, take_stock: bool) -> Watch {
        self.inner.services.events.count_watcher(true);
        Watch {
            services: Arc::clone(&self.inner.services),
            index: Arc::downgrade(&self.inner.index),
            next,
            read: VecDeque::new(),
            take_stock,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.services.events.count_watcher(false);
    }
}

impl Watch {
    /// The next item; nothing once the keeper is closed and everything was read. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchItem> {
        loop {
            if std::mem::take(&mut self.take_stock) {
                // A closed keeper has nothing left; what led there is still to be read.
                let index = self.index.upgrade();
                let sandboxes = index.map(|index| super::list::select(&index, &Filter::default()));
                let sandboxes = sandboxes.unwrap_or_default();
                let epoch = self.services.events.epoch();
                return Some(WatchItem::Snapshot { epoch, next_sequence: self.next, sandboxes });
            }
            if let Some(event) = self.read.pop_front() {
                return Some(WatchItem::Event(event));
            }
            match self.services.events.read(self.next, BATCH).await? {
                Read::Events(events) => {
                    self.next += events.len() as u64;
                    self.read.extend(events);
                }
                Read::Lagged(next) => {
                    self.next = next;
                    self.take_stock = true;
                }
            }
        }
    }
}
