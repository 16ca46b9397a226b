//! The registry actor: the one writer of the index. It routes every call, and never waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::actor::{
    Call, Cell, Definition, Lost, Message, OnlyIf, Reply, Restored, Services, Settled, Upward, shell,
};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Command, Life, Phase};
use crate::telemetry;

pub(crate) mod index;
mod lane;

use index::Index;

/// How long an actor has nothing to do before it is dismissed. A sandbox at rest then costs no task and no mailbox.
const REST: Duration = Duration::from_millis(100);

/// Routes calls to sandboxes.
struct Registry;

/// A registry's state. Everything that must survive it is elsewhere.
struct Routing {
    services: Arc<Services>,
    index: Arc<Index>,
    /// Sandboxes that stopped, by when; each at most once, in whatever order and however often they are told of.
    stopped: BTreeMap<(i64, Life), Weak<Cell>>,
    /// Sandboxes whose actors rest, and since when they are known to; each at most once.
    resting: VecDeque<(Instant, Weak<Cell>)>,
    _successor: Succession,
}

/// Starts another registry when this one is lost.
struct Succession {
    services: Arc<Services>,
    index: Arc<Index>,
}

impl Drop for Succession {
    fn drop(&mut self) {
        let (services, index) = (Arc::clone(&self.services), Arc::clone(&self.index));
        // In a task of its own: where the tokio runtime ends, and this registry with it, the task never runs.
        let succeed = async move {
            // A keeper that closes disconnects first.
            if !services.registry.is_connected() {
                return;
            }
            metrics::counter!(telemetry::REGISTRY_REPLACED).increment(1);
            tracing::error!("the registry failed and is replaced");
            match spawn(Arc::clone(&services), index) {
                Ok(registry) => services.registry.reconnect(registry),
                Err(error) => tracing::error!(%error, "no registry"),
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(succeed);
        }
    }
}

/// Starts the registry and connects everybody to it.
pub(crate) fn open(services: &Arc<Services>, index: &Arc<Index>) -> Result<(), Error> {
    let registry = spawn(Arc::clone(services), Arc::clone(index))?;
    services.registry.reconnect(registry);
    Ok(())
}

fn spawn(services: Arc<Services>, index: Arc<Index>) -> Result<ActorRef<Upward>, Error> {
    let successor = Succession { services: Arc::clone(&services), index: Arc::clone(&index) };
    let routing = Routing {
        services,
        index,
        stopped: BTreeMap::new(),
        resting: VecDeque::new(),
        _successor: successor,
    };
    let spawned = ractor::ActorRuntime::<Registry>::spawn_instant(None, Registry, routing);
    let (registry, _started) = spawned.map_err(|error| {
        Error::new(ErrorKind::Internal, "start the registry", "its actor could not be spawned")
            .caused_by(error)
    })?;
    Ok(registry)
}

impl Actor for Registry {
    type Msg = Upward;
    type State = Routing;
    type Arguments = Routing;

    async fn pre_start(
        &self,
        _myself: ActorRef<Upward>,
        routing: Routing,
    ) -> Result<Routing, ActorProcessingErr> {
        Ok(routing)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Upward>,
        message: Upward,
        routing: &mut Routing,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Upward::Call(call) => routing.route(call),
            Upward::Gone(cell, farewell) => routing.forget(&cell, farewell),
            Upward::Stopped(cell, life) => routing.keep_stopped(&cell, life),
            Upward::Exited(cell) => routing.deliver(&cell, Message::Exited),
            Upward::Resting(cell) => routing.note_resting(cell),
            Upward::Dismiss => routing.dismiss(),
            Upward::Lost(cell, incarnation) if incarnation == cell.incarnation() => {
                routing.replace_owner(&cell)
            }
            // Replaced already, by a registry that looked after everything.
            Upward::Lost(..) => {}
            Upward::Restore(cells) => {
                cells.iter().for_each(|cell| routing.go_on_with(cell));
            }
            Upward::Rebuild(restored, known) => {
                let is_known = routing.rebuild(*restored);
                // Whoever wanted to know may have gone.
                let _ = known.send(is_known);
            }
            Upward::Heal => routing.heal(),
            #[cfg(feature = "testing")]
            Upward::Panic => panic!("asked to fail, for a test"),
        }
        Ok(())
    }
}

impl Routing {
    fn route(&mut self, mut call: Box<Call>) {
        if let Err(error) = self.services.check_open(&call.key, call.command) {
            return call.reply.fail(error);
        }
        let cell = match self.index.cell(&call.key) {
            Some(cell) if cell.pulse().phase() == Phase::Gone => {
                // Its actor's farewell is on the way here; this call comes behind it.
                self.services.registry.send(Upward::Call(call));
                return;
            }
            Some(cell) => {
                if let Some(definition) = &call.definition
                    && *definition.spec != *cell.spec
                {
                    call.reply.fail(taken(&call.key, call.command.verb()));
                    return;
                }
                cell
            }
            None => match call.definition.take() {
                Some(definition) => match self.define(&call, definition) {
                    Ok(cell) => cell,
                    Err(error) => return call.reply.fail(error),
                },
                None => return absent(*call),
            },
        };
        self.forward(&cell, call);
    }

    fn define(&self, call: &Call, definition: Definition) -> Result<Arc<Cell>, Error> {
        let bound = self.services.bounds.sandboxes;
        let full = || {
            Error::new(
                ErrorKind::ResourceExhausted,
                call.command.verb(),
                format!("{bound} sandboxes are known already"),
            )
            .on(&call.key)
            .remedy("shut down some that are not needed")
        };
        if self.index.len() >= bound {
            return Err(full());
        }
        let lease = self.index.lease().ok_or_else(full)?;
        let cell = Cell::new(call.key, definition, lease, Arc::clone(&self.services));
        self.index.insert(&cell);
        cell.announce();
        Ok(cell)
    }

    /// Makes a sandbox known whose record was lost. Where somebody has taken its name meanwhile, it is in that one's way, and
    /// ends by it. Whether somebody has the name now.
    fn rebuild(&self, restored: Restored) -> bool {
        let key = restored.key;
        if self.index.cell(&key).is_some() {
            return true;
        }
        match restore(&self.services, &self.index, restored) {
            Ok(cell) => self.go_on_with(&cell),
            Err(error) => {
                tracing::error!(sandbox = %key, %error, "a record cannot be made anew");
                return false;
            }
        }
        true
    }

    fn forward(&self, cell: &Arc<Cell>, call: Box<Call>) {
        if let Command::Define = call.command
            && !cell.has_actor()
            && cell.pulse().phase() == Phase::Defined
            && cell.lifecycle().keeps_its_definition()
        {
            // Nothing to decide, and no reason to wake anybody.
            let defined = Arc::clone(cell);
            let then = move |result: Result<(), Error>| match result {
                Ok(()) => call.reply.send(Ok(Settled::default())),
                Err(error) => {
                    call.reply.fail(error.on(&defined.key));
                    defined.take_back_unwritten();
                }
            };
            return cell.write(cell.definition_change(), then);
        }
        let shuts_down = matches!(call.command, Command::Shutdown { .. });
        if cell.is_quarantined() && !shuts_down {
            let found = "its owner failed too often";
            let error = Error::new(ErrorKind::FailedPrecondition, call.command.verb(), found).on(&cell.key);
            return call.reply.fail(error.remedy("shut it down"));
        }
        if cell.is_quarantined() {
            cell.release_from_quarantine();
            self.activate(cell, Some(Lost::LongAgo));
        }
        self.deliver(cell, Message::Call(call));
    }

    /// Gives a message to a sandbox's actor, activating it if need be. An actor that was lost a moment ago hears nothing: its
    /// notice is on the way, its replacement asks the backend what exists, and a caller hears at once.
    fn deliver(&self, cell: &Arc<Cell>, message: Message) {
        if !cell.has_actor() {
            if cell.is_quarantined() || cell.pulse().phase() == Phase::Gone {
                return;
            }
            self.activate(cell, None);
        }
        if let Err(Message::Call(call)) = cell.route(message) {
            call.reply.fail(owner_lost(&cell.key, call.command.verb()));
        }
    }

    fn note_resting(&mut self, cell: Weak<Cell>) {
        if self.resting.is_empty() {
            self.look_again_in(REST);
        }
        self.resting.push_back((Instant::now(), cell));
    }

    /// Dismisses the actors that have rested for long enough, and looks at the others again later.
    fn dismiss(&mut self) {
        let now = Instant::now();
        while let Some((since, _)) = self.resting.front() {
            let left = REST.saturating_sub(now.duration_since(*since));
            if !left.is_zero() {
                return self.look_again_in(left);
            }
            let Some((_, cell)) = self.resting.pop_front() else { return };
            if cell.upgrade().is_some_and(|cell| cell.dismiss_if_resting()) {
                self.resting.push_back((now, cell));
            }
        }
    }

    /// One timer for all: nobody is woken while every actor is dismissed.
    fn look_again_in(&self, pause: Duration) {
        let services = Arc::downgrade(&self.services);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if let Some(services) = services.upgrade() {
                services.registry.send(Upward::Dismiss);
            }
        });
    }

    /// Goes on with what an earlier keeper has left under way, if nobody does yet.
    fn go_on_with(&self, cell: &Arc<Cell>) {
        if cell.lifecycle().is_recovering() && !cell.has_actor() && !cell.is_quarantined() {
            self.activate(cell, Some(Lost::WithItsKeeper));
        }
    }

    fn activate(&self, cell: &Arc<Cell>, replaces: Option<Lost>) {
        if let Err(error) = shell::activate(cell, replaces) {
            tracing::error!(sandbox = %cell.key, %error, "no actor");
        }
    }

    fn forget(&mut self, cell: &Arc<Cell>, farewell: Vec<(Reply, Result<Settled, Error>)>) {
        self.index.remove(cell);
        cell.retire();
        let gone = Arc::clone(cell);
        // Told once it is written: who hears that it is gone must not find it again after a crash. If it cannot be written, it
        // is gone all the same.
        let then = move |_written: Result<(), Error>| {
            crate::failpoint::reach("operation.after-removal");
            for (reply, result) in farewell {
                reply.send(result);
            }
            gone.waiters(|waiters| waiters.close());
        };
        cell.write(cell.removal(), then);
    }

    /// Keeps the record of a stopped sandbox, and lets go of the oldest where there are too many.
    fn keep_stopped(&mut self, cell: &Arc<Cell>, life: Life) {
        let still_stopped = |(_, life): &(i64, Life), cell: &mut Weak<Cell>| {
            let pulse = cell.upgrade().map(|cell| cell.pulse());
            pulse.is_some_and(|pulse| pulse.phase() == Phase::Stopped && pulse.life() == *life)
        };
        let facts = cell.snapshot().1;
        if facts.exit.is_none_or(|(of, _)| of != life) {
            // This one has been started again, or is gone.
            return;
        }
        self.stopped.insert((facts.stopped_at_unix_nanos, life), Arc::downgrade(cell));
        if self.stopped.len() > self.services.bounds.stopped {
            self.stopped.retain(still_stopped);
        }
        while self.stopped.len() > self.services.bounds.stopped {
            let Some(((_, life), cell)) = self.stopped.pop_first() else { return };
            if let Some(cell) = cell.upgrade() {
                tracing::info!(sandbox = %cell.key, "the oldest stopped record is dropped");
                cell.shut_down(0, Some(OnlyIf::Stopped(life)));
            }
        }
    }

    fn replace_owner(&mut self, cell: &Arc<Cell>) {
        cell.set_actor(None);
        if cell.may_replace_owner() {
            metrics::counter!(telemetry::OWNERS_REPLACED).increment(1);
            tracing::error!(sandbox = %cell.key, "its owner failed and is replaced");
            self.activate(cell, Some(Lost::JustNow));
        } else {
            metrics::counter!(telemetry::OWNERS_GIVEN_UP).increment(1);
            tracing::error!(sandbox = %cell.key, "its owner failed too often; it is quarantined");
            if cell.pulse().phase() == Phase::Gone {
                return self.forget(cell, Vec::new());
            }
            cell.give_up(&owner_lost(&cell.key, "finish a call on"));
        }
    }

    /// Takes up what a lost registry may have missed.
    fn heal(&mut self) {
        let cells: Vec<Arc<Cell>> = self.index.cells().collect();
        for cell in cells {
            let pulse = cell.pulse();
            if let Some(grace_millis) = cell.waiters(|waiters| waiters.shutdown_grace_millis()) {
                // It may have been lost on its way; a Shutdown that is under way already is joined.
                cell.shut_down(grace_millis, None);
            }
            if cell.has_actor() {
                cell.note_resting();
                self.note_resting(Arc::downgrade(&cell));
            }
            match pulse.phase() {
                Phase::Gone => {
                    self.forget(&cell, Vec::new());
                    continue;
                }
                Phase::Stopped => self.keep_stopped(&cell, pulse.life()),
                _ => cell.take_back_unwritten(),
            }
            if cell.actor_is_dead() {
                self.replace_owner(&cell);
            } else {
                self.go_on_with(&cell);
            }
            if cell.has_reported() {
                self.deliver(&cell, Message::Exited);
            }
        }
    }
}

/// Makes a sandbox of an earlier keeper known. For the registry, and for who opens it.
pub(crate) fn restore(
    services: &Arc<Services>,
    index: &Index,
    restored: Restored,
) -> Result<Arc<Cell>, Error> {
    let lease = index.lease().ok_or_else(|| {
        Error::new(ErrorKind::ResourceExhausted, "recover", "there is no room for it").on(&restored.key)
    })?;
    let cell = Cell::restored(restored, lease, Arc::clone(services));
    index.insert(&cell);
    Ok(cell)
}

/// Nobody has this name.
fn absent(call: Call) {
    match call.command {
        // The goal is absence.
        Command::Shutdown { .. } => call.reply.send(Ok(Settled::default())),
        command => call.reply.fail(not_found(&call.key, command.verb())),
    }
}

/// Nobody has this name, and what to do about it.
pub(crate) fn not_found(key: &SandboxKey, verb: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, verb, "no sandbox has this name")
        .on(key)
        .remedy("define it first, or start it with a spec")
}

fn taken(key: &SandboxKey, verb: &'static str) -> Error {
    Error::new(ErrorKind::AlreadyExists, verb, "the name is taken by a sandbox with another spec")
        .on(key)
        .remedy("shut that one down first, or use another name")
}

pub(crate) fn owner_lost(key: &SandboxKey, verb: &'static str) -> Error {
    Error::new(ErrorKind::Internal, verb, "its owner failed, and is being replaced")
        .on(key)
        .remedy("ask for its status, and try again")
}
