//! The actor itself: takes a message, lets the machine decide, and does what it says. It decides nothing.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::events::Entry;
use crate::model::{
    Answer, BootMillis, Cause, Command, Effect, Exit, Found, Life, Lifecycle, Observation, OpId, Operation,
    Outcome, Phase,
};
use crate::telemetry;

use super::cell::Cell;
use super::link::Upward;
use super::message::{Call, Done, Ended, Lost, Message, Reply, Settled};
use super::perform::Performance;

/// Owns one sandbox.
pub(crate) struct Sandbox;

/// What an actor starts with.
pub(crate) struct Arguments {
    cell: Arc<Cell>,
    guard: DeathNotice,
}

/// Says that an actor is lost, unless it was dismissed: a panic anywhere drops it.
struct DeathNotice(Option<(Arc<Cell>, u64)>);

impl Drop for DeathNotice {
    fn drop(&mut self) {
        if let Some((cell, incarnation)) = self.0.take() {
            let services = Arc::clone(&cell.services);
            services.registry.send(Upward::Lost(cell, incarnation));
        }
    }
}

/// Starts an actor for this sandbox; `replaces` says when one before it was lost.
pub(crate) fn activate(cell: &Arc<Cell>, replaces: Option<Lost>) -> Result<(), Error> {
    let notice = DeathNotice(Some((Arc::clone(cell), cell.next_incarnation())));
    let arguments = Arguments { cell: Arc::clone(cell), guard: notice };
    match ractor::ActorRuntime::<Sandbox>::spawn_instant(None, Sandbox, arguments) {
        Ok((actor, _started)) => {
            if let Some(lost) = replaces {
                let _ = actor.send_message(Message::Replaces(lost));
            }
            cell.set_actor(Some(actor));
            Ok(())
        }
        Err(error) => Err(Error::new(ErrorKind::Internal, "own", "its actor could not be spawned")
            .on(&cell.key)
            .caused_by(error)),
    }
}

/// An actor's state.
pub(crate) struct Shell {
    cell: Arc<Cell>,
    guard: DeathNotice,
    timer: Option<JoinHandle<()>>,
    /// Errors of failed operations, until everybody who waits has been told.
    failures: Vec<(OpId, Error)>,
    /// Held from the first operation of a start to its last.
    start_permit: Option<OwnedSemaphorePermit>,
    /// When whoever asked for the operation that is about to begin gives up.
    wanted_until: Option<Instant>,
    /// Answers that wait until the registry has forgotten this sandbox.
    farewell: Vec<(Reply, Result<Settled, Error>)>,
    shutdown: Option<OpId>,
    /// Answers of this turn, which are given when what led to them is written.
    answers: Vec<(Reply, Result<Settled, Error>)>,
    /// Hears when this turn is written, for the operation that it begins.
    intent: Option<oneshot::Receiver<Result<(), Error>>>,
    /// How many messages of the registry's were heard.
    heard: u64,
}

impl Actor for Sandbox {
    type Msg = Message;
    type State = Shell;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Message>,
        Arguments { cell, guard }: Arguments,
    ) -> Result<Shell, ActorProcessingErr> {
        Ok(Shell {
            cell,
            guard,
            timer: None,
            failures: Vec::new(),
            start_permit: None,
            wanted_until: None,
            farewell: Vec::new(),
            shutdown: None,
            answers: Vec::new(),
            intent: None,
            heard: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        shell: &mut Shell,
    ) -> Result<(), ActorProcessingErr> {
        if let Message::Dismissed = message {
            shell.guard.0 = None;
            myself.stop(None);
            return Ok(());
        }
        shell.hear(message);
        let lifecycle = shell.cell.lifecycle();
        if lifecycle.is_at_rest() && shell.cell.waiters(|waiters| waiters.is_idle()) {
            shell.cell.rest(shell.heard);
        }
        if lifecycle.phase() == Phase::Gone && shell.guard.0.is_some() {
            shell.guard.0 = None;
            let farewell = std::mem::take(&mut shell.farewell);
            shell.cell.services.registry.send(Upward::Gone(Arc::clone(&shell.cell), farewell));
            // It stays to pass on what still arrives, until the registry has forgotten it and stops it.
        }
        Ok(())
    }
}

impl Shell {
    fn hear(&mut self, message: Message) {
        self.cell.wake();
        if let Message::Call(_) | Message::Exited = message {
            self.heard += 1;
        }
        if let Some((life, exit, all_ended)) = self.cell.take_reported() {
            self.observe(Observation::Exited { life, exit, all_ended });
        }
        match message {
            Message::Call(call) => self.call(*call),
            Message::Ended(ended) => self.ended(*ended),
            Message::Due => self.observe(Observation::Due),
            Message::Exited | Message::Dismissed => {}
            Message::Replaces(lost) => self.replace(lost),
            #[cfg(feature = "testing")]
            Message::Panic => panic!("asked to fail, for a test"),
        }
    }

    fn now(&self) -> BootMillis {
        self.cell.services.clock.now()
    }

    fn call(&mut self, mut call: Call) {
        // Taken out of the mailbox: its room is free again.
        drop((call.permit.take(), call.in_flight.take()));
        if self.cell.lifecycle().phase() == Phase::Gone {
            self.cell.services.registry.send(Upward::Call(Box::new(call)));
            return;
        }
        if call.only_if.is_some_and(|condition| !self.cell.is(condition)) {
            return;
        }
        let Call { key, command, definition, deadline, reply, .. } = call;
        if deadline <= Instant::now() && !matches!(command, Command::Shutdown { .. }) {
            metrics::counter!(telemetry::EXPIRED_CALLS).increment(1);
            let found = "its deadline passed before its turn came; nothing was done";
            reply.fail(Error::new(ErrorKind::DeadlineExceeded, command.verb(), found).on(&key));
            if self.cell.lifecycle() == Lifecycle::passing() {
                // It exists for the sake of this start alone.
                self.command(Command::Shutdown { grace_millis: 0 }, None);
            }
            return;
        }
        if let Command::Pause | Command::Resume = command {
            if !self.cell.runtime.capabilities().pause {
                let found = "its runtime cannot freeze sandboxes";
                reply.fail(Error::new(ErrorKind::Unimplemented, command.verb(), found).on(&key));
                return;
            }
            // A freeze that nobody waits for any more is not worth going on with.
            self.wanted_until = Some(deadline);
        }
        if let Command::Start { .. } | Command::Create { .. } = command {
            self.cell.want_start_until(deadline);
        }
        if definition.is_some_and(|definition| definition.kept) && command != Command::Define {
            self.command(Command::Define, None);
        }
        self.command(command, Some(reply));
    }

    fn command(&mut self, command: Command, reply: Option<Reply>) {
        match self.cell.lifecycle().command(command, self.now()) {
            Ok((next, effects, answer)) => {
                // Parked first: what the effects settle, this caller must hear too.
                match (answer, reply) {
                    (_, None) => {}
                    (Answer::Done, Some(reply)) => self.answers.push((reply, Ok(Settled::default()))),
                    (Answer::Await(op), Some(reply)) => {
                        if let Some(reply) = self.park(op, reply) {
                            reply.fail(super::message::too_many_waiters().on(&self.cell.key));
                        }
                    }
                }
                if let (Answer::Await(op), Command::Shutdown { .. }) = (answer, command) {
                    self.shutdown = Some(op);
                }
                self.turn(next, effects, command == Command::Define);
                self.wanted_until = None;
            }
            Err(refusal) => {
                self.wanted_until = None;
                let Some(reply) = reply else { return };
                let kind = match refusal.because {
                    crate::model::Because::Recovering => ErrorKind::Unavailable,
                    _ => ErrorKind::FailedPrecondition,
                };
                let mut error = Error::new(kind, command.verb(), refusal.to_string())
                    .on(&self.cell.key)
                    .remedy(refusal.remedy());
                if refusal.passes_by_itself() {
                    error = error.retry_after(std::time::Duration::from_millis(100));
                }
                reply.fail(error);
            }
        }
    }

    /// Gives the reply back if there is no room for it.
    fn park(&self, op: OpId, reply: Reply) -> Option<Reply> {
        let bound = self.cell.services.bounds.waiters;
        self.cell.waiters(|waiters| waiters.park(op, reply, bound)).err()
    }

    fn observe(&mut self, observation: Observation) {
        let (next, effects) = self.cell.lifecycle().observe(observation, self.now());
        self.turn(next, effects, false);
    }

    /// Takes a turn: the lifecycle goes on, its effects are acted on, and what is going on now is written down. Callers are
    /// answered when it is; the operation that it begins waits for it as well.
    fn turn(&mut self, next: Lifecycle, effects: Vec<Effect>, defines: bool) {
        self.cell.set_lifecycle(next);
        let (written, intent) = self.cell.has_changed().then(oneshot::channel).unzip();
        self.intent = intent;
        self.act(effects);
        self.intent = None;
        let mut answers = std::mem::take(&mut self.answers);
        // What holds already is no more durable than the turn that led to it.
        let again = defines || !answers.is_empty() && self.cell.is_being_written();
        let change = if again { self.cell.definition_change() } else { self.cell.change() };
        if !answers.is_empty() {
            let settled = self.settled();
            for (_, result) in answers.iter_mut().filter(|(_, result)| result.is_ok()) {
                *result = Ok(settled.clone());
            }
        }
        // Not kept alive by what waits for the disk.
        let cell = Arc::downgrade(&self.cell);
        let then = move |result: Result<(), Error>| {
            crate::failpoint::reach("operation.after-outcome");
            if let (true, Err(_), Some(cell)) = (defines, &result, cell.upgrade()) {
                cell.take_back_unwritten();
            }
            for (reply, answer) in answers {
                // A definition is nothing but what is written. All else holds, whether or not it could be.
                let refused = result.as_ref().err().filter(|_| defines).cloned();
                reply.send(refused.map_or(answer, Err));
            }
            if let Some(written) = written {
                // Nobody there if no operation has begun.
                let _ = written.send(result);
            }
        };
        self.cell.write(change, then);
    }

    fn ended(&mut self, Ended { op, result, permit }: Ended) {
        self.start_permit = permit;
        // It is over, and its handle would keep its memory for as long as the sandbox is at rest.
        if let Some((running, task)) = self.cell.take_task()
            && running != op
        {
            self.cell.set_task(running, task);
        }
        match result {
            Ok(Done::Nothing) => self.observe(Observation::Ended { op, failed: false }),
            Ok(Done::Started(started)) => {
                let now = crate::runtime::unix_nanos();
                self.cell.note(|facts| {
                    facts.started = Some(Arc::new(started));
                    facts.started_at_unix_nanos = now;
                });
                self.observe(Observation::Ended { op, failed: false });
            }
            Ok(Done::Found(found, started)) => {
                if let (Some(started), Found::Running { .. }) = (started, found) {
                    // When it was started is as it was written, or nobody knows.
                    self.cell.note(|facts| facts.started = Some(Arc::new(started)));
                }
                self.observe(Observation::Found { op, found });
            }
            Err(error) => {
                self.failures.push((op, error));
                self.observe(Observation::Ended { op, failed: true });
            }
        }
        // Whatever did not go on to another operation of the same start has no claim to the permit.
        self.start_permit = None;
        if self.cell.waiters(|waiters| waiters.is_idle()) {
            self.failures.clear();
        }
    }

    fn replace(&mut self, lost: Lost) {
        if lost == Lost::WithItsKeeper {
            return self.observe(Observation::Due);
        }
        if lost == Lost::JustNow {
            let error = self.owner_lost_error();
            self.cell.waiters(|waiters| waiters.fail(&error));
        }
        self.observe(Observation::OwnerLost);
        self.refresh();
    }

    fn owner_lost_error(&self) -> Error {
        Error::new(ErrorKind::Internal, "finish a call on", "its owner failed, and was replaced")
            .on(&self.cell.key)
            .remedy("ask for its status, and try again")
    }

    /// Publishes marks and life that changed without a change of phase.
    fn refresh(&self) {
        self.cell.publish(self.cell.lifecycle().phase(), |_| {});
    }

    fn settled(&self) -> Settled {
        let (pulse, facts) = self.cell.snapshot();
        Settled { life: pulse.life(), started: facts.started }
    }

    fn act(&mut self, effects: Vec<Effect>) {
        let marked = self.cell.pulse().marks().contains(crate::model::Marks::RECOVERING);
        let before = self.cell.pulse().life();
        for effect in effects {
            match effect {
                Effect::Publish(phase) => self.publish(phase),
                Effect::Begin { op, operation, life } => self.begin(op, operation, life),
                // The task stays where it is until the next one has waited for its end.
                Effect::Cancel(op) => self.cancel(op),
                Effect::Settle(op, outcome) => self.settle(op, outcome),
                Effect::Tell(life, exit) => self.tell(life, exit),
                Effect::Arm(at) => self.arm(at),
                Effect::Disarm => self.disarm(),
            }
        }
        let lifecycle = self.cell.lifecycle();
        if lifecycle.life() != before || lifecycle.is_recovering() != marked {
            self.refresh();
        }
    }

    fn publish(&self, phase: Phase) {
        let lifecycle = self.cell.lifecycle();
        let life = lifecycle.life();
        self.cell.publish(phase, |facts| {
            if let Phase::Creating = phase {
                facts.started = None;
                facts.started_at_unix_nanos = 0;
            }
            // Together with the phase: a status says both or neither.
            if let (Phase::Stopped, Some(exit)) = (phase, lifecycle.exit()) {
                facts.exit = Some((life, exit));
                facts.stopped_at_unix_nanos = crate::runtime::unix_nanos();
            }
        });
        telemetry::phase_entered(phase);
        tracing::info!(sandbox = %self.cell.key, %life, %phase, "phase changed");
        let (_, facts) = self.cell.snapshot();
        let services = &self.cell.services;
        services.events.append(Entry {
            at_unix_nanos: crate::runtime::unix_nanos(),
            key: Arc::clone(&self.cell.shared_key),
            phase,
            life,
            exit: facts.exit.filter(|(of, _)| *of == life && phase >= Phase::Stopped).map(|(_, exit)| exit),
        });
        if phase == Phase::Stopped {
            services.registry.send(Upward::Stopped(Arc::clone(&self.cell), life));
        }
    }

    fn begin(&mut self, op: OpId, operation: Operation, life: Life) {
        let starts = matches!(operation, Operation::Create | Operation::Start);
        let performance = Performance {
            op,
            operation,
            life,
            wanted_until: self.wanted_until.take().filter(|_| operation != Operation::Delete),
            permit: self.start_permit.take().filter(|_| starts),
            starts,
            intent: self.intent.take(),
            previous: self.cell.take_task().map(|(_, task)| task),
        };
        let task = performance.spawn(&self.cell);
        self.cell.set_task(op, task);
    }

    fn cancel(&self, op: OpId) {
        if let Some((running, task)) = self.cell.take_task() {
            if running == op {
                task.abort();
            }
            self.cell.set_task(running, task);
        }
    }

    fn settle(&mut self, op: OpId, outcome: Outcome) {
        let result = match outcome {
            Outcome::Done => Ok(Settled::default()),
            Outcome::Failed(cause) => Err(self.explain(cause)),
        };
        let replies = self.cell.waiters(|waiters| waiters.take(op));
        let shutdown = self.shutdown == Some(op);
        if shutdown {
            self.shutdown = None;
        }
        if self.cell.lifecycle().phase() == Phase::Gone {
            // Whoever hears of the end may define the same ID in the same instant: the registry must know it first.
            self.farewell.extend(replies.into_iter().map(|reply| (reply, result.clone())));
            return;
        }
        if shutdown {
            self.cell.waiters(|waiters| waiters.settle_shutdown(&result));
        }
        self.answers.extend(replies.into_iter().map(|reply| (reply, result.clone())));
    }

    fn explain(&self, cause: Cause) -> Error {
        let key = &self.cell.key;
        let ended = |kind, found: String| Error::new(kind, "finish a call on", found).on(key);
        match cause {
            Cause::Operation(op) => {
                let known = self.failures.iter().find(|(failed, _)| *failed == op);
                known.map(|(_, error)| error.clone()).unwrap_or_else(|| self.owner_lost_error())
            }
            Cause::Stop => ended(ErrorKind::Aborted, "it was stopped meanwhile".to_owned()),
            Cause::Shutdown => ended(ErrorKind::Aborted, "it was shut down meanwhile".to_owned()),
            Cause::Exited(exit) => {
                ended(ErrorKind::FailedPrecondition, format!("its instance ended: it {exit}"))
                    .remedy("start it again first")
            }
            Cause::OwnerLost => self.owner_lost_error(),
        }
    }

    fn tell(&self, life: Life, exit: Exit) {
        telemetry::exited(exit.reason);
        tracing::info!(sandbox = %self.cell.key, %life, %exit, "life ended");
        self.cell.note(|facts| facts.exit = Some((life, exit)));
        self.cell.waiters(|waiters| waiters.tell_exit(life, exit));
    }

    fn arm(&mut self, at: BootMillis) {
        self.disarm();
        let cell = Arc::downgrade(&self.cell);
        let until = self.cell.services.clock.instant_of(at);
        self.timer = Some(tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            if let Some(cell) = cell.upgrade() {
                let _ = cell.tell(Message::Due);
            }
        }));
    }

    fn disarm(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.disarm();
    }
}
