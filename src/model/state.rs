//! What the machine remembers, and the turn that makes the next value of it.

use super::{BootMillis, Cause, Effect, Exit, ExitReason, Life, OpId, Operation, Outcome, Phase};

/// How long after a failed end or search the next try begins.
pub(super) const RETRY_MILLIS: u64 = 1_000;

/// A phase with what must be remembered in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    Defined,
    /// A stopped life's remains are removed, so that `next` can begin.
    Clearing {
        op: OpId,
        exit: Exit,
        next: Life,
    },
    Creating {
        op: OpId,
    },
    Created,
    /// The exit may be reported before the start is.
    Starting {
        op: OpId,
        exit: Option<(Exit, bool)>,
    },
    Running,
    Pausing {
        op: OpId,
    },
    /// The pause `cause` failed; the thaw `op` withdraws it.
    Withdrawing {
        op: OpId,
        cause: OpId,
    },
    Paused,
    Resuming {
        op: OpId,
    },
    Stopping {
        step: Ending,
        exit: Option<Exit>,
    },
    Stopped {
        exit: Exit,
    },
    /// `undone` is the operation whose failure is being undone, if that is why.
    Deleting {
        step: Removing,
        then: Then,
        undone: Option<OpId>,
    },
    /// What exists is being found out. If a stop is under way, it may end by itself `until` then; `exit` is how its leader
    /// ended, where only the rest of it was still to be ended.
    Recovering {
        step: Removing,
        was: Phase,
        until: Option<BootMillis>,
        exit: Option<Exit>,
    },
    Gone,
}

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    /// It is asked to end, and has until then.
    Asking { op: OpId, until: BootMillis },
    /// It was asked, and has until then.
    Waiting { until: BootMillis },
    /// It is made to end.
    Killing { op: OpId },
    /// It could not be made to end; the next try is due then.
    Retrying { at: BootMillis },
}

/// How far a removal, or a search, has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Removing {
    Under { op: OpId },
    Retrying { at: BootMillis },
}

/// What follows a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Then {
    Gone,
    Defined,
}

impl State {
    pub(super) fn phase(&self) -> Phase {
        match self {
            State::Defined => Phase::Defined,
            State::Creating { .. } => Phase::Creating,
            State::Created => Phase::Created,
            State::Starting { .. } => Phase::Starting,
            State::Running => Phase::Running,
            State::Pausing { .. } | State::Withdrawing { .. } => Phase::Pausing,
            State::Paused => Phase::Paused,
            State::Resuming { .. } => Phase::Resuming,
            State::Stopping { .. } => Phase::Stopping,
            // The next life has not begun while the last one's remains are removed.
            State::Clearing { .. } | State::Stopped { .. } => Phase::Stopped,
            State::Deleting { .. } => Phase::Deleting,
            State::Recovering { was, .. } => *was,
            State::Gone => Phase::Gone,
        }
    }

    /// The operation under way.
    pub(super) fn op(&self) -> Option<OpId> {
        match *self {
            State::Clearing { op, .. }
            | State::Creating { op }
            | State::Starting { op, .. }
            | State::Pausing { op }
            | State::Withdrawing { op, .. }
            | State::Resuming { op }
            | State::Stopping { step: Ending::Asking { op, .. } | Ending::Killing { op }, .. }
            | State::Deleting { step: Removing::Under { op }, .. }
            | State::Recovering { step: Removing::Under { op }, .. } => Some(op),
            _ => None,
        }
    }

    /// The moment something is due.
    pub(super) fn deadline(&self) -> Option<BootMillis> {
        match *self {
            State::Stopping { step: Ending::Asking { until, .. } | Ending::Waiting { until }, .. } => {
                Some(until)
            }
            State::Stopping { step: Ending::Retrying { at }, .. }
            | State::Deleting { step: Removing::Retrying { at }, .. }
            | State::Recovering { step: Removing::Retrying { at }, .. } => Some(at),
            _ => None,
        }
    }
}

/// What callers wait for. Everybody who waits for the same thing waits under the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Goals {
    pub(super) create: Option<OpId>,
    pub(super) start: Option<OpId>,
    pub(super) pause: Option<OpId>,
    pub(super) resume: Option<OpId>,
    pub(super) stop: Option<OpId>,
    pub(super) shutdown: Option<OpId>,
}

impl Goals {
    pub(super) fn all(&mut self) -> [&mut Option<OpId>; 6] {
        let Self { create, start, pause, resume, stop, shutdown } = self;
        [create, start, pause, resume, stop, shutdown]
    }
}

/// The life in question, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Current {
    /// Its number; 0 if there has been none.
    pub(super) life: Life,
    /// Whether those who wait for its end have yet to be told.
    pub(super) open: bool,
    /// Whether its leader ran.
    pub(super) ran: bool,
}

impl Current {
    /// What to say of a life whose end nobody reported.
    pub(super) fn unreported_exit(&self) -> Exit {
        let reason = if self.ran { ExitReason::Lost } else { ExitReason::NeverRan };
        Exit { reason, at_unix_nanos: 0 }
    }
}

/// A turn of the machine: the next value, and what leads there.
pub(super) struct Turn {
    pub(super) state: State,
    pub(super) goals: Goals,
    pub(super) current: Current,
    pub(super) next_op: u64,
    pub(super) kept: bool,
    pub(super) effects: Vec<Effect>,
    pub(super) now: BootMillis,
}

impl Turn {
    /// Enters a state: publishes a change of phase, and arms or disarms what is due.
    pub(super) fn enter(&mut self, state: State) {
        let (phase, deadline) = (self.state.phase(), self.state.deadline());
        self.state = state;
        if self.state.phase() != phase {
            self.effects.push(Effect::Publish(self.state.phase()));
        }
        match self.state.deadline() {
            Some(at) if deadline != Some(at) => self.effects.push(Effect::Arm(at)),
            None if deadline.is_some() => self.effects.push(Effect::Disarm),
            _ => {}
        }
    }

    pub(super) fn fresh(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }

    /// Enters a state and begins the operation that it waits for. Publishing comes first: nobody may see an effect of an
    /// operation before the phase it belongs to.
    fn begin(&mut self, operation: Operation, life: Life, state: impl FnOnce(OpId) -> State) {
        let op = self.fresh();
        self.enter(state(op));
        self.effects.push(Effect::Begin { op, operation, life });
    }

    pub(super) fn cancel(&mut self) {
        if let Some(op) = self.state.op() {
            self.effects.push(Effect::Cancel(op));
        }
    }

    pub(super) fn settle(&mut self, goal: impl FnOnce(&mut Goals) -> &mut Option<OpId>, outcome: Outcome) {
        if let Some(op) = goal(&mut self.goals).take() {
            self.effects.push(Effect::Settle(op, outcome));
        }
    }

    /// Settles everybody who waits for the instance to do something other than end.
    pub(super) fn fail_all_but_ends(&mut self, cause: Cause) {
        let failed = Outcome::Failed(cause);
        self.settle(|goals| &mut goals.create, failed);
        self.settle(|goals| &mut goals.start, failed);
        self.settle(|goals| &mut goals.pause, failed);
        self.settle(|goals| &mut goals.resume, failed);
    }

    /// Tells those who wait for the end of the current life, if they have yet to be told.
    pub(super) fn tell(&mut self, exit: Exit) {
        if std::mem::take(&mut self.current.open) {
            self.effects.push(Effect::Tell(self.current.life, exit));
        }
    }

    /// The leader of this life runs, or did. What has been of use stays, whatever comes of a later start.
    pub(super) fn has_run(&mut self) {
        self.current.ran = true;
        self.kept = true;
    }

    pub(super) fn begin_creating(&mut self, life: Life) {
        self.current = Current { life, open: true, ran: false };
        self.begin(Operation::Create, life, |op| State::Creating { op });
    }

    pub(super) fn begin_clearing(&mut self, exit: Exit, next: Life) {
        self.begin(Operation::Delete, self.current.life, |op| State::Clearing { op, exit, next });
    }

    pub(super) fn begin_starting(&mut self) {
        self.begin(Operation::Start, self.current.life, |op| State::Starting { op, exit: None });
    }

    pub(super) fn begin_pausing(&mut self) {
        self.begin(Operation::Pause, self.current.life, |op| State::Pausing { op });
    }

    pub(super) fn begin_withdrawing(&mut self, cause: OpId) {
        self.begin(Operation::Resume, self.current.life, |op| State::Withdrawing { op, cause });
    }

    pub(super) fn begin_resuming(&mut self) {
        self.begin(Operation::Resume, self.current.life, |op| State::Resuming { op });
    }

    pub(super) fn begin_asking(&mut self, grace_millis: u64) {
        self.begin_asking_until(BootMillis(self.now.0.saturating_add(grace_millis)));
    }

    pub(super) fn begin_asking_until(&mut self, until: BootMillis) {
        self.begin(Operation::Ask, self.current.life, |op| State::Stopping {
            step: Ending::Asking { op, until },
            exit: None,
        });
    }

    pub(super) fn begin_killing(&mut self, exit: Option<Exit>) {
        self.begin(Operation::Kill, self.current.life, |op| State::Stopping {
            step: Ending::Killing { op },
            exit,
        });
    }

    pub(super) fn begin_deleting(&mut self, then: Then, undone: Option<OpId>) {
        self.begin(Operation::Delete, self.current.life, |op| State::Deleting {
            step: Removing::Under { op },
            then,
            undone,
        });
    }

    pub(super) fn begin_searching(&mut self, was: Phase, until: Option<BootMillis>) {
        self.begin(Operation::Reattach, self.current.life, |op| State::Recovering {
            step: Removing::Under { op },
            was,
            until,
            exit: None,
        });
    }

    /// Where a start that came to nothing leads.
    pub(super) fn then_after_failure(&self) -> Then {
        if self.kept && self.goals.shutdown.is_none() { Then::Defined } else { Then::Gone }
    }

    pub(super) fn retry_at(&self) -> BootMillis {
        BootMillis(self.now.0.saturating_add(RETRY_MILLIS))
    }

    /// Nothing of the instance runs any more.
    pub(super) fn ended(&mut self, exit: Exit) {
        if self.goals.shutdown.is_some() {
            self.tell(exit);
            self.begin_deleting(Then::Gone, None);
        } else {
            // Published first: whoever is told of the end, and looks, must see it stopped.
            self.enter(State::Stopped { exit });
            self.tell(exit);
            self.settle(|goals| &mut goals.stop, Outcome::Done);
        }
    }

    /// The instance ended by itself, or somebody outside ended it.
    pub(super) fn ended_early(&mut self, exit: Exit, all_ended: bool) {
        self.cancel();
        self.fail_all_but_ends(Cause::Exited(exit));
        if all_ended {
            self.ended(exit);
        } else {
            self.begin_killing(Some(exit));
        }
    }
}
