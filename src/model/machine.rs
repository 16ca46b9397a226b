//! The lifecycle machine: what a caller may ask in each phase, and what each report of the world leads to.

use super::record::can_be_asked;
use super::state::{Current, Ending, Goals, Removing, State, Then, Turn};
use super::{
    Because, BootMillis, Cause, Command, Effect, Exit, Life, Observation, OpId, Outcome, Phase, Refusal,
};

/// The lifecycle of one sandbox: a value.
///
/// ```
/// use sandkeeper::model::{Answer, BootMillis, Command, Life, Lifecycle, Phase};
/// let defined = Lifecycle::defined();
/// let (starting, effects, answer) = defined.command(Command::Start { life: Life(1) }, BootMillis(0)).unwrap();
/// assert_eq!(starting.phase(), Phase::Creating);
/// assert!(matches!(answer, Answer::Await(_)));
/// assert_eq!(effects.len(), 2); // publish the phase, begin to create
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lifecycle {
    pub(super) state: State,
    pub(super) goals: Goals,
    pub(super) current: Current,
    pub(super) next_op: u64,
    /// Whether a start that fails leaves the definition: of what was defined, and of what has run.
    pub(super) kept: bool,
}

/// What a caller whose command was accepted does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Nothing: what it asked for holds.
    Done,
    /// Wait until this is settled.
    Await(OpId),
}

impl Lifecycle {
    /// A sandbox that was defined, and stays so if a start of it fails.
    pub fn defined() -> Self {
        Self { kept: true, ..Self::passing() }
    }

    /// A sandbox that exists for the sake of its first start, and is forgotten if that fails.
    pub fn passing() -> Self {
        Self {
            state: State::Defined,
            goals: Goals::default(),
            current: Current::default(),
            next_op: 1,
            kept: false,
        }
    }

    /// Its phase.
    pub fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// The life that runs or ran last; 0 if there has been none.
    pub fn life(&self) -> Life {
        self.current.life
    }

    /// How that life ended, once nothing of it runs.
    pub fn exit(&self) -> Option<Exit> {
        match self.state {
            // Its start came to nothing.
            State::Defined if self.current.life != Life(0) => Some(self.current.unreported_exit()),
            State::Stopped { exit } | State::Clearing { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// Whether what exists is being found out, after its owner was lost.
    pub fn is_recovering(&self) -> bool {
        matches!(self.state, State::Recovering { .. })
    }

    /// Whether a start that fails leaves it defined.
    pub fn keeps_its_definition(&self) -> bool {
        self.kept
    }

    /// Whether nothing is under way and nothing will be due: only a command or an exit leads on from here.
    pub fn is_at_rest(&self) -> bool {
        self.state.op().is_none() && self.state.deadline().is_none() && self.state != State::Gone
    }

    fn turn(&self, now: BootMillis) -> Turn {
        let Self { state, goals, current, next_op, kept } = self.clone();
        Turn { state, goals, current, next_op, kept, effects: Vec::new(), now }
    }

    /// A caller asks. Says whether it is done or waits.
    ///
    /// # Errors
    /// [`Refusal`] says what stands in the way; nothing has changed then.
    pub fn command(&self, command: Command, now: BootMillis) -> Result<(Self, Vec<Effect>, Answer), Refusal> {
        let mut turn = self.turn(now);
        let answer = match command {
            Command::Define => turn.define(),
            Command::Create { life } => turn.create(life),
            Command::Start { life } => turn.start(life),
            Command::Pause => turn.pause(),
            Command::Resume => turn.resume(),
            Command::Stop { grace_millis } => Ok(turn.stop(grace_millis)),
            Command::Shutdown { grace_millis } => Ok(turn.shutdown(grace_millis)),
        };
        match answer {
            Ok(answer) => {
                let (next, effects) = turn.end();
                Ok((next, effects, answer))
            }
            Err(because) => Err(Refusal { command, phase: self.phase(), because }),
        }
    }

    /// The world reports. Never refused: an impossible report changes nothing.
    pub fn observe(&self, observation: Observation, now: BootMillis) -> (Self, Vec<Effect>) {
        let mut turn = self.turn(now);
        match observation {
            Observation::Ended { op, failed } if self.state.op() == Some(op) => {
                turn.operation_ended(op, failed)
            }
            Observation::Found { op, found } if self.state.op() == Some(op) => turn.found(found),
            Observation::Exited { life, exit, all_ended } if life == self.current.life => {
                turn.exited(exit, all_ended);
            }
            Observation::Due if self.state.deadline().is_some_and(|at| at <= now) => turn.due(),
            Observation::OwnerLost => turn.owner_lost(),
            // Stale: of a cancelled operation, an earlier life, or a deadline that was moved.
            _ => {}
        }
        turn.end()
    }
}

impl Turn {
    fn end(self) -> (Lifecycle, Vec<Effect>) {
        let Turn { state, goals, current, next_op, kept, effects, .. } = self;
        (Lifecycle { state, goals, current, next_op, kept }, effects)
    }

    /// Waits for a goal, together with whoever waits for it already.
    fn join(&mut self, goal: impl Fn(&mut Goals) -> &mut Option<OpId>) -> Answer {
        if let Some(op) = *goal(&mut self.goals) {
            return Answer::Await(op);
        }
        let op = self.fresh();
        *goal(&mut self.goals) = Some(op);
        Answer::Await(op)
    }

    /// Why a command other than an end is refused in this state.
    fn refuse(&self) -> Because {
        match self.state {
            _ if self.goals.shutdown.is_some() => Because::ShuttingDown,
            State::Deleting { then: Then::Gone, undone: None, .. } => Because::ShuttingDown,
            State::Deleting { .. } => Because::Undoing,
            State::Withdrawing { .. } => Because::Withdrawing,
            State::Recovering { .. } => Because::Recovering,
            _ => Because::Phase,
        }
    }

    fn define(&mut self) -> Result<Answer, Because> {
        match self.state {
            State::Deleting { then: Then::Gone, .. } | State::Gone => Err(self.refuse()),
            _ if self.goals.shutdown.is_some() => Err(Because::ShuttingDown),
            _ => {
                self.kept = true;
                Ok(Answer::Done)
            }
        }
    }

    fn create(&mut self, life: Life) -> Result<Answer, Because> {
        match self.state {
            State::Defined => {
                self.begin_creating(life);
                Ok(self.join(|goals| &mut goals.create))
            }
            State::Stopped { exit } => {
                self.begin_clearing(exit, life);
                Ok(self.join(|goals| &mut goals.create))
            }
            State::Clearing { .. } | State::Creating { .. } => Ok(self.join(|goals| &mut goals.create)),
            State::Created => Ok(Answer::Done),
            _ => Err(self.refuse()),
        }
    }

    fn start(&mut self, life: Life) -> Result<Answer, Because> {
        match self.state {
            State::Defined => self.begin_creating(life),
            State::Stopped { exit } => self.begin_clearing(exit, life),
            State::Created => self.begin_starting(),
            State::Clearing { .. } | State::Creating { .. } | State::Starting { .. } => {}
            State::Running
            | State::Pausing { .. }
            | State::Withdrawing { .. }
            | State::Paused
            | State::Resuming { .. } => return Ok(Answer::Done),
            _ => return Err(self.refuse()),
        }
        Ok(self.join(|goals| &mut goals.start))
    }

    fn pause(&mut self) -> Result<Answer, Because> {
        match self.state {
            State::Running => self.begin_pausing(),
            State::Pausing { .. } => {}
            State::Paused => return Ok(Answer::Done),
            _ => return Err(self.refuse()),
        }
        Ok(self.join(|goals| &mut goals.pause))
    }

    fn resume(&mut self) -> Result<Answer, Because> {
        match self.state {
            State::Paused => self.begin_resuming(),
            State::Resuming { .. } => {}
            State::Running => return Ok(Answer::Done),
            _ => return Err(self.refuse()),
        }
        Ok(self.join(|goals| &mut goals.resume))
    }

    fn stop(&mut self, grace_millis: u64) -> Answer {
        match self.state {
            _ if self.has_its_own_time(grace_millis) => self.end_in_its_time(grace_millis),
            State::Defined | State::Stopped { .. } | State::Gone => return Answer::Done,
            State::Clearing { exit, .. } => {
                self.cancel();
                self.fail_all_but_ends(Cause::Stop);
                self.enter(State::Stopped { exit });
                return Answer::Done;
            }
            State::Deleting { .. } => {}
            State::Recovering { was: Phase::Deleting | Phase::Stopped, .. } => {
                self.begin_deleting(self.then_after_failure(), None);
            }
            // A frozen process cannot act on a request to end, and one that was never started needs none.
            _ => {
                let known = self.known_exit();
                self.cancel();
                self.fail_all_but_ends(Cause::Stop);
                self.begin_killing(known);
            }
        }
        self.join(|goals| &mut goals.stop)
    }

    fn shutdown(&mut self, grace_millis: u64) -> Answer {
        let answer = self.join(|goals| &mut goals.shutdown);
        match self.state {
            _ if self.has_its_own_time(grace_millis) => self.end_in_its_time(grace_millis),
            State::Gone => {
                self.goals.shutdown = None;
                return Answer::Done;
            }
            State::Deleting { step: Removing::Under { op }, undone, .. } => {
                self.enter(State::Deleting { step: Removing::Under { op }, then: Then::Gone, undone });
            }
            // To delete ends whatever runs; nothing that was under way may finish first.
            _ => {
                if let Some(exit) = self.known_exit() {
                    self.tell(exit);
                }
                self.cancel();
                self.fail_all_but_ends(Cause::Shutdown);
                self.begin_deleting(Then::Gone, None);
            }
        }
        answer
    }

    /// Whether it is being ended already, or can act on a request to end and has time for it.
    fn has_its_own_time(&self, grace_millis: u64) -> bool {
        match self.state {
            State::Running => grace_millis > 0,
            State::Stopping { .. } => true,
            // As far as is known yet.
            State::Recovering { was, .. } => grace_millis > 0 && can_be_asked(was),
            _ => false,
        }
    }

    /// Asks it to end within so long, or shortens the time that it has.
    fn end_in_its_time(&mut self, grace_millis: u64) {
        match self.state {
            State::Stopping { .. } => self.shorten_grace(grace_millis),
            State::Recovering { .. } => self.ask_once_found(grace_millis),
            _ => self.begin_asking(grace_millis),
        }
    }

    /// The end that was reported of what is only now being started.
    fn known_exit(&self) -> Option<Exit> {
        match self.state {
            State::Starting { exit, .. } => exit.map(|(exit, _)| exit),
            _ => None,
        }
    }

    /// A stop is under way and somebody asks for another: the shorter grace holds.
    fn shorten_grace(&mut self, grace_millis: u64) {
        let asked = BootMillis(self.now.0.saturating_add(grace_millis));
        let State::Stopping { step, exit } = self.state else { return };
        match step {
            Ending::Asking { .. } | Ending::Waiting { .. } if grace_millis == 0 => {
                self.cancel();
                self.begin_killing(exit);
            }
            Ending::Asking { op, until } => {
                self.enter(State::Stopping { step: Ending::Asking { op, until: until.min(asked) }, exit });
            }
            Ending::Waiting { until } => {
                self.enter(State::Stopping { step: Ending::Waiting { until: until.min(asked) }, exit });
            }
            Ending::Killing { .. } => {}
            Ending::Retrying { .. } => self.begin_killing(exit),
        }
    }

    fn operation_ended(&mut self, op: OpId, failed: bool) {
        match self.state {
            State::Clearing { next, .. } if !failed => self.begin_creating(next),
            State::Clearing { exit, .. } => {
                self.fail_all_but_ends(Cause::Operation(op));
                self.enter(State::Stopped { exit });
            }
            State::Creating { .. } | State::Starting { .. } if failed => {
                self.begin_deleting(self.then_after_failure(), Some(op));
            }
            State::Creating { .. } => {
                if self.goals.start.is_some() {
                    self.begin_starting();
                } else {
                    self.enter(State::Created);
                }
                self.settle(|goals| &mut goals.create, Outcome::Done);
            }
            State::Starting { exit, .. } => {
                self.has_run();
                self.enter(State::Running);
                self.settle(|goals| &mut goals.start, Outcome::Done);
                if let Some((exit, all_ended)) = exit {
                    self.ended_early(exit, all_ended);
                }
            }
            State::Pausing { .. } if failed => self.begin_withdrawing(op),
            State::Pausing { .. } => {
                self.enter(State::Paused);
                self.settle(|goals| &mut goals.pause, Outcome::Done);
            }
            State::Withdrawing { cause, .. } => {
                // It may still be frozen, in part, if it could not be thawed: that is for a Resume or a Shutdown to end.
                self.enter(if failed { State::Paused } else { State::Running });
                self.settle(|goals| &mut goals.pause, Outcome::Failed(Cause::Operation(cause)));
            }
            State::Resuming { .. } => {
                let outcome = if failed { Outcome::Failed(Cause::Operation(op)) } else { Outcome::Done };
                self.enter(if failed { State::Paused } else { State::Running });
                self.settle(|goals| &mut goals.resume, outcome);
            }
            State::Stopping { step, exit } => self.stopping_ended(op, failed, step, exit),
            State::Deleting { then, undone, .. } => self.deleting_ended(op, failed, then, undone),
            State::Recovering { until, exit, .. } if until.is_some() || self.is_to_end() => {
                // What cannot be found out can still be ended.
                self.begin_killing(exit);
            }
            State::Recovering { was, exit, .. } => {
                let at = self.retry_at();
                self.enter(State::Recovering { step: Removing::Retrying { at }, was, until: None, exit });
            }
            _ => {}
        }
    }

    fn stopping_ended(&mut self, op: OpId, failed: bool, step: Ending, exit: Option<Exit>) {
        match step {
            Ending::Asking { until, .. } if !failed => {
                self.enter(State::Stopping { step: Ending::Waiting { until }, exit });
            }
            Ending::Asking { .. } => self.begin_killing(exit),
            _ if !failed => {
                let exit = exit.unwrap_or_else(|| self.current.unreported_exit());
                self.ended(exit);
            }
            _ if self.goals.shutdown.is_some() => {
                // What could not be killed cannot be deleted either, most likely; but to delete is what was asked for.
                self.begin_deleting(Then::Gone, None);
            }
            _ => {
                let at = self.retry_at();
                self.enter(State::Stopping { step: Ending::Retrying { at }, exit });
                self.settle(|goals| &mut goals.stop, Outcome::Failed(Cause::Operation(op)));
            }
        }
    }

    fn deleting_ended(&mut self, op: OpId, failed: bool, then: Then, undone: Option<OpId>) {
        if let Some(undone) = undone {
            self.fail_all_but_ends(Cause::Operation(undone));
        }
        let outcome = if failed { Outcome::Failed(Cause::Operation(op)) } else { Outcome::Done };
        if failed {
            let at = self.retry_at();
            self.enter(State::Deleting { step: Removing::Retrying { at }, then, undone: None });
        } else {
            self.tell(self.current.unreported_exit());
            self.enter(match then {
                Then::Gone => State::Gone,
                Then::Defined => State::Defined,
            });
        }
        self.settle(|goals| &mut goals.stop, outcome);
        self.settle(|goals| &mut goals.shutdown, outcome);
    }

    fn exited(&mut self, exit: Exit, all_ended: bool) {
        match self.state {
            State::Starting { op, exit: None } => {
                self.enter(State::Starting { op, exit: Some((exit, all_ended)) });
            }
            State::Running
            | State::Pausing { .. }
            | State::Withdrawing { .. }
            | State::Paused
            | State::Resuming { .. } => self.ended_early(exit, all_ended),
            State::Recovering { was, .. } if was >= Phase::Starting && was < Phase::Deleting => {
                self.has_run();
                self.ended_early(exit, all_ended);
            }
            State::Stopping { step: Ending::Killing { op }, exit: known } => {
                let exit = known.or(Some(exit));
                self.enter(State::Stopping { step: Ending::Killing { op }, exit });
            }
            State::Stopping { exit: None, .. } => self.ended_early(exit, all_ended),
            State::Stopping { exit: Some(known), .. } if all_ended => self.ended(known),
            State::Deleting { .. } => self.tell(exit),
            _ => {}
        }
    }

    fn due(&mut self) {
        match self.state {
            State::Stopping { exit, .. } => {
                self.cancel();
                self.begin_killing(exit);
            }
            State::Deleting { then, undone, .. } => self.begin_deleting(then, undone),
            State::Recovering { was: Phase::Deleting | Phase::Stopped, .. } => {
                self.begin_deleting(self.then_after_failure(), None);
            }
            State::Recovering { was: Phase::Stopping, until: None, exit, .. } => self.begin_killing(exit),
            State::Recovering { was, until, .. } => self.begin_searching(was, until),
            _ => {}
        }
    }
}

#[cfg(test)]
impl Lifecycle {
    /// Renumbers operations in the order in which they appear, and lives likewise, so that lifecycles that differ in
    /// nothing else are equal and the search of all of them ends.
    pub(super) fn canonical(&self) -> Self {
        let mut names: Vec<(OpId, OpId)> = Vec::new();
        let mut next = self.clone();
        let mut rename = |op: &mut OpId| {
            let known = names.iter().find(|(old, _)| old == op).map(|(_, new)| *new);
            let new = known.unwrap_or_else(|| {
                let new = OpId(names.len() as u64 + 1);
                names.push((*op, new));
                new
            });
            *op = new;
        };
        match &mut next.state {
            State::Withdrawing { op, cause } => {
                rename(op);
                rename(cause);
            }
            State::Clearing { op, .. }
            | State::Creating { op }
            | State::Starting { op, .. }
            | State::Pausing { op }
            | State::Resuming { op }
            | State::Stopping { step: Ending::Asking { op, .. } | Ending::Killing { op }, .. }
            | State::Recovering { step: Removing::Under { op }, .. } => rename(op),
            State::Deleting { step, undone, .. } => {
                if let Removing::Under { op } = step {
                    rename(op);
                }
                undone.iter_mut().for_each(&mut rename);
            }
            _ => {}
        }
        next.goals.all().into_iter().flatten().for_each(&mut rename);
        next.next_op = names.len() as u64 + 1;
        if next.current.life != Life(0) {
            next.current.life = Life(1);
        }
        if let State::Clearing { next: following, .. } = &mut next.state {
            *following = Life(2);
        }
        next
    }

    /// The operation under way.
    pub(super) fn op(&self) -> Option<OpId> {
        self.state.op()
    }

    /// Moves what is due to where it would be if it had been armed at this moment.
    pub(super) fn at_moment_of(&self, now: BootMillis) -> Self {
        let mut next = self.clone();
        let again = BootMillis(now.0 + super::state::RETRY_MILLIS);
        match &mut next.state {
            State::Stopping { step: Ending::Retrying { at }, .. }
            | State::Deleting { step: Removing::Retrying { at }, .. }
            | State::Recovering { step: Removing::Retrying { at }, .. } => *at = again,
            _ => {}
        }
        next
    }

    /// The moment something is due.
    pub(super) fn deadline(&self) -> Option<BootMillis> {
        self.state.deadline()
    }

    /// Everything somebody waits for.
    pub(super) fn waited_for(&self) -> Vec<OpId> {
        let mut goals = self.goals;
        goals.all().into_iter().filter_map(|goal| *goal).collect()
    }

    /// Whether those who wait for the end of the current life have yet to be told.
    pub(super) fn is_open(&self) -> bool {
        self.current.open
    }
}
