//! A backend that makes nothing: its sandboxes live in memory and do what a script says.
//!
//! Without the `testing` feature every operation succeeds at once. With it, a [`Script`] per sandbox delays, fails, hangs,
//! panics or lies, and `MemoryRuntime::exit` ends instances from outside, so that supervision can be tested without a
//! kernel.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason, Life};
use crate::spec::SandboxSpec;

use super::{Capabilities, Instance, Reality, Report, Runtime, Started, Survivor, Urgency};

/// What one operation does, besides its work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Waits this long first.
    pub delay: Duration,
    /// Then does this instead of succeeding.
    pub instead: Option<Instead>,
}

/// What an operation does instead of succeeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// Fails with this kind.
    Fail(ErrorKind),
    /// Does its work and then fails all the same.
    WorkAndFail(ErrorKind),
    /// Never returns.
    Hang,
    /// Panics.
    Panic,
    /// Says it has done its work, and has not.
    Lie,
}

/// What a sandbox does. The default does everything at once and well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// On create.
    pub create: Step,
    /// On start.
    pub start: Step,
    /// On pause.
    pub pause: Step,
    /// On resume.
    pub resume: Step,
    /// On being asked to end.
    pub ask: Step,
    /// On being ended.
    pub kill: Step,
    /// On delete.
    pub delete: Step,
    /// On probe.
    pub probe: Step,
    /// On reattach.
    pub reattach: Step,
    /// Ends by itself with this status, this long after it started.
    pub exits: Option<(Duration, u8)>,
    /// Goes on running when asked to end.
    pub ignores_ask: bool,
    /// What it adds to its status.
    pub extra: Option<prost_types::Any>,
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Running { pid: u32, frozen: bool },
    Ended(Exit),
}

#[derive(Default)]
struct World {
    scripts: HashMap<SandboxKey, Script>,
    instances: HashMap<SandboxKey, (Arc<Instance>, Stage)>,
    /// What the owner of each gave along.
    keepsakes: HashMap<SandboxKey, Vec<u8>>,
    /// Starts of the backend that run now, and the most that ever did.
    starting: usize,
    most_starting: usize,
    /// What is done before it is said what an earlier owner has left.
    listing: Step,
    /// Every operation that was begun, if anybody wants to know.
    calls: Option<Vec<(SandboxKey, &'static str)>>,
}

/// The backend.
pub struct MemoryRuntime {
    world: Arc<Mutex<World>>,
    next_pid: AtomicU32,
    pauses: bool,
}

/// Counts a start for as long as it runs, or until it is dropped.
struct Starting<'a>(&'a Mutex<World>);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.lock().starting -= 1;
    }
}

impl MemoryRuntime {
    /// A backend whose sandboxes do everything at once and well.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { world: Arc::default(), next_pid: AtomicU32::new(2), pauses: true })
    }

    /// Takes a step; says whether the work is to be done.
    async fn step(
        &self,
        instance: &Instance,
        name: &'static str,
        pick: impl Fn(&Script) -> &Step,
    ) -> Result<(bool, Result<(), Error>), Error> {
        let step = {
            let mut world = self.world.lock();
            if let Some(calls) = &mut world.calls {
                calls.push((instance.key, name));
            }
            world.scripts.get(&instance.key).map(|script| pick(script).clone()).unwrap_or_default()
        };
        take(name, step).await
    }

    fn stage(&self, instance: &Instance) -> Option<Stage> {
        let world = self.world.lock();
        world.instances.get(&instance.key).filter(|(of, _)| of.life == instance.life).map(|(_, stage)| *stage)
    }

    fn set_stage(&self, instance: &Arc<Instance>, stage: Stage) {
        self.world.lock().instances.insert(instance.key, (Arc::clone(instance), stage));
    }

    fn end(&self, key: &SandboxKey, life: Option<Life>, reason: ExitReason) -> bool {
        end(&self.world, key, life, reason)
    }

    fn freeze(&self, instance: &Arc<Instance>, frozen: bool) -> Result<(), Error> {
        match self.stage(instance) {
            Some(Stage::Running { pid, .. }) => {
                self.set_stage(instance, Stage::Running { pid, frozen });
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::FailedPrecondition, "freeze", "it does not run")),
        }
    }
}

/// Takes a step; says whether the work is to be done.
async fn take(name: &'static str, step: Step) -> Result<(bool, Result<(), Error>), Error> {
    if !step.delay.is_zero() {
        tokio::time::sleep(step.delay).await;
    }
    let failure = |kind| Error::new(kind, name, "its script says so");
    match step.instead {
        None => Ok((true, Ok(()))),
        Some(Instead::Fail(kind)) => Err(failure(kind)),
        Some(Instead::WorkAndFail(kind)) => Ok((true, Err(failure(kind)))),
        Some(Instead::Hang) => std::future::pending().await,
        Some(Instead::Panic) => panic!("its script says so"),
        Some(Instead::Lie) => Ok((false, Ok(()))),
    }
}

/// Ends a running instance, and reports it; says whether there was one.
fn end(world: &Mutex<World>, key: &SandboxKey, life: Option<Life>, reason: ExitReason) -> bool {
    let exit = Exit { reason, at_unix_nanos: super::unix_nanos() };
    let ended = match world.lock().instances.get_mut(key) {
        Some((instance, stage @ Stage::Running { .. })) if life.is_none_or(|life| life == instance.life) => {
            *stage = Stage::Ended(exit);
            Some(Arc::clone(instance))
        }
        _ => None,
    };
    // Reported without the lock: whoever hears it may ask at once.
    ended.inspect(|instance| instance.exited(exit, true)).is_some()
}

/// What tests say to it.
#[cfg(feature = "testing")]
impl MemoryRuntime {
    /// A backend that cannot freeze, and says so.
    pub fn without_pause() -> Arc<Self> {
        Arc::new(Self { world: Arc::default(), next_pid: AtomicU32::new(2), pauses: false })
    }

    /// Says what a sandbox does from now on.
    pub fn script(&self, key: &SandboxKey, script: Script) {
        self.world.lock().scripts.insert(*key, script);
    }

    /// Ends a running instance from outside, as a kill would; says whether there was one.
    pub fn exit(&self, key: &SandboxKey, reason: ExitReason) -> bool {
        self.end(key, None, reason)
    }

    /// Loses an instance without a word, as a machine that goes down would.
    pub fn forget(&self, key: &SandboxKey) {
        self.world.lock().instances.remove(key);
    }

    /// Says what happens from now on before survivors are listed.
    pub fn script_listing(&self, step: Step) {
        self.world.lock().listing = step;
    }

    /// Loses what an instance's owner gave along.
    pub fn lose_keepsake(&self, key: &SandboxKey) {
        self.world.lock().keepsakes.remove(key);
    }

    /// The keys of everything that exists here.
    pub fn existing(&self) -> Vec<SandboxKey> {
        self.world.lock().instances.keys().copied().collect()
    }

    /// The keys and pids of everything that runs here.
    pub fn running(&self) -> Vec<(SandboxKey, u32)> {
        let world = self.world.lock();
        let pid = |(key, (_, stage)): (&SandboxKey, &(Arc<Instance>, Stage))| match stage {
            Stage::Running { pid, .. } => Some((*key, *pid)),
            _ => None,
        };
        world.instances.iter().filter_map(pid).collect()
    }

    /// Whether an instance runs frozen, as the backend knows it.
    pub fn is_frozen(&self, key: &SandboxKey) -> bool {
        matches!(self.world.lock().instances.get(key), Some((_, Stage::Running { frozen: true, .. })))
    }

    /// The options that reached an instance.
    pub fn options(&self, key: &SandboxKey) -> Option<prost_types::Any> {
        self.world.lock().instances.get(key).map(|(instance, _)| instance.spec.options.clone())
    }

    /// The most starts that ever ran at once.
    pub fn most_starting(&self) -> usize {
        self.world.lock().most_starting
    }

    /// Writes every operation down from now on.
    pub fn record_calls(&self) {
        self.world.lock().calls = Some(Vec::new());
    }

    /// The operations written down, in the order in which they were begun.
    pub fn calls(&self) -> Vec<(SandboxKey, &'static str)> {
        self.world.lock().calls.clone().unwrap_or_default()
    }
}

#[async_trait]
impl Runtime for MemoryRuntime {
    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: self.pauses, ..Capabilities::default() }
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        if spec.limits.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::FailedPrecondition, "define", "the memory backend enforces no limits"))
    }

    async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let (work, result) = self.step(instance, "create", |script| &script.create).await?;
        if work && self.stage(instance).is_none() {
            self.set_stage(instance, Stage::Created);
            let keepsake = instance.keepsake();
            self.world.lock().keepsakes.insert(instance.key, keepsake);
        }
        result
    }

    async fn start(&self, instance: &Arc<Instance>) -> Result<Started, Error> {
        {
            let mut world = self.world.lock();
            world.starting += 1;
            world.most_starting = world.most_starting.max(world.starting);
        }
        let _starting = Starting(&self.world);
        let (work, result) = self.step(instance, "start", |script| &script.start).await?;
        let pid = match self.stage(instance) {
            Some(Stage::Running { pid, .. }) => pid,
            Some(Stage::Created) if work => {
                let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
                self.set_stage(instance, Stage::Running { pid, frozen: false });
                let exits = self.world.lock().scripts.get(&instance.key).and_then(|script| script.exits);
                match exits {
                    Some((after, status)) if after.is_zero() => {
                        self.end(&instance.key, Some(instance.life), ExitReason::Exited(status));
                    }
                    Some((after, status)) => {
                        let (world, key, life) = (Arc::clone(&self.world), instance.key, instance.life);
                        tokio::spawn(async move {
                            tokio::time::sleep(after).await;
                            end(&world, &key, Some(life), ExitReason::Exited(status));
                        });
                    }
                    None => {}
                }
                pid
            }
            _ if !work => self.next_pid.fetch_add(1, Ordering::Relaxed),
            _ => return Err(Error::new(ErrorKind::FailedPrecondition, "start", "it was not created")),
        };
        result?;
        Ok(Started { pid, endpoint: None, isolation: Arc::default() })
    }

    async fn pause(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let (work, result) = self.step(instance, "pause", |script| &script.pause).await?;
        if work {
            self.freeze(instance, true)?;
        }
        result
    }

    async fn resume(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let (work, result) = self.step(instance, "resume", |script| &script.resume).await?;
        if work {
            self.freeze(instance, false)?;
        }
        result
    }

    async fn stop(&self, instance: &Arc<Instance>, urgency: Urgency) -> Result<(), Error> {
        let (work, result, reason) = match urgency {
            Urgency::Ask => {
                let (work, result) = self.step(instance, "ask", |script| &script.ask).await?;
                let ignores =
                    self.world.lock().scripts.get(&instance.key).is_some_and(|script| script.ignores_ask);
                (work && !ignores, result, ExitReason::Signalled(15))
            }
            Urgency::Now => {
                let (work, result) = self.step(instance, "kill", |script| &script.kill).await?;
                (work, result, ExitReason::Signalled(9))
            }
        };
        if work {
            self.end(&instance.key, Some(instance.life), reason);
        }
        result
    }

    async fn delete(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let (work, result) = self.step(instance, "delete", |script| &script.delete).await?;
        if work {
            self.end(&instance.key, Some(instance.life), ExitReason::Signalled(9));
            let mut world = self.world.lock();
            if world.instances.get(&instance.key).is_some_and(|(of, _)| of.life == instance.life) {
                world.instances.remove(&instance.key);
                world.keepsakes.remove(&instance.key);
            }
        }
        result
    }

    fn has_survivors(&self) -> bool {
        !self.world.lock().instances.is_empty()
    }

    async fn survivors(
        &self,
        known: &(dyn for<'a> Fn(&'a SandboxKey, Life) -> bool + Send + Sync),
    ) -> Result<Vec<Survivor>, Error> {
        let step = self.world.lock().listing.clone();
        take("list", step).await?.1?;
        let world = self.world.lock();
        let unknown = world.instances.values().filter(|(instance, _)| !known(&instance.key, instance.life));
        let survivor = |(instance, stage): &(Arc<Instance>, Stage)| Survivor {
            key: instance.key,
            life: instance.life,
            keepsake: world.keepsakes.get(&instance.key).cloned().unwrap_or_default(),
            description: format!("in memory: {stage:?}"),
        };
        Ok(unknown.map(survivor).collect())
    }

    async fn end_survivor(&self, survivor: &Survivor) -> Result<(), Error> {
        let found = self.world.lock().instances.get(&survivor.key).map(|(instance, _)| Arc::clone(instance));
        match found.filter(|instance| instance.life == survivor.life) {
            Some(instance) => self.delete(&instance).await,
            None => Ok(()),
        }
    }

    async fn probe(&self, instance: &Arc<Instance>) -> Result<Report, Error> {
        let (_, result) = self.step(instance, "probe", |script| &script.probe).await?;
        result?;
        let extra = self.world.lock().scripts.get(&instance.key).and_then(|script| script.extra.clone());
        let (alive, frozen) = match self.stage(instance) {
            Some(Stage::Running { frozen, .. }) => (true, frozen),
            _ => (false, false),
        };
        Ok(Report { alive, frozen, extra })
    }

    async fn reattach(&self, instance: &Arc<Instance>) -> Result<Reality, Error> {
        let (_, result) = self.step(instance, "reattach", |script| &script.reattach).await?;
        result?;
        let stage = self.stage(instance);
        if let Some(stage) = stage {
            // Whoever asks hears of its end from now on: the owner before may be another keeper's.
            self.set_stage(instance, stage);
        }
        Ok(match stage {
            None => Reality::Absent,
            Some(Stage::Created) => Reality::Created,
            Some(Stage::Running { pid, frozen }) => {
                Reality::Running { started: Started { pid, ..Started::default() }, frozen }
            }
            Some(Stage::Ended(exit)) => Reality::Ended(exit),
        })
    }
}
