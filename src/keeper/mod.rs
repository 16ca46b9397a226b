//! The supervisor itself: what an embedder holds, and every front is written against.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::actor::{Call, Cell, Definition, Reply, Services, Settled, Upward, Wait};
use crate::controller::{Controller, StartedSandbox, default_deadline};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::Pong;
use crate::model::{Command, Exit};
use crate::registry::index::Index;
use crate::registry::{not_found, owner_lost};
use crate::runtime::{Instance, Platform, Report, Runtime};
use crate::spec::{SandboxSpec, bounds};
use crate::wire::SandboxStatus;

mod builder;
mod end;
mod handle;
mod list;
mod process;
mod recovery;
mod status;
mod watch;

pub use crate::actor::OperationDeadlines;
pub use builder::{KeeperBuilder, SpecSource};
pub use handle::SandboxHandle;
pub use list::{Filter, Sweep};
pub use watch::{Watch, WatchItem};

/// Supervises the sandboxes of one node. Cloning gives another handle to the same keeper.
///
/// It lives in a tokio runtime, and without a journal it works in memory: when the last clone is dropped, its backends
/// end what still runs. Shut down first ([`Keeper::shutdown_all`]) where sandboxes deserve their grace.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use sandkeeper::{Controller, Keeper, SandboxKey, SandboxSpec};
/// use sandkeeper::runtime::memory::MemoryRuntime;
///
/// let keeper = Keeper::builder().runtime("memory", MemoryRuntime::new()).build()?;
/// let key = SandboxKey::new("default", "web-7").unwrap();
/// let sandbox = keeper.run(&key, SandboxSpec::default()).await?;
/// assert!(keeper.ping(&key)?.is_alive());
/// assert_ne!(sandbox.started.pid, 0);
/// keeper.shutdown(&key, None).await?;
/// assert!(keeper.ping(&key).is_err());
/// # Ok::<(), sandkeeper::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
    within: Option<Duration>,
}

struct Inner {
    services: Arc<Services>,
    index: Arc<Index>,
    runtimes: BTreeMap<String, Arc<dyn Runtime>>,
    default_runtime: String,
    spec_source: Option<Box<SpecSource>>,
    unowned: Arc<recovery::Unowned>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.services.starts.close();
        self.unowned.look_no_further();
        if let Some(journal) = &self.services.journal {
            // From here on the index holds less and less of what is written.
            journal.set_source(Arc::new(Vec::new));
        }
        if let Some(registry) = self.services.registry.disconnect() {
            registry.stop(None);
        }
        for cell in self.index.cells().collect::<Vec<_>>() {
            cell.retire();
            cell.lease().leave();
        }
        self.services.events.close();
    }
}

/// No deadline is later than this: a year.
const LONGEST_LIMIT: Duration = Duration::from_secs(365 * 86_400);

impl Keeper {
    /// Begins to set up a keeper.
    pub fn builder() -> KeeperBuilder {
        KeeperBuilder::default()
    }

    /// The same keeper, whose calls end within this long, whatever their
    /// [default](crate::controller::default_deadline).
    pub fn within(&self, deadline: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), within: Some(deadline) }
    }

    fn limit(&self, default: Duration) -> Duration {
        // A clock cannot count to the end of time; a year is as good.
        self.within.unwrap_or(default).min(LONGEST_LIMIT)
    }

    /// Records what an ID is to be, and makes nothing. Returns when it is recorded.
    ///
    /// Defining the same again succeeds and changes nothing, even while the disk refuses: what is written is written.
    ///
    /// # Errors
    /// - `InvalidArgument`: the spec is over a bound, or names a runtime that this keeper does not have.
    /// - `AlreadyExists`: the ID has another spec.
    /// - `FailedPrecondition`: something of this name exists without a record, or its record cannot be served; see
    ///   [`orphans`](Self::orphans) and [`unread_records`](Self::unread_records).
    /// - `ResourceExhausted`: the keeper knows as many sandboxes as it may.
    /// - what its backend says of a spec that could never start here.
    pub async fn define(&self, key: &SandboxKey, spec: SandboxSpec) -> Result<(), Error> {
        let definition = self.definition(key, "define", spec, true)?;
        self.call(key, Command::Define, Some(definition), self.limit(default_deadline::CREATE)).await?;
        Ok(())
    }

    /// Defines a sandbox and starts it. Returns when its leader runs.
    ///
    /// With the spec it already has, a start under way is joined, and the running succeeds with the pid it has. A start
    /// that fails leaves nothing, not even the ID, unless it was defined before or has run.
    ///
    /// # Errors
    /// Those of [`define`](Self::define) and of [`start`](Controller::start).
    pub async fn run(&self, key: &SandboxKey, spec: SandboxSpec) -> Result<StartedSandbox, Error> {
        let definition = self.definition(key, "start", spec, false)?;
        let command = Command::Start { life: self.inner.services.fresh_life() };
        let settled = self.call(key, command, Some(definition), self.limit(default_deadline::START)).await?;
        Ok(started(settled))
    }

    /// Defines a sandbox and prepares it, so that Start only has to start.
    ///
    /// # Errors
    /// Those of [`define`](Self::define) and of [`create`](Controller::create).
    pub async fn prepare(&self, key: &SandboxKey, spec: SandboxSpec) -> Result<(), Error> {
        let definition = self.definition(key, "create", spec, true)?;
        let command = Command::Create { life: self.inner.services.fresh_life() };
        self.call(key, command, Some(definition), self.limit(default_deadline::CREATE)).await?;
        Ok(())
    }

    /// A handle on a sandbox: a ping through it takes no lock and no look-up. It does not keep the sandbox alive.
    ///
    /// # Errors
    /// `NotFound`: nobody has this name.
    pub fn handle(&self, key: &SandboxKey) -> Result<SandboxHandle, Error> {
        Ok(SandboxHandle::new(self.cell(key, "find")?))
    }

    /// Asks the sandbox itself how it is.
    ///
    /// # Errors
    /// - `NotFound`: nobody has this name.
    /// - `FailedPrecondition`: it does not run.
    /// - `DeadlineExceeded`, `Unavailable`: it did not answer.
    pub async fn probe(&self, key: &SandboxKey) -> Result<Report, Error> {
        let (cell, instance) = self.instance(key, "probe")?;
        self.in_time(key, "probe", cell.runtime.probe(&instance)).await
    }

    /// A sandbox and the life of it that runs.
    fn instance(&self, key: &SandboxKey, verb: &'static str) -> Result<(Arc<Cell>, Arc<Instance>), Error> {
        let cell = self.cell(key, verb)?;
        let pulse = cell.pulse();
        let instance = cell.instance_of(pulse.life()).filter(|_| pulse.phase().is_alive());
        let instance = instance.ok_or_else(|| {
            let found = pulse.phase().not_running();
            Error::new(ErrorKind::FailedPrecondition, verb, found).on(key).remedy("start it first")
        })?;
        Ok((cell, instance))
    }

    /// What a backend answers, in the time that Probe, Metrics and Update have.
    async fn in_time<T>(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.in_limit(key, verb, self.limit(default_deadline::PROBE), call).await
    }

    async fn in_limit<T>(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            let found = format!("it did not answer within {limit:?}");
            Err(Error::new(ErrorKind::DeadlineExceeded, verb, found))
        });
        answer.map_err(|error| error.on(key))
    }

    /// How many sandboxes it knows.
    pub fn len(&self) -> usize {
        self.inner.index.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn cell(&self, key: &SandboxKey, verb: &'static str) -> Result<Arc<Cell>, Error> {
        self.inner.index.cell(key).ok_or_else(|| not_found(key, verb))
    }

    /// The sandbox of this name, once it is known which there are.
    async fn known(&self, key: &SandboxKey, verb: &'static str, limit: Duration) -> Result<Arc<Cell>, Error> {
        let found = self.look_up(key, verb, false, Instant::now() + limit).await?;
        found.ok_or_else(|| not_found(key, verb))
    }

    /// The sandbox of this name, if there is one. Where something of it may exist that no record leads to, that is looked at
    /// first; so it is for whatever `begins` something under the name.
    async fn look_up(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        begins: bool,
        deadline: Instant,
    ) -> Result<Option<Arc<Cell>>, Error> {
        let found = self.inner.index.cell(key);
        if found.is_some() && !begins {
            return Ok(found);
        }
        self.inner.unowned.check(key, verb, found.is_some(), deadline).await?;
        Ok(self.inner.index.cell(key))
    }

    fn definition(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        mut spec: SandboxSpec,
        kept: bool,
    ) -> Result<Definition, Error> {
        spec.check(verb).map_err(|error| error.on(key))?;
        if spec.runtime.is_empty() {
            // Named from here on: a later keeper may have another default.
            spec.runtime.clone_from(&self.inner.default_runtime);
        }
        let Some(runtime) = self.inner.runtimes.get(&spec.runtime) else {
            let known: Vec<&str> = self.inner.runtimes.keys().map(String::as_str).collect();
            let found =
                format!("there is no runtime {:?}; this keeper has {}", spec.runtime, known.join(", "));
            return Err(Error::new(ErrorKind::InvalidArgument, verb, found).on(key));
        };
        runtime.check(&spec).map_err(|error| error.on(key))?;
        Ok(Definition { spec: Arc::new(spec), runtime: Arc::clone(runtime), kept })
    }

    /// What the embedder's source says an unknown ID is to be.
    fn sourced(&self, key: &SandboxKey, verb: &'static str) -> Result<Option<Definition>, Error> {
        match &self.inner.spec_source {
            Some(source) if self.inner.index.ping(key).is_none() => match source(key) {
                Some(spec) => self.definition(key, verb, spec, true).map(Some),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Sends a command by way of the registry, and waits for its answer.
    async fn call(
        &self,
        key: &SandboxKey,
        command: Command,
        definition: Option<Definition>,
        limit: Duration,
    ) -> Result<Settled, Error> {
        let verb = command.verb();
        self.inner.services.check_open(key, command)?;
        let deadline = Instant::now() + limit;
        let permit = match self.look_up(key, verb, command.begins(), deadline).await? {
            Some(cell) => Some(cell.mailbox_permit(verb)?),
            None if definition.is_none() => return Err(not_found(key, verb)),
            None => None,
        };
        let in_flight = Some(self.inner.services.in_flight(key, verb)?);
        let (reply, answer) = Reply::new();
        let call = Call { definition, permit, in_flight, ..Call::new(*key, command, deadline, reply) };
        self.inner.services.registry.send(Upward::Call(Box::new(call)));
        self.answer(key, verb, deadline, limit, answer).await
    }

    async fn answer(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        deadline: Instant,
        limit: Duration,
        answer: oneshot::Receiver<Result<Settled, Error>>,
    ) -> Result<Settled, Error> {
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            // Its owner, or the registry, was lost with the call in its hands.
            Ok(Err(_dropped)) => Err(owner_lost(key, verb)),
            Err(_elapsed) => {
                let phase = self.inner.index.ping(key).map(|pulse| format!("; it is {}", pulse.phase()));
                let found = format!("not done within {limit:?}{}", phase.unwrap_or_default());
                Err(Error::new(ErrorKind::DeadlineExceeded, verb, found)
                    .on(key)
                    .remedy("what was begun goes on; ask for its status"))
            }
        }
    }

    /// A deadline of the caller's own, or none.
    async fn bounded<T>(
        &self,
        key: &SandboxKey,
        verb: &'static str,
        call: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let Some(limit) = self.within.map(|within| within.min(LONGEST_LIMIT)) else { return Ok(call.await) };
        tokio::time::timeout(limit, call).await.map_err(|_| {
            Error::new(ErrorKind::DeadlineExceeded, verb, format!("not done within {limit:?}")).on(key)
        })
    }

    /// What is published of a sandbox, without asking it.
    ///
    /// # Errors
    /// `NotFound`: nobody has this name.
    pub fn inspect(&self, key: &SandboxKey) -> Result<SandboxStatus, Error> {
        Ok(status::published(&*self.cell(key, "inspect")?))
    }

    /// Makes a sandbox's actor fail, as a fault in it would.
    #[cfg(feature = "testing")]
    pub fn fail_owner(&self, key: &SandboxKey) {
        if let Some(cell) = self.inner.index.cell(key) {
            let _ = cell.tell(crate::actor::Message::Panic);
        }
    }

    /// How many sandboxes have an actor at the moment; those at rest for a while have none.
    #[cfg(feature = "testing")]
    pub fn awake_owners(&self) -> usize {
        self.inner.index.cells().filter(|cell| cell.has_actor()).count()
    }

    /// Makes the registry fail, as a fault in it would.
    #[cfg(feature = "testing")]
    pub fn fail_registry(&self) {
        self.inner.services.registry.send(Upward::Panic);
    }
}

fn started(settled: Settled) -> StartedSandbox {
    StartedSandbox { life: settled.life, started: settled.started.unwrap_or_default() }
}

/// A grace within the bound that a spec's has.
fn at_most_a_day(grace: Duration) -> Duration {
    grace.min(Duration::from_secs(bounds::STOP_GRACE_SECS))
}

fn millis(grace: Duration) -> u64 {
    u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Controller for Keeper {
    async fn create(&self, key: &SandboxKey) -> Result<(), Error> {
        let definition = self.sourced(key, "create")?;
        let command = Command::Create { life: self.inner.services.fresh_life() };
        self.call(key, command, definition, self.limit(default_deadline::CREATE)).await?;
        Ok(())
    }

    async fn start(&self, key: &SandboxKey) -> Result<StartedSandbox, Error> {
        let definition = self.sourced(key, "start")?;
        let command = Command::Start { life: self.inner.services.fresh_life() };
        self.call(key, command, definition, self.limit(default_deadline::START)).await.map(started)
    }

    async fn stop(&self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error> {
        let cell = self.known(key, "stop", self.limit(default_deadline::END_BEYOND_GRACE)).await?;
        let grace = at_most_a_day(grace.unwrap_or(cell.spec.stop.grace));
        let limit = self.limit(grace + default_deadline::END_BEYOND_GRACE);
        self.call(key, Command::Stop { grace_millis: millis(grace) }, None, limit).await?;
        Ok(())
    }

    async fn shutdown(&self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error> {
        let cell = match self.known(key, end::SHUT_DOWN, self.limit(default_deadline::END_BEYOND_GRACE)).await
        {
            Ok(cell) => cell,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let grace = at_most_a_day(grace.unwrap_or(cell.spec.stop.grace));
        let limit = self.limit(grace + default_deadline::END_BEYOND_GRACE);
        let deadline = Instant::now() + limit;
        self.shut_down(cell, grace, deadline, limit).await?;
        // It is gone. Of what runs without a record under its name nobody is to think so.
        self.inner.unowned.check(key, end::SHUT_DOWN, true, deadline).await
    }

    async fn pause(&self, key: &SandboxKey) -> Result<(), Error> {
        self.call(key, Command::Pause, None, self.limit(default_deadline::PAUSE)).await?;
        Ok(())
    }

    async fn resume(&self, key: &SandboxKey) -> Result<(), Error> {
        self.call(key, Command::Resume, None, self.limit(default_deadline::RESUME)).await?;
        Ok(())
    }

    #[inline]
    fn ping(&self, key: &SandboxKey) -> Result<Pong, Error> {
        match self.inner.index.ping(key) {
            Some(pong) if pong.is_alive() => Ok(pong),
            pong => Err(handle::not_alive(key, pong)),
        }
    }

    async fn status(&self, key: &SandboxKey) -> Result<prost_types::Any, Error> {
        let verb = "ask for the status of";
        let cell = self.known(key, verb, self.limit(default_deadline::STATUS)).await?;
        Ok(status::asked(&cell, self.limit(default_deadline::STATUS)).await)
    }

    async fn wait(&self, key: &SandboxKey) -> Result<Exit, Error> {
        match self.known(key, "wait for", self.within.unwrap_or(LONGEST_LIMIT)).await?.wait()? {
            Wait::Ended(exit) => Ok(exit),
            Wait::Pending(wait) => self.bounded(key, "wait for", wait.told()).await?,
        }
    }

    async fn platform(&self, key: &SandboxKey) -> Result<Platform, Error> {
        Ok(self.cell(key, "ask for the platform of")?.runtime.platform())
    }

    async fn metrics(&self, key: &SandboxKey) -> Result<prost_types::Any, Error> {
        let (cell, instance) = self.instance(key, "read metrics of")?;
        self.in_time(key, "read metrics of", cell.runtime.metrics(&instance)).await
    }

    async fn update(&self, key: &SandboxKey, resources: &prost_types::Any) -> Result<(), Error> {
        let (cell, instance) = self.instance(key, "update")?;
        self.in_time(key, "update", cell.runtime.update(&instance, resources)).await
    }
}
