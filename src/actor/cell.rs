//! What there is of a sandbox outside its actor: it outlives an actor that fails, and callers read it without asking.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use ractor::{ActorRef, ActorStatus};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::Error;
use crate::events::Entry;
use crate::id::SandboxKey;
use crate::journal::SandboxRecord;
use crate::model::{Command, Exit, Intensity, Life, Lifecycle, OpId, Phase, Record};
use crate::runtime::{Instance, Observer, Runtime, Started};
use crate::spec::SandboxSpec;

use super::Services;
use super::link::Upward;
use super::message::{Call, Definition, Message, OnlyIf, Reply, Restored};
use super::pulse::Lease;
use super::waiters::Waiters;
use crate::model::{Marks, Pong};

mod wait;
mod written;

pub(crate) use wait::Wait;
pub(crate) use written::Keepsake;

/// One sandbox.
pub(crate) struct Cell {
    pub(crate) key: SandboxKey,
    /// For events, of which there are many.
    pub(crate) shared_key: Arc<SandboxKey>,
    pub(crate) spec: Arc<SandboxSpec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) services: Arc<Services>,
    lease: Lease<Cell>,
    facts: Mutex<Facts>,
    waiters: Mutex<Waiters>,
    owned: Mutex<Owned>,
    queued: AtomicU32,
    /// Whether the registry has been told that the actor rests, and will look at it.
    resting_noted: AtomicBool,
    /// For the registry, which needs to share what it is told about.
    myself: Weak<Cell>,
    /// Until when somebody waits for the start, in milliseconds of boot time.
    start_wanted_until: AtomicU64,
}

/// What is published of a sandbox beside its pulse.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    pub(crate) created_at_unix_nanos: i64,
    pub(crate) started_at_unix_nanos: i64,
    pub(crate) started: Option<Arc<Started>>,
    /// The last end of a life, and whose.
    pub(crate) exit: Option<(Life, Exit)>,
    /// When that was known. Of an end that nobody saw, the exit does not say when.
    pub(crate) stopped_at_unix_nanos: i64,
}

/// What only the actor touches, kept here so that it survives it.
struct Owned {
    lifecycle: Lifecycle,
    actor: Option<ActorRef<Message>>,
    instance: Option<Arc<Instance>>,
    task: Option<(OpId, JoinHandle<()>)>,
    failures: Intensity,
    quarantined: bool,
    /// Counts the actors this sandbox has had.
    incarnation: u64,
    /// An end that was reported and that no actor has taken up yet.
    reported: Option<(Life, Exit, bool)>,
    /// How many messages the registry has sent to the present one.
    sent: u64,
    /// How many of them it had heard when it came to rest; nothing while it has something to do.
    rested_after: Option<u64>,
    /// What was last given to the journal.
    written: Option<Record>,
    /// Whether its definition is on disk.
    durable: bool,
    /// How much of what was given to the journal is not durable yet.
    unwritten: u32,
}

/// Room for one message in a sandbox's mailbox.
pub(crate) struct MailboxPermit(Arc<Cell>);

impl Drop for MailboxPermit {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An owner may fail this often within [`FAILURE_SPAN_MILLIS`] before its sandbox is quarantined.
const FAILURES: usize = 5;
const FAILURE_SPAN_MILLIS: u64 = 10_000;

impl Cell {
    pub(crate) fn new(
        key: SandboxKey,
        definition: Definition,
        lease: Lease<Cell>,
        services: Arc<Services>,
    ) -> Arc<Self> {
        let kept = definition.kept;
        let lifecycle = if kept { Lifecycle::defined() } else { Lifecycle::passing() };
        let facts = Facts { created_at_unix_nanos: crate::runtime::unix_nanos(), ..Facts::default() };
        Self::of(key, definition, lease, services, (lifecycle, facts, None))
    }

    /// A sandbox that an earlier keeper has left.
    pub(crate) fn restored(restored: Restored, lease: Lease<Cell>, services: Arc<Services>) -> Arc<Self> {
        let Restored { key, state, definition, written } = restored;
        let SandboxRecord { record, created_at_unix_nanos, started_at_unix_nanos } = state;
        let lifecycle = Lifecycle::restored(&record);
        let facts = Facts {
            created_at_unix_nanos,
            started_at_unix_nanos,
            started: None,
            exit: lifecycle.exit().map(|exit| (lifecycle.life(), exit)),
            stopped_at_unix_nanos: lifecycle.exit().map_or(0, |exit| exit.at_unix_nanos),
        };
        Self::of(key, definition, lease, services, (lifecycle, facts, Some(record).filter(|_| written)))
    }

    fn of(
        key: SandboxKey,
        definition: Definition,
        lease: Lease<Cell>,
        services: Arc<Services>,
        (lifecycle, facts, written): (Lifecycle, Facts, Option<Record>),
    ) -> Arc<Self> {
        let Definition { spec, runtime, .. } = definition;
        let durable = written.is_some();
        let marks = Marks::default().with(Marks::RECOVERING, lifecycle.is_recovering());
        lease.publish(lifecycle.phase(), lifecycle.life(), marks);
        Arc::new_cyclic(|myself| Self {
            key,
            shared_key: Arc::new(key),
            spec,
            runtime,
            services,
            lease,
            facts: Mutex::new(facts),
            waiters: Mutex::default(),
            owned: Mutex::new(Owned {
                lifecycle,
                actor: None,
                instance: None,
                task: None,
                failures: Intensity::new(FAILURES, FAILURE_SPAN_MILLIS),
                quarantined: false,
                incarnation: 0,
                reported: None,
                sent: 0,
                rested_after: None,
                durable,
                written,
                unwritten: 0,
            }),
            queued: AtomicU32::new(0),
            resting_noted: AtomicBool::new(false),
            myself: myself.clone(),
            start_wanted_until: AtomicU64::new(0),
        })
    }

    pub(crate) fn lease(&self) -> &Lease<Cell> {
        &self.lease
    }

    pub(crate) fn pulse(&self) -> Pong {
        self.lease.read()
    }

    /// Phase, life and marks together with the facts that belong to them.
    pub(crate) fn snapshot(&self) -> (Pong, Facts) {
        let facts = self.facts.lock();
        (self.pulse(), facts.clone())
    }

    /// Publishes phase and marks, after `change` has brought the facts up to date.
    pub(crate) fn publish(&self, phase: Phase, change: impl FnOnce(&mut Facts)) {
        let (life, marks) = {
            let owned = self.owned.lock();
            let marks = Marks::default()
                .with(Marks::RECOVERING, owned.lifecycle.is_recovering())
                .with(Marks::QUARANTINED, owned.quarantined);
            (owned.lifecycle.life(), marks)
        };
        let mut facts = self.facts.lock();
        change(&mut facts);
        self.lease.publish(phase, life, marks);
    }

    /// Changes facts that no phase goes with.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock());
    }

    pub(crate) fn waiters<R>(&self, with: impl FnOnce(&mut Waiters) -> R) -> R {
        with(&mut self.waiters.lock())
    }

    /// The lifecycle as it stands.
    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.owned.lock().lifecycle.clone()
    }

    pub(crate) fn set_lifecycle(&self, next: Lifecycle) {
        self.owned.lock().lifecycle = next;
    }

    /// This life, as its backend sees it.
    pub(crate) fn instance(self: &Arc<Self>, life: Life) -> Arc<Instance> {
        let mut owned = self.owned.lock();
        if let Some(instance) = owned.instance.as_ref().filter(|instance| instance.life == life) {
            return Arc::clone(instance);
        }
        let observer: Arc<dyn Observer> = Arc::clone(self) as _;
        let instance = Instance::new(self.key, life, Arc::clone(&self.spec), observer);
        owned.instance = Some(Arc::clone(&instance));
        instance
    }

    /// The life that is or was last in a backend's hands, if it is this one.
    pub(crate) fn instance_of(&self, life: Life) -> Option<Arc<Instance>> {
        self.owned.lock().instance.clone().filter(|instance| instance.life == life)
    }

    /// The running operation's task, and its number. It is taken out.
    pub(crate) fn take_task(&self) -> Option<(OpId, JoinHandle<()>)> {
        self.owned.lock().task.take()
    }

    pub(crate) fn set_task(&self, op: OpId, task: JoinHandle<()>) {
        self.owned.lock().task = Some((op, task));
    }

    /// Ends what runs for this cell and keeps it: its actor, and its operation's task.
    pub(crate) fn retire(&self) {
        let (actor, task) = {
            let mut owned = self.owned.lock();
            (owned.actor.take(), owned.task.take())
        };
        if let Some(actor) = actor {
            // Behind whatever is still on its way to it, which it passes on.
            let _ = actor.send_message(Message::Dismissed);
        }
        if let Some((_, task)) = task {
            task.abort();
        }
    }

    /// Sends to the actor; gives the message back if there is none that lives.
    pub(crate) fn tell(&self, message: Message) -> Result<(), Message> {
        let actor = self.owned.lock().actor.clone();
        match actor {
            Some(actor) => actor.send_message(message).map_err(|error| match error {
                ractor::MessagingErr::SendErr(message) => message,
                _ => Message::Due,
            }),
            None => Err(message),
        }
    }

    pub(crate) fn has_actor(&self) -> bool {
        self.owned.lock().actor.is_some()
    }

    /// The number of the actor that is about to begin.
    pub(crate) fn next_incarnation(&self) -> u64 {
        let mut owned = self.owned.lock();
        owned.incarnation += 1;
        owned.sent = 0;
        owned.rested_after = None;
        owned.incarnation
    }

    /// Sends to the actor on behalf of the registry, whose messages are counted; gives the message back if it is dead.
    pub(crate) fn route(&self, message: Message) -> Result<(), Message> {
        self.owned.lock().sent += 1;
        self.tell(message)
    }

    /// Whether an end was reported that no actor has taken up.
    pub(crate) fn has_reported(&self) -> bool {
        self.owned.lock().reported.is_some()
    }

    /// The end that was reported since the last look.
    pub(crate) fn take_reported(&self) -> Option<(Life, Exit, bool)> {
        self.owned.lock().reported.take()
    }

    /// The actor has something to do.
    pub(crate) fn wake(&self) {
        self.owned.lock().rested_after = None;
    }

    /// The actor has nothing to do, after this many messages from the registry. At rest nobody else sends it anything: it
    /// has no operation under way and no timer.
    pub(crate) fn rest(&self, heard: u64) {
        self.owned.lock().rested_after = Some(heard);
        if !self.resting_noted.swap(true, Ordering::AcqRel) {
            self.services.registry.send(Upward::Resting(self.myself.clone()));
        }
    }

    /// The registry will look at this actor.
    pub(crate) fn note_resting(&self) {
        self.resting_noted.store(true, Ordering::Release);
    }

    /// Dismisses the actor if it has nothing to do and nothing on the way to it. Called by the registry, which alone sends
    /// to an actor at rest; says whether the registry is to look again.
    pub(crate) fn dismiss_if_resting(&self) -> bool {
        let dismissed = {
            let mut owned = self.owned.lock();
            if owned.actor.is_some() && owned.rested_after != Some(owned.sent) {
                return true;
            }
            owned.actor.take()
        };
        self.resting_noted.store(false, Ordering::Release);
        if let Some(actor) = dismissed {
            // One that was lost meanwhile is not missed.
            let _ = actor.send_message(Message::Dismissed);
        }
        false
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.owned.lock().incarnation
    }

    /// Whether there was an actor and it no longer runs.
    pub(crate) fn actor_is_dead(&self) -> bool {
        let actor = self.owned.lock().actor.clone();
        actor.is_some_and(|actor| matches!(actor.get_status(), ActorStatus::Stopping | ActorStatus::Stopped))
    }

    pub(crate) fn set_actor(&self, actor: Option<ActorRef<Message>>) {
        self.owned.lock().actor = actor;
    }

    /// Counts a lost owner; says whether another may be tried.
    pub(crate) fn may_replace_owner(&self) -> bool {
        let mut owned = self.owned.lock();
        let allowed = owned.failures.allows(self.services.clock.now());
        owned.quarantined = !allowed;
        allowed
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.owned.lock().quarantined
    }

    /// A Shutdown ends a quarantine: another owner may try.
    pub(crate) fn release_from_quarantine(&self) {
        let mut owned = self.owned.lock();
        owned.quarantined = false;
        owned.failures = Intensity::new(FAILURES, FAILURE_SPAN_MILLIS);
    }

    /// Lets watchers know of a sandbox that was just defined.
    pub(crate) fn announce(&self) {
        let entry = Entry {
            at_unix_nanos: self.facts.lock().created_at_unix_nanos,
            key: Arc::clone(&self.shared_key),
            phase: Phase::Defined,
            life: Life(0),
            exit: None,
        };
        self.services.events.append(entry);
    }

    /// Whether this holds of it, and nothing is under way.
    pub(crate) fn is(&self, condition: OnlyIf) -> bool {
        let owned = self.owned.lock();
        let Owned { lifecycle, durable, unwritten, .. } = &*owned;
        lifecycle.is_at_rest()
            && match condition {
                OnlyIf::Stopped(life) => lifecycle.phase() == Phase::Stopped && lifecycle.life() == life,
                OnlyIf::Unwritten if lifecycle.phase() != Phase::Defined => false,
                // In memory it is as durable as it gets.
                OnlyIf::Unwritten if self.services.journal.is_none() => !lifecycle.keeps_its_definition(),
                OnlyIf::Unwritten => !durable && *unwritten == 0,
            }
    }

    /// Shuts it down of the keeper's own accord.
    pub(crate) fn shut_down(&self, grace_millis: u64, only_if: Option<OnlyIf>) {
        let (reply, _nobody) = Reply::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        let call = Call::new(self.key, Command::Shutdown { grace_millis }, deadline, reply);
        self.services.registry.send(Upward::Call(Box::new(Call { only_if, ..call })));
    }

    /// A definition that could not be written is none: it goes again, unless something has come of it meanwhile.
    pub(crate) fn take_back_unwritten(&self) {
        if self.is(OnlyIf::Unwritten) {
            self.shut_down(0, Some(OnlyIf::Unwritten));
        }
    }

    /// Nobody will own this sandbox until somebody shuts it down: everybody who waits hears so.
    pub(crate) fn give_up(&self, error: &Error) {
        self.waiters(|waiters| {
            waiters.fail(error);
            waiters.abandon_exits();
        });
        self.publish(self.lifecycle().phase(), |_| {});
    }

    /// Takes room in the mailbox.
    ///
    /// # Errors
    /// `ResourceExhausted` at once if there is none.
    pub(crate) fn mailbox_permit(self: &Arc<Self>, verb: &'static str) -> Result<MailboxPermit, Error> {
        let bound = self.services.bounds.mailbox;
        let permit = MailboxPermit(Arc::clone(self));
        if self.queued.fetch_add(1, Ordering::AcqRel) < bound {
            return Ok(permit);
        }
        drop(permit);
        metrics::counter!(crate::telemetry::MAILBOX_FULL).increment(1);
        Err(super::message::full(verb, format!("{bound} calls wait in its mailbox already")).on(&self.key))
    }

    /// Somebody waits for the start until then.
    pub(crate) fn want_start_until(&self, deadline: Instant) {
        let until = self.services.clock.boot_millis_of(deadline);
        self.start_wanted_until.fetch_max(until.0, Ordering::AcqRel);
    }

    pub(crate) fn start_wanted_until(&self) -> Instant {
        let until = self.start_wanted_until.load(Ordering::Acquire);
        self.services.clock.instant_of(crate::model::BootMillis(until))
    }
}

impl Observer for Cell {
    fn keepsake(&self) -> Vec<u8> {
        Keepsake::of(self).to_bytes()
    }

    fn exited(&self, life: Life, exit: Exit, all_ended: bool) {
        if !self.lease.mark_exited(life) {
            return;
        }
        // Kept here, and not in the message: whatever the actor hears next, it knows of the end first.
        self.owned.lock().reported.get_or_insert((life, exit, all_ended));
        if let Some(cell) = self.myself.upgrade() {
            self.services.registry.send(Upward::Exited(cell));
        }
    }
}
