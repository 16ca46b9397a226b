//! What is kept of a lifecycle beyond the end of its supervisor or its owner, and how it goes on from there.

use super::state::{Current, Ending, Goals, Removing, State, Then, Turn};
use super::{BootMillis, Cause, Effect, Exit, ExitReason, Found, Life, Lifecycle, OpId, Outcome, Phase};

/// A lifecycle as it is written down.
///
/// It says what was going on, not what exists: what an operation came to, its supervisor may not have lived to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// The phase; never `Gone`.
    pub phase: Phase,
    /// The life that runs or ran last; 0 if there has been none.
    pub life: Life,
    /// Whether that life's leader is known to have run.
    pub ran: bool,
    /// Whether a start that fails leaves the definition.
    pub kept: bool,
    /// Whether a Shutdown is under way.
    pub shutdown: bool,
    /// How the life ended, where that is known.
    pub exit: Option<Exit>,
    /// Until when it may take to end by itself, if a stop is under way and it has been asked.
    pub until: Option<BootMillis>,
}

impl Lifecycle {
    /// What is to be written down, so that [`restored`](Self::restored) can go on from there; nothing once it is gone, nor
    /// before it was begun if it exists for the sake of a start.
    pub fn record(&self) -> Option<Record> {
        if self.state == State::Gone || self.state == State::Defined && !self.kept {
            return None;
        }
        let (exit, until) = match self.state {
            State::Stopped { exit } | State::Clearing { exit, .. } => (Some(exit), None),
            State::Stopping { step: Ending::Asking { until, .. } | Ending::Waiting { until }, exit } => {
                (exit, Some(until))
            }
            State::Stopping { exit, .. } => (exit, None),
            State::Recovering { exit, until, .. } => (exit, until),
            _ => (None, None),
        };
        let Current { life, ran, .. } = self.current;
        let shutdown =
            self.goals.shutdown.is_some() || matches!(self.state, State::Deleting { then: Then::Gone, .. });
        Some(Record { phase: self.phase(), life, ran, kept: self.kept, shutdown, exit, until })
    }

    /// A lifecycle as its supervisor left it, to be gone on with: what it was about to become is found out when
    /// [`Due`](super::Observation::Due) is observed. What rests needs no finding out.
    pub fn restored(record: &Record) -> Self {
        let Record { phase, life, ran, kept, shutdown, exit, until } = *record;
        let lost = Exit { reason: ExitReason::Lost, at_unix_nanos: 0 };
        let state = match phase {
            Phase::Defined => State::Defined,
            Phase::Gone => State::Gone,
            Phase::Stopped if !shutdown => State::Stopped { exit: exit.unwrap_or(lost) },
            was => State::Recovering { step: Removing::Retrying { at: BootMillis(0) }, was, until, exit },
        };
        // Nobody waits for it any more, and it is to be done all the same.
        let to_shut_down = Some(OpId(1)).filter(|_| shutdown && phase != Phase::Gone);
        let goals = Goals { shutdown: to_shut_down, ..Goals::default() };
        let open = !matches!(phase, Phase::Defined | Phase::Stopped | Phase::Gone);
        Self { state, goals, current: Current { life, open, ran }, next_op: 2, kept: kept || ran }
    }
}

/// Whether what was in this phase can act on a request to end.
pub(super) fn can_be_asked(was: Phase) -> bool {
    matches!(was, Phase::Running | Phase::Stopping)
}

impl Turn {
    /// It is to end, and may well run: it is asked to as soon as that is known.
    pub(super) fn ask_once_found(&mut self, grace_millis: u64) {
        let State::Recovering { step, was, until, exit } = self.state else { return };
        let asked = BootMillis(self.now.0.saturating_add(grace_millis));
        let until = Some(until.map_or(asked, |until| until.min(asked)));
        match step {
            Removing::Under { .. } => self.enter(State::Recovering { step, was, until, exit }),
            Removing::Retrying { .. } => self.begin_searching(was, until),
        }
    }

    /// Whether somebody wants it to end.
    pub(super) fn is_to_end(&self) -> bool {
        self.goals.stop.is_some() || self.goals.shutdown.is_some()
    }

    pub(super) fn owner_lost(&mut self) {
        self.cancel();
        for goal in self.goals.all() {
            if let Some(op) = goal.take() {
                self.effects.push(Effect::Settle(op, Outcome::Failed(Cause::OwnerLost)));
            }
        }
        match self.state {
            State::Defined | State::Stopped { .. } | State::Gone => {}
            State::Clearing { exit, .. } => self.enter(State::Stopped { exit }),
            State::Stopping { exit, .. } => self.begin_killing(exit),
            State::Deleting { then, .. } => self.begin_deleting(then, None),
            State::Recovering { was: Phase::Deleting, .. } => {
                self.begin_deleting(self.then_after_failure(), None)
            }
            State::Recovering { was: Phase::Stopping, exit, .. } => self.begin_killing(exit),
            state => self.begin_searching(state.phase(), None),
        }
    }

    pub(super) fn found(&mut self, found: Found) {
        let State::Recovering { was, until, .. } = self.state else { return };
        let to_end = until.is_some() || self.is_to_end();
        match found {
            Found::Running { frozen } if to_end => {
                self.has_run();
                match until {
                    Some(until) if !frozen && until > self.now => self.begin_asking_until(until),
                    _ => self.begin_killing(None),
                }
            }
            Found::Created if to_end => self.begin_killing(None),
            Found::Running { .. } if was == Phase::Pausing => {
                // A freeze may be on its way still, whatever is seen now: thaw, to be sure.
                self.has_run();
                self.begin_resuming();
            }
            Found::Running { frozen } => {
                self.has_run();
                self.enter(if frozen { State::Paused } else { State::Running });
            }
            Found::Ended(exit) => {
                self.has_run();
                self.ended(exit);
            }
            Found::Created if was == Phase::Created => self.enter(State::Created),
            Found::Absent if self.current.ran => self.ended(self.current.unreported_exit()),
            // A create or start that its owner did not live to see through.
            Found::Created | Found::Absent => self.begin_deleting(self.then_after_failure(), None),
        }
    }
}
