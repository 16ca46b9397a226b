//! Goes on with what an earlier keeper on the same journal has left.
//!
//! ```text
//! build      records become sandboxes, marked `recovering` where something was under way       at once; calls may come
//! in a task  their actors find out what exists of each, some at a time
//!            what exists without a record is ended; where records were lost, its record is made anew, or it is listed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::actor::{Cell, Definition, Keepsake, Restored, Services, Upward};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::journal::{Recorded, Recovered, SandboxRecord};
use crate::model::{Life, Marks, Phase, Pong, Record};
use crate::registry::index::Index;
use crate::registry::restore;
use crate::runtime::{Runtime, Survivor};
use crate::spec::SandboxSpec;

use super::Keeper;

/// What exists, or was written, and cannot be gone on with until an operator says what is to become of it.
#[derive(Default)]
pub(super) struct Unowned {
    /// What exists and has no record, and whose backend it is.
    orphans: Mutex<Vec<(Survivor, Arc<dyn Runtime>)>>,
    /// Records that this keeper cannot serve, for want of their runtime, in the order of the text of their keys. They stay
    /// written, also where the journal's file is made anew.
    unserved: Arc<[Recorded]>,
    /// Records that could not be read, and that nobody has accepted as lost.
    damaged: AtomicUsize,
    /// Whether records were lost: then a name that nobody has may be a survivor's.
    lost_some: bool,
    /// How far the look for what exists without a record has come.
    look: watch::Sender<Look>,
    /// A backend could not say what it has left.
    is_unlisted: AtomicBool,
    looker: OnceLock<AbortHandle>,
}

/// How far the look for what exists without a record has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    /// It is being listed.
    Listing,
    /// What is nobody's is being ended.
    Ending,
    #[default]
    Over,
}

impl Unowned {
    /// What is written of sandboxes that this keeper cannot serve.
    pub(super) fn unserved(&self) -> Arc<[Recorded]> {
        Arc::clone(&self.unserved)
    }

    fn is_unserved(&self, key: &SandboxKey) -> bool {
        self.unserved.binary_search_by(|recorded| recorded.key.as_str().cmp(key.as_str())).is_ok()
    }

    /// Refuses a name under which something exists that no record leads to: another of that name would be a second one, and
    /// it is not gone. Where records were lost, it waits until it is known what exists; `has_record` says that this one's was
    /// not.
    ///
    /// # Errors
    /// - `FailedPrecondition`: something has this name.
    /// - `DeadlineExceeded`: it is not known in time.
    pub(super) async fn check(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        has_record: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        if self.lost_some && timeout_at(deadline, self.listed()).await.is_err() {
            let found = "records were lost, and what exists without one is still being listed";
            return Err(Error::new(ErrorKind::DeadlineExceeded, verb, found)
                .on(key)
                .remedy("try again, with a later deadline"));
        }
        let refused = |found: String| Error::new(ErrorKind::FailedPrecondition, verb, found).on(key);
        if let Some((orphan, _)) = self.orphans.lock().iter().find(|(orphan, _)| orphan.key == *key) {
            let found = format!("life {} of it exists without a record: {}", orphan.life, orphan.description);
            return Err(refused(found)
                .remedy("end what has no record with `sandkeeper fsck --end-orphans`, or use another name"));
        }
        if self.lost_some && !has_record && self.is_unlisted.load(Ordering::Acquire) {
            let found = "records were lost, and it cannot be told whether one of this name runs";
            return Err(refused(found.to_owned())
                .remedy("see in the log why, cure that, and open the keeper again; or use another keeper"));
        }
        if self.is_unserved(key) {
            let found = "this keeper cannot serve its record, and it may run";
            return Err(refused(found.to_owned())
                .remedy("open the keeper with its runtime again, or use another name"));
        }
        Ok(())
    }

    /// Ends the look: its keeper is gone, and the next one looks for itself.
    pub(super) fn look_no_further(&self) {
        self.looker.get().into_iter().for_each(AbortHandle::abort);
    }

    async fn listed(&self) {
        // It cannot be closed: the sender is here.
        let _ = self.look.subscribe().wait_for(|look| *look > Look::Listing).await;
    }

    fn list(&self, survivor: Survivor, runtime: &Arc<dyn Runtime>) {
        self.orphans.lock().push((survivor, Arc::clone(runtime)));
    }

    /// Takes a survivor off the list; whether it was on it.
    fn unlist(&self, survivor: &Survivor) -> bool {
        let mut orphans = self.orphans.lock();
        let before = orphans.len();
        orphans.retain(|(listed, _)| listed != survivor);
        orphans.len() < before
    }
}

/// What was lost of the records.
struct Lost {
    /// It is not known whose.
    anybodys: bool,
    /// Whose, where that is known.
    of: BTreeSet<SandboxKey>,
}

impl Lost {
    fn some(&self) -> bool {
        self.anybodys || !self.of.is_empty()
    }
}

/// What exists and has no record.
#[derive(Default)]
struct Found {
    /// What gets its record back.
    rebuilt: Vec<(Survivor, Arc<dyn Runtime>)>,
    /// What is to be ended.
    nobodys: Vec<(Survivor, Arc<dyn Runtime>)>,
}

/// How many actors the registry activates before it looks at what else it is told.
const RESTORED_AT_A_TIME: usize = 128;

/// How often, after the first time, what failed is tried again, and after which pause.
const MOST_TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What a recovery works with.
pub(super) struct Recovery {
    pub(super) services: Arc<Services>,
    pub(super) index: Arc<Index>,
    pub(super) runtimes: BTreeMap<String, Arc<dyn Runtime>>,
}

impl Recovery {
    /// Makes the sandboxes known that were written down, and goes on with them in a task.
    pub(super) fn begin(self, recovered: Recovered) -> Arc<Unowned> {
        let Recovered { sandboxes, damaged, incomplete, same_boot, .. } = recovered;
        let (mut restless, mut unserved) = (Vec::new(), Vec::new());
        for recorded in &sandboxes {
            match self.restore(recorded) {
                Ok(cell) if cell.lifecycle().is_recovering() => restless.push(cell),
                Ok(cell) if cell.pulse().phase() == Phase::Stopped => {
                    let life = cell.pulse().life();
                    self.services.registry.send(Upward::Stopped(cell, life));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(sandbox = %recorded.key, %error, "a recorded sandbox cannot be gone on with");
                    unserved.push(recorded.clone());
                }
            }
        }
        for damaged in &damaged {
            let key = damaged.key.map(|key| key.to_string());
            tracing::error!(sandbox = key, why = damaged.why, "a record is damaged, and was put aside");
        }
        tracing::info!(sandboxes = sandboxes.len(), to_find = restless.len(), same_boot, "records read");
        // In parts, so that calls do not wait behind all of them.
        for some in restless.chunks(RESTORED_AT_A_TIME) {
            self.services.registry.send(Upward::Restore(some.to_vec()));
        }
        let lost = Lost {
            // Whose a damaged record was may not be known; then nothing can be said to be nobody's.
            anybodys: incomplete || damaged.iter().any(|damaged| damaged.key.is_none()),
            of: damaged.iter().filter_map(|damaged| damaged.key).collect(),
        };
        let unowned = Arc::new(Unowned {
            unserved: unserved.into(),
            damaged: AtomicUsize::new(damaged.len()),
            lost_some: lost.some(),
            look: watch::Sender::new(Look::Listing),
            ..Unowned::default()
        });
        let told = Arc::clone(&unowned);
        let look = tokio::spawn(async move {
            let Found { rebuilt, nobodys } = self.look_for_survivors(&told, &lost).await;
            self.make_known(rebuilt, &told).await;
            told.look.send_replace(Look::Ending);
            for (survivor, runtime) in nobodys {
                if let Err(error) = runtime.end_survivor(&survivor).await {
                    tracing::error!(sandbox = %survivor.key, %error, "it has no record, and does not end");
                    told.list(survivor, &runtime);
                }
            }
            if !lost.some() && !told.is_unlisted.load(Ordering::Acquire) {
                self.remove_remains(&told).await;
            }
            told.look.send_replace(Look::Over);
        });
        unowned.looker.get_or_init(|| look.abort_handle());
        unowned
    }

    fn restore(&self, recorded: &Recorded) -> Result<Arc<Cell>, Error> {
        let Recorded { key, spec, state } = recorded;
        let definition = self.definition(crate::wire::decode_spec(spec)?, state.record.kept)?;
        let restored = Restored { key: *key, state: *state, definition, written: true };
        restore(&self.services, &self.index, restored)
    }

    fn definition(&self, spec: SandboxSpec, kept: bool) -> Result<Definition, Error> {
        let Some(runtime) = self.runtimes.get(&spec.runtime).cloned() else {
            let found = format!("there is no runtime {:?} now", spec.runtime);
            return Err(Error::new(ErrorKind::FailedPrecondition, "recover", found)
                .remedy("open the keeper with that runtime again"));
        };
        Ok(Definition { spec: Arc::new(spec), runtime, kept })
    }

    /// Finds what exists and has no record. Usually that was begun under a record that is gone since, and is nobody's. Where
    /// records were lost, its record is made anew, or it is listed.
    async fn look_for_survivors(&self, unowned: &Unowned, lost: &Lost) -> Found {
        let Found { mut rebuilt, mut nobodys } = Found::default();
        for runtime in self.runtimes.values() {
            // An earlier life of a sandbox is known as well: its next one, or its end, removes it. A later one is not, nor one
            // of another backend: nothing would. But where no record was lost, none is of a later life.
            let is_of = |cell: &Cell| ptr::addr_eq(Arc::as_ptr(&cell.runtime), Arc::as_ptr(runtime));
            let is_known = |key: &SandboxKey, life: Life| {
                let cell = self.index.cell(key);
                cell.is_some_and(|cell| is_of(&cell) && (!lost.some() || cell.pulse().life() >= life))
                    || unowned.is_unserved(key)
            };
            let mut tries = 1..=MOST_TRIES;
            let survivors = loop {
                match runtime.survivors(&is_known).await {
                    Ok(survivors) => break survivors,
                    Err(error) => {
                        tracing::error!(%error, "what an earlier backend has left cannot be listed");
                    }
                }
                if tries.next().is_none() {
                    unowned.is_unlisted.store(true, Ordering::Release);
                    break Vec::new();
                }
                sleep(TRY_AGAIN).await;
            };
            for survivor in survivors {
                let has_namesake = self.index.cell(&survivor.key).is_some();
                let may_be_lost = lost.anybodys || lost.of.contains(&survivor.key);
                if may_be_lost && !has_namesake && self.restored(&survivor).is_some() {
                    tracing::warn!(sandbox = %survivor.key, life = %survivor.life, "its record was lost, and is made anew");
                    rebuilt.push((survivor, Arc::clone(runtime)));
                    continue;
                }
                let Survivor { key, life, description, .. } = &survivor;
                if may_be_lost {
                    tracing::warn!(sandbox = %key, %life, description, "it has no record, and records were lost: it is listed");
                    unowned.list(survivor, runtime);
                } else {
                    tracing::warn!(sandbox = %key, %life, description, "it has no record, and is ended");
                    nobodys.push((survivor, Arc::clone(runtime)));
                }
            }
        }
        Found { rebuilt, nobodys }
    }

    /// Returns when the registry knows them, and they count by themselves. One that fails takes along what it was told. What
    /// cannot be made known is listed.
    async fn make_known(&self, mut rebuilt: Vec<(Survivor, Arc<dyn Runtime>)>, unowned: &Unowned) {
        for _ in 0..=MOST_TRIES {
            let tell = |(survivor, runtime)| {
                let (known, answer) = oneshot::channel();
                if let Some(restored) = self.restored(&survivor) {
                    self.services.registry.send(Upward::Rebuild(Box::new(restored), known));
                }
                (survivor, runtime, answer)
            };
            let told: Vec<_> = rebuilt.drain(..).map(tell).collect();
            for (survivor, runtime, answer) in told {
                match answer.await {
                    Ok(true) => {}
                    Ok(false) => unowned.list(survivor, &runtime),
                    Err(_lost) => rebuilt.push((survivor, runtime)),
                }
            }
            if rebuilt.is_empty() {
                return;
            }
            sleep(TRY_AGAIN).await;
        }
        rebuilt.into_iter().for_each(|(survivor, runtime)| unowned.list(survivor, &runtime));
    }

    async fn remove_remains(&self, unowned: &Unowned) {
        let is_known = |key: &SandboxKey| self.index.cell(key).is_some() || unowned.is_unserved(key);
        for runtime in self.runtimes.values() {
            match runtime.remove_remains(&is_known).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "what sandboxes without a record had left is removed"),
                Err(error) => tracing::error!(%error, "what sandboxes have left cannot be removed"),
            }
        }
    }

    /// A survivor with a record made anew from what its owner gave along, if that can be read.
    fn restored(&self, survivor: &Survivor) -> Option<Restored> {
        let Survivor { key, life, keepsake, .. } = survivor;
        let Keepsake { created_at_unix_nanos, kept, spec } = Keepsake::of_bytes(keepsake)?;
        let spec = crate::wire::decode_spec(&spec).ok()?;
        let definition = self.definition(spec, kept).ok()?;
        let (phase, life) = (Phase::Running, *life);
        let record = Record { phase, life, ran: true, kept, shutdown: false, exit: None, until: None };
        let state = SandboxRecord { record, created_at_unix_nanos, started_at_unix_nanos: 0 };
        Some(Restored { key: *key, state, definition, written: false })
    }
}

impl Keeper {
    /// Counts up with every keeper on the same journal, from 1; without a journal it is 1 always. An event's number means
    /// something only within one.
    pub fn epoch(&self) -> u64 {
        self.inner.services.events.epoch()
    }

    /// How many sandboxes of an earlier keeper are still being found out about. While it is not known which there are, that
    /// counts as one.
    pub fn recovering(&self) -> usize {
        let (_, marked) = self.inner.index.sweep();
        let recovering = |(_, pong): &&(SandboxKey, Pong)| pong.marks().contains(Marks::RECOVERING);
        marked.iter().filter(recovering).count()
            + usize::from(*self.inner.unowned.look.borrow() != Look::Over)
    }

    /// What exists and has no record, after records were damaged: nobody has ended it, since it may be somebody's. Its name
    /// can be neither defined nor shut down.
    pub fn orphans(&self) -> Vec<Survivor> {
        let orphans = self.inner.unowned.orphans.lock();
        orphans.iter().map(|(survivor, _)| survivor.clone()).collect()
    }

    /// Ends and removes all [`orphans`](Self::orphans), once it is known which there are: how many, and what would not go, and
    /// why. If none is left, it is accepted that what is missing of the records is lost.
    ///
    /// Dropped on the way, it leaves on the list what it has not ended.
    pub async fn end_orphans(&self) -> (usize, Vec<(Survivor, Error)>) {
        let unowned = &self.inner.unowned;
        unowned.listed().await;
        let orphans = unowned.orphans.lock().clone();
        let (mut ended, mut left) = (0, Vec::new());
        for (survivor, runtime) in orphans {
            match runtime.end_survivor(&survivor).await {
                Ok(()) => ended += usize::from(unowned.unlist(&survivor)),
                Err(error) => left.push((survivor, error)),
            }
        }
        let all_ended = left.is_empty() && !unowned.is_unlisted.load(Ordering::Acquire);
        if let (true, Some(journal)) = (all_ended, self.inner.services.journal.clone()) {
            // The next keeper need not be careful any more.
            match tokio::task::spawn_blocking(move || journal.accept_losses()).await {
                Ok(Ok(())) => unowned.damaged.store(0, Ordering::Relaxed),
                Ok(Err(error)) => tracing::error!(%error, "that losses were accepted is not written"),
                Err(_ending) => {}
            }
        }
        (ended, left)
    }

    /// How many records of the journal could not be read and were put aside, until that is accepted, and whose records wait
    /// for a runtime that this keeper does not have.
    pub fn unread_records(&self) -> (usize, Vec<SandboxKey>) {
        let Unowned { damaged, unserved, .. } = &*self.inner.unowned;
        (damaged.load(Ordering::Relaxed), unserved.iter().map(|recorded| recorded.key).collect())
    }

    /// Why nothing can be written down at the moment, if that is so: nothing new is started then.
    pub fn journal_trouble(&self) -> Option<String> {
        self.inner.services.journal.as_ref().and_then(|journal| journal.trouble())
    }

    /// Lets go of everything and leaves it as it is: nothing is begun any more, and what is under way is left to the next
    /// keeper on the same journal. Returns when all is written.
    ///
    /// Sandboxes of a runtime that [adopts](crate::runtime::Capabilities::adopt) go on; others end with their runtime.
    pub async fn leave(&self) {
        self.inner.services.close();
        if let Some(journal) = self.inner.services.journal.clone() {
            // It may take as long as the disk does.
            let _ = tokio::task::spawn_blocking(move || journal.flush()).await;
        }
    }
}
