//! What the backend remembers of each life, and who works on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::zygote::ZygoteId;
use crate::error::{Error, ErrorKind};
use crate::model::{Exit, Life};
use crate::runtime::Instance;

/// One life, from `create` to the end of `delete`.
pub(super) struct Sandbox {
    /// Whose life, and who hears of its end.
    pub(super) instance: Arc<Instance>,
    state: Mutex<State>,
    /// Whether an operation is at work, perhaps one whose caller has gone.
    busy: AtomicBool,
    /// Whether its end has been reported.
    told: AtomicBool,
    /// Whether it is being ended: what is at work gives up, and nothing begins any more.
    ending: AtomicBool,
    /// Told when `busy` falls, when `ending` rises and when the exit has been reported.
    changed: Notify,
}

/// What exists of a life.
#[derive(Clone)]
pub(super) struct State {
    /// Its group's number, once it has one.
    pub(super) group: Option<u64>,
    /// The first of its block of IDs, if it has one.
    pub(super) ids: Option<u32>,
    /// How far it has come.
    pub(super) stage: Stage,
}

/// How far a life has come.
#[derive(Clone)]
pub(super) enum Stage {
    /// Not even prepared, or only in part.
    New,
    /// It could be started.
    Prepared,
    /// It was started, and its end has not been seen yet.
    Running(Arc<Leader>),
    /// It has ended, and its end is being reported or has been. The leader is what may be left of it.
    Ended(Exit, Option<Arc<Leader>>),
}

/// The first process of a sandbox. Nothing is ever sent to its bare number.
pub(super) struct Leader {
    /// Its number on the host.
    pub(super) pid: u32,
    /// Who its parent is, which reaps it when told; nothing if that one is gone, and somebody else has inherited it.
    pub(super) zygote: Option<ZygoteId>,
    /// The process itself: the one descriptor of a sandbox.
    pub(super) pidfd: OwnedFd,
    /// Whether it had ended before this backend began to watch it, so that nobody knows when.
    pub(super) ended_unseen: bool,
}

impl Leader {
    /// Whether it has ended, reaped or not.
    pub(super) fn has_ended(&self) -> bool {
        super::sys::is_readable(&self.pidfd)
    }
}

impl Sandbox {
    fn new(instance: Arc<Instance>) -> Arc<Self> {
        Arc::new(Self {
            instance,
            state: Mutex::new(State { group: None, ids: None, stage: Stage::New }),
            busy: AtomicBool::new(false),
            told: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    /// What exists of it now.
    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Changes what exists of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }

    /// Its leader, if it was started and its end has not been seen.
    pub(super) fn running(&self) -> Option<Arc<Leader>> {
        match &self.state.lock().stage {
            Stage::Running(leader) => Some(Arc::clone(leader)),
            _ => None,
        }
    }

    /// Lets nothing begin any more.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Refuses where it is being ended.
    pub(super) fn check_not_ending(&self, tried: &'static str) -> Result<(), Error> {
        if self.ending.load(Ordering::Acquire) { Err(self.is_ending(tried)) } else { Ok(()) }
    }

    /// What is said where it is being ended.
    pub(super) fn is_ending(&self, tried: &'static str) -> Error {
        Error::new(ErrorKind::Aborted, tried, "it is being ended").on(&self.instance.key)
    }

    /// Waits until it is being ended.
    pub(super) async fn until_ending(&self) {
        self.until(|| self.ending.load(Ordering::Acquire).then_some(())).await;
    }

    /// Waits until `look` finds what it looks for, which is when something that is told of has changed.
    async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    /// Whether nothing is at work.
    fn try_acquire(self: &Arc<Self>) -> Option<Arc<Busy>> {
        let was_idle = self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        was_idle.then(|| Arc::new(Busy(Arc::clone(self))))
    }

    /// Waits until nothing is at work, and begins. What is returned goes along with every job of the operation, so that
    /// one whose caller has gone is over only when its last job is.
    pub(super) async fn acquire(self: &Arc<Self>) -> Arc<Busy> {
        self.until(|| self.try_acquire()).await
    }

    /// As [`acquire`](Self::acquire), for so long.
    pub(super) async fn acquire_within(self: &Arc<Self>, time: Duration) -> Option<Arc<Busy>> {
        tokio::time::timeout(time, self.acquire()).await.ok()
    }

    /// Notes its end, before it is reported, so that whoever hears of it finds it so.
    pub(super) fn ended(&self, exit: Exit) {
        let mut state = self.state.lock();
        if let Stage::Running(leader) = &state.stage {
            state.stage = Stage::Ended(exit, Some(Arc::clone(leader)));
        }
    }

    /// Notes that its end has been reported.
    pub(super) fn told(&self) {
        self.told.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether there is no end left to report.
    pub(super) fn is_told(&self) -> bool {
        match &self.state.lock().stage {
            Stage::New | Stage::Prepared => true,
            Stage::Running(_) => false,
            Stage::Ended(..) => self.told.load(Ordering::Acquire),
        }
    }

    /// Waits for so long until there is no end left to report.
    pub(super) async fn told_within(&self, time: Duration) {
        let told = self.until(|| self.is_told().then_some(()));
        // Too late is no error: the caller looks again.
        let _ = tokio::time::timeout(time, told).await;
    }
}

/// An operation at work. The sandbox is free again when the last holder is gone.
pub(super) struct Busy(Arc<Sandbox>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

/// All lives that the backend knows.
#[derive(Default)]
pub(super) struct Lives {
    map: Mutex<HashMap<Life, Arc<Sandbox>, RandomState>>,
}

impl Lives {
    /// The life, if it is known.
    pub(super) fn get(&self, life: Life) -> Option<Arc<Sandbox>> {
        self.map.lock().get(&life).cloned()
    }

    /// The life, which is known from now on.
    pub(super) fn enter(&self, instance: &Arc<Instance>) -> Arc<Sandbox> {
        let mut map = self.map.lock();
        Arc::clone(map.entry(instance.life).or_insert_with(|| Sandbox::new(Arc::clone(instance))))
    }

    /// Makes a life known that was found again, in this state; nothing if it is known already.
    pub(super) fn enter_found(&self, instance: &Arc<Instance>, state: State) -> Option<Arc<Sandbox>> {
        let mut map = self.map.lock();
        match map.entry(instance.life) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(place) => {
                let sandbox = Sandbox::new(Arc::clone(instance));
                sandbox.change(|now| *now = state);
                Some(Arc::clone(place.insert(sandbox)))
            }
        }
    }

    /// Forgets a life.
    pub(super) fn remove(&self, life: Life) {
        self.map.lock().remove(&life);
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.map.lock().len()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.map.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_takes_little_memory() {
        // With its slot in the table and the two counts of each Arc. The aim is 600 bytes.
        let size = size_of::<Sandbox>() + size_of::<Leader>() + 4 * size_of::<usize>() + 2 * 17;
        assert!(size < 300, "{size} bytes");
    }
}
