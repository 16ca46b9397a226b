//! Sets up a keeper.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::actor::{Bounds, OperationDeadlines, Services};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::journal::{Journal, Recovered};
use crate::registry;
use crate::registry::index::Index;
use crate::runtime::Runtime;
use crate::spec::SandboxSpec;

use super::recovery::Recovery;
use super::{Inner, Keeper};

/// Says what an ID that was never defined is to be; nothing for IDs that are not to exist.
pub type SpecSource = dyn Fn(&SandboxKey) -> Option<SandboxSpec> + Send + Sync;

/// What a keeper is set up with. Only a runtime is needed.
pub struct KeeperBuilder {
    runtimes: BTreeMap<String, Arc<dyn Runtime>>,
    default_runtime: Option<String>,
    spec_source: Option<Box<SpecSource>>,
    expected_sandboxes: usize,
    bounds: Bounds,
    deadlines: OperationDeadlines,
    journal: Option<Journal>,
    #[cfg(feature = "testing")]
    failing_registry: bool,
}

impl Default for KeeperBuilder {
    fn default() -> Self {
        Self {
            runtimes: BTreeMap::new(),
            default_runtime: None,
            spec_source: None,
            expected_sandboxes: 16_384,
            bounds: Bounds {
                mailbox: 32,
                waiters: 16_384,
                sandboxes: 4_000_000,
                stopped: 4_096,
                in_flight: 65_536,
                starts: Self::default_starts(),
                recoveries: 64,
            },
            deadlines: OperationDeadlines::default(),
            journal: None,
            #[cfg(feature = "testing")]
            failing_registry: false,
        }
    }
}

impl KeeperBuilder {
    /// How many starts run at a time if nothing else is said: who makes room for what they need must know.
    pub(crate) fn default_starts() -> usize {
        4 * std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Adds a backend under the name that specs call it by. The first is the default.
    pub fn runtime(mut self, name: impl Into<String>, runtime: Arc<dyn Runtime>) -> Self {
        let name = name.into();
        self.default_runtime.get_or_insert_with(|| name.clone());
        self.runtimes.insert(name, runtime);
        self
    }

    /// Which backend runs specs that name none.
    pub fn default_runtime(mut self, name: impl Into<String>) -> Self {
        self.default_runtime = Some(name.into());
        self
    }

    /// Where Create and Start look for the spec of an ID that was never defined. It is asked in the caller's task, and
    /// must not block.
    pub fn spec_source(
        mut self,
        source: impl Fn(&SandboxKey) -> Option<SandboxSpec> + Send + Sync + 'static,
    ) -> Self {
        self.spec_source = Some(Box::new(source));
        self
    }

    /// How many sandboxes there is room for before the index has to grow; 16,384 by default. Growing is what makes a ping
    /// wait longest.
    pub fn expected_sandboxes(mut self, expected: usize) -> Self {
        self.expected_sandboxes = expected;
        self
    }

    /// How many sandboxes there may be; 4,000,000 by default and at most.
    pub fn max_sandboxes(mut self, bound: usize) -> Self {
        self.bounds.sandboxes = bound.min(4_000_000);
        self
    }

    /// How many starts run at a time; four a core by default. Others wait for their turn in the order of asking.
    pub fn concurrent_starts(mut self, bound: usize) -> Self {
        self.bounds.starts = bound;
        self
    }

    /// How many records of stopped sandboxes are kept; 4,096 by default. Past that the oldest is shut down.
    pub fn stopped_records(mut self, bound: usize) -> Self {
        self.bounds.stopped = bound;
        self
    }

    /// How many calls may wait in one sandbox's mailbox; 32 by default. Past that they are refused at once. Ping, Status,
    /// Wait and Shutdown need no room in it.
    pub fn mailbox_bound(mut self, bound: u32) -> Self {
        self.bounds.mailbox = bound;
        self
    }

    /// How many callers may wait for one sandbox; 16,384 by default.
    pub fn waiters_bound(mut self, bound: usize) -> Self {
        self.bounds.waiters = bound;
        self
    }

    /// How many calls may be on their way, over all sandboxes; 65,536 by default.
    pub fn calls_in_flight(mut self, bound: usize) -> Self {
        self.bounds.in_flight = bound;
        self
    }

    /// How long each operation of a backend may take.
    pub fn operation_deadlines(mut self, deadlines: OperationDeadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// How many sandboxes of an earlier keeper are found out about at a time; 64 by default.
    pub fn concurrent_recoveries(mut self, bound: usize) -> Self {
        self.bounds.recoveries = bound;
        self
    }

    /// Writes down what is going on, so that the next keeper on the same journal goes on with it, however this one ends.
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Makes its first registry fail before it has heard anything else, as a fault in it would.
    #[cfg(feature = "testing")]
    pub fn failing_registry(mut self) -> Self {
        self.failing_registry = true;
        self
    }

    /// Opens the keeper. Without a [journal](Self::journal) it works in memory: nothing of it outlives the process.
    ///
    /// With one, every sandbox that was written down is known when this returns; those of which something was under way are
    /// marked `recovering` until it is found out what exists of them, which goes on by itself.
    ///
    /// # Errors
    /// - `FailedPrecondition`: the journal has another keeper already.
    /// - `InvalidArgument`: it has no runtime, its default runtime is not among them, or a bound is 0; or it has no journal, and
    ///   sandboxes of a runtime outlive it.
    /// - `FailedPrecondition`: this is not called within a tokio runtime.
    pub fn build(self) -> Result<Keeper, Error> {
        let refuse = |found: String| Error::new(ErrorKind::InvalidArgument, "open a keeper", found);
        let default_runtime = self.default_runtime.ok_or_else(|| {
            refuse("it has no runtime".to_owned()).remedy("add one with KeeperBuilder::runtime")
        })?;
        if !self.runtimes.contains_key(&default_runtime) {
            return Err(refuse(format!("its default runtime {default_runtime:?} is not among its runtimes")));
        }
        let Bounds { starts, mailbox, waiters, recoveries, .. } = self.bounds;
        if starts == 0 || mailbox == 0 || waiters == 0 || recoveries == 0 {
            return Err(refuse("a bound of 0 would let nothing happen".to_owned()));
        }
        let outlives = |(_, runtime): &(&String, &Arc<dyn Runtime>)| runtime.capabilities().adopt;
        if let (None, Some((name, _))) = (&self.journal, self.runtimes.iter().find(outlives)) {
            let found =
                format!("sandboxes of its runtime {name:?} outlive it, and nothing is written down of them");
            return Err(refuse(found).remedy("give it a journal, or the runtime no state directory"));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            let found = "there is no tokio runtime here";
            return Err(Error::new(ErrorKind::FailedPrecondition, "open a keeper", found)
                .remedy("call build within one"));
        }
        let mut recovered = match &self.journal {
            None => Recovered { epoch: 1, next_life: 1, ..Recovered::default() },
            Some(journal) => journal.take_recovered().ok_or_else(|| {
                let found = "its journal has another keeper already";
                Error::new(ErrorKind::FailedPrecondition, "open a keeper", found)
                    .remedy("open the journal anew when that one has ended")
            })?,
        };
        if let Some(journal) = &self.journal
            && recovered.next_life == 1
            && self.runtimes.values().any(|runtime| runtime.has_survivors())
        {
            // Its records are elsewhere, or gone with all that would say that there were any.
            tracing::error!(
                "sandboxes are there, and the journal has never known of one: its records are lost"
            );
            recovered.incomplete = true;
            recovered.next_life = journal.note_losses();
        }
        let begin_at = (recovered.epoch, recovered.next_life);
        let services = Services::new(self.bounds, self.deadlines, self.journal, begin_at);
        let index = Arc::new(Index::new(self.expected_sandboxes.max(recovered.sandboxes.len())));
        registry::open(&services, &index)?;
        #[cfg(feature = "testing")]
        if self.failing_registry {
            services.registry.send(crate::actor::Upward::Panic);
        }
        let recovery = Recovery {
            services: Arc::clone(&services),
            index: Arc::clone(&index),
            runtimes: self.runtimes.clone(),
        };
        let unowned = if services.journal.is_some() { recovery.begin(recovered) } else { Arc::default() };
        // Only now: until here the index holds less than was written.
        if let Some(journal) = &services.journal {
            let (all, unserved) = (Arc::downgrade(&index), unowned.unserved());
            journal.set_source(Arc::new(move || {
                // A keeper that is gone knows of nothing.
                let Some(index) = all.upgrade() else { return Vec::new() };
                let served = index.cells().filter_map(|cell| cell.recorded());
                served.chain(unserved.iter().cloned()).collect()
            }));
        } else {
            tracing::info!("no journal: nothing of this keeper outlives its process");
        }
        let inner = Inner {
            services,
            index,
            runtimes: self.runtimes,
            default_runtime,
            spec_source: self.spec_source,
            unowned,
        };
        Ok(Keeper { inner: Arc::new(inner), within: None })
    }
}
