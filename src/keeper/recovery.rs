//! Goes on with what an earlier keeper on the same journal has left.
//!
//! ```text
//! build      records become sandboxes, marked `recovering` where something was under way       at once; calls may come
//! in a task  their actors find out what exists of each, some at a time
//!            what exists without a record is ended; where records were lost, its record is made anew, or it is listed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::actor::{Cell, Definition, Keepsake, Restored, Services, Upward};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::journal::{Recorded, Recovered, SandboxRecord};
use crate::model::{Phase, Record};
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
    /// Records that this keeper cannot serve, for want of their runtime. They stay written.
    unserved: Vec<SandboxKey>,
    /// Records that could not be read, and that nobody has accepted as lost.
    damaged: AtomicUsize,
}

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
        let mut unowned = Unowned { damaged: AtomicUsize::new(damaged.len()), ..Unowned::default() };
        let mut restless = Vec::new();
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
                    unowned.unserved.push(recorded.key);
                }
            }
        }
        for damaged in &damaged {
            let key = damaged.key.map(|key| key.to_string());
            tracing::error!(sandbox = key, why = damaged.why, "a record is damaged, and was put aside");
        }
        tracing::info!(sandboxes = sandboxes.len(), to_find = restless.len(), same_boot, "records read");
        self.services.registry.send(Upward::Restore(restless));
        let unowned = Arc::new(unowned);
        let told = Arc::clone(&unowned);
        // Whose a damaged record was may not be known; then nothing can be said to be nobody's.
        let incomplete = incomplete || damaged.iter().any(|damaged| damaged.key.is_none());
        let lost_some = incomplete || !damaged.is_empty();
        tokio::spawn(async move { self.look_for_survivors(&told, incomplete, lost_some).await });
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

    /// Deals with what exists and has no record. Usually that is what was begun under a record that is gone since, and is
    /// ended. Where records were lost it may be anybody's.
    async fn look_for_survivors(&self, unowned: &Unowned, incomplete: bool, lost_some: bool) {
        let known = |key: &SandboxKey| self.index.cell(key).is_some() || unowned.unserved.contains(key);
        for runtime in self.runtimes.values() {
            let survivors = runtime.survivors(&known).await.unwrap_or_else(|error| {
                tracing::error!(%error, "what an earlier backend has left cannot be listed");
                Vec::new()
            });
            for survivor in survivors {
                if lost_some && self.rebuild(&survivor) {
                    continue;
                }
                let Survivor { key, life, description, .. } = &survivor;
                if incomplete {
                    tracing::warn!(sandbox = %key, %life, description, "it has no record, and records were lost: it is listed");
                    unowned.orphans.lock().push((survivor, Arc::clone(runtime)));
                    continue;
                }
                tracing::warn!(sandbox = %key, %life, description, "it has no record, and is ended");
                if let Err(error) = runtime.end_survivor(&survivor).await {
                    tracing::error!(sandbox = %survivor.key, %error, "it has no record, and does not end");
                    unowned.orphans.lock().push((survivor, Arc::clone(runtime)));
                }
            }
        }
    }

    /// Makes the record of a survivor anew from what its owner gave along, if it can be read.
    fn rebuild(&self, survivor: &Survivor) -> bool {
        let Survivor { key, life, keepsake, .. } = survivor;
        let Some(Keepsake { created_at_unix_nanos, kept, spec }) = Keepsake::of_bytes(keepsake) else {
            return false;
        };
        let spec = crate::wire::decode_spec(&spec);
        let Ok(definition) = spec.and_then(|spec| self.definition(spec, kept)) else { return false };
        let (phase, life) = (Phase::Running, *life);
        let record = Record { phase, life, ran: true, kept, shutdown: false, exit: None, until: None };
        let state = SandboxRecord { record, created_at_unix_nanos, started_at_unix_nanos: 0 };
        tracing::warn!(sandbox = %key, %life, "its record was lost, and is made anew");
        let restored = Restored { key: *key, state, definition, written: false };
        self.services.registry.send(Upward::Rebuild(Box::new(restored)));
        true
    }
}

impl Keeper {
    /// Counts up with every keeper on the same journal, from 1; without a journal it is 1 always. An event's number means
    /// something only within one.
    pub fn epoch(&self) -> u64 {
        self.inner.services.events.epoch()
    }

    /// How many sandboxes of an earlier keeper are still being found out about.
    pub fn recovering(&self) -> usize {
        let (_, marked) = self.inner.index.sweep();
        marked.iter().filter(|(_, pong)| pong.marks().contains(crate::model::Marks::RECOVERING)).count()
    }

    /// What exists and has no record, after records were damaged: nobody has ended it, since it may be somebody's.
    pub fn orphans(&self) -> Vec<Survivor> {
        let orphans = self.inner.unowned.orphans.lock();
        orphans.iter().map(|(survivor, _)| survivor.clone()).collect()
    }

    /// Ends and removes all [`orphans`](Self::orphans): how many, and what would not go, and why.
    pub async fn end_orphans(&self) -> (usize, Vec<(Survivor, Error)>) {
        let orphans = std::mem::take(&mut *self.inner.unowned.orphans.lock());
        let (mut ended, mut left) = (0, Vec::new());
        for (survivor, runtime) in orphans {
            match runtime.end_survivor(&survivor).await {
                Ok(()) => ended += 1,
                Err(error) => {
                    self.inner.unowned.orphans.lock().push((survivor.clone(), runtime));
                    left.push((survivor, error));
                }
            }
        }
        if let (true, Some(journal)) = (left.is_empty(), self.inner.services.journal.clone()) {
            // What is missing is accepted as lost: the next keeper need not be careful any more.
            match tokio::task::spawn_blocking(move || journal.accept_losses()).await {
                Ok(Ok(())) => self.inner.unowned.damaged.store(0, Ordering::Relaxed),
                Ok(Err(error)) => tracing::error!(%error, "that losses were accepted is not written"),
                Err(_ending) => {}
            }
        }
        (ended, left)
    }

    /// How many records of the journal could not be read and were put aside, until that is accepted, and whose records wait for a runtime that this
    /// keeper does not have.
    pub fn unread_records(&self) -> (usize, Vec<SandboxKey>) {
        (self.inner.unowned.damaged.load(Ordering::Relaxed), self.inner.unowned.unserved.clone())
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
