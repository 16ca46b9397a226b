//! What may be true of a sandbox after what was asked of it, by a model that is far simpler than the real machine.
//!
//! A sandbox has a [`State`]. Every answered command has taken effect at one moment between its call and its answer; one that
//! failed, or whose answer was lost with the daemon, may have taken effect in full, in part, or not at all, and one that was
//! lost may still do so later, when the next daemon goes on with it. So what is known is a set of states: an acknowledged
//! command narrows it, a lost one widens it, and those under way at the same time are tried in every order.

use std::collections::BTreeSet;

/// What a sandbox is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Gone,
    Defined,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Stage {
    /// The stage of a phase; nothing for one in which something is under way.
    pub(crate) fn of_phase(phase: &str) -> Option<Self> {
        Some(match phase {
            "defined" => Self::Defined,
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "stopped" => Self::Stopped,
            _ => return None,
        })
    }

    /// Whether a leader is there.
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What may be known of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) stage: Stage,
    /// Whether its definition stays when a start fails.
    pub(crate) kept: bool,
    /// The life that runs or ran; nothing where any is possible.
    pub(crate) life: Option<u64>,
}

impl State {
    pub(crate) const GONE: Self = Self { stage: Stage::Gone, kept: false, life: None };

    fn to(self, stage: Stage) -> Self {
        match stage {
            Stage::Gone => Self::GONE,
            Stage::Defined => Self { stage, life: None, ..self },
            _ => Self { stage, ..self },
        }
    }

    /// What is left when a start or create is undone.
    fn undone(self) -> Self {
        self.to(if self.kept { Stage::Defined } else { Stage::Gone })
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Define,
    /// Create, with a spec.
    Prepare,
    Create,
    /// Start, with a spec.
    Run,
    Start,
    Pause,
    Resume,
    Stop,
    Shutdown,
}

/// How it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done. Of a start, the life that runs and its leader.
    Done(Option<(u64, u32)>),
    /// It was refused, and nothing has changed.
    Refused(String),
    /// It failed while the daemon was there: it may have been done in part, and not later than this.
    Failed(String),
    /// The answer is missing, and it may still be done.
    Lost(String),
}

/// How a mortal one may go on by itself: it ends.
pub(crate) fn by_itself(states: &mut Vec<State>, mortal: bool) {
    if mortal {
        let ended =
            states.iter().filter(|state| state.stage == Stage::Running).map(|state| state.to(Stage::Stopped));
        states.extend(ended.collect::<Vec<_>>());
    }
}

/// What a command leads to that was acknowledged; nothing where it could not have been.
fn done(verb: Verb, state: State, life: Option<u64>) -> Option<State> {
    use Stage::*;
    // What has run stays, whatever comes of a later start.
    let begun = |stage| State { stage, life, kept: state.kept || stage == Running };
    Some(match (verb, state.stage) {
        (Verb::Define, Gone) => State { stage: Defined, kept: true, life: None },
        (Verb::Define, _) => State { kept: true, ..state },
        (Verb::Create, Gone) => return None,
        // One that came in the middle of a start joined it, and was answered when that had created it.
        (Verb::Create, Running | Paused) => state,
        (Verb::Prepare, Running | Paused) => State { kept: true, ..state },
        (Verb::Prepare, Created) => State { kept: true, ..state },
        (Verb::Prepare, _) => State { stage: Created, kept: true, life: None },
        (Verb::Create, Created) => state,
        (Verb::Create, _) => begun(Created),
        (Verb::Start, Gone) => return None,
        (Verb::Run | Verb::Start, Running | Paused) => match (state.life, life) {
            (Some(was), Some(is)) if was != is => return None,
            (was, is) => State { life: is.or(was), ..state },
        },
        (Verb::Run | Verb::Start, _) => begun(Running),
        (Verb::Pause, Running | Paused) => state.to(Paused),
        (Verb::Resume, Running | Paused) => state.to(Running),
        (Verb::Pause | Verb::Resume, _) => return None,
        (Verb::Stop, Gone | Defined | Stopped) => state,
        (Verb::Stop, _) => state.to(Stopped),
        (Verb::Shutdown, _) => State::GONE,
    })
}

/// All that a command may lead to.
fn after(verb: Verb, outcome: &Outcome, state: State) -> Vec<State> {
    let life = match outcome {
        Outcome::Refused(_) => return vec![state],
        Outcome::Done(started) => {
            return done(verb, state, started.map(|(life, _)| life)).into_iter().collect();
        }
        Outcome::Failed(_) | Outcome::Lost(_) => None,
    };
    let mut states = vec![state];
    states.extend(done(verb, state, life));
    match (verb, state.stage) {
        // What it is to be was noted first.
        (Verb::Prepare, stage) if stage.is_alive() => states.push(State { kept: true, ..state }),
        (Verb::Prepare, _) => {
            states.extend([
                state.undone(),
                State { kept: true, ..state }.undone(),
                State { kept: true, ..state },
            ]);
            states.retain(|state| state.stage != Stage::Gone || !state.kept);
        }
        (Verb::Create | Verb::Run | Verb::Start, stage) if !stage.is_alive() => states.push(state.undone()),
        (Verb::Stop | Verb::Shutdown, Stage::Created) => {
            states.extend([state.undone(), state.to(Stage::Stopped)])
        }
        (Verb::Shutdown, stage) if stage.is_alive() => states.push(state.to(Stage::Stopped)),
        _ => {}
    }
    states
}

/// One command and what came of it; moments are numbers in the order in which they came.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) verb: Verb,
    pub(crate) outcome: Outcome,
    pub(crate) called: u64,
    pub(crate) answered: u64,
}

/// More ways than that are not tried.
const MOST: usize = 50_000;

/// What may be true after these steps: they are gone through in the order of time, and each may take effect at any moment
/// from its call to its answer. Nothing if there are too many ways.
pub(crate) fn possible(from: &BTreeSet<State>, steps: &[Step], mortal: bool) -> Option<BTreeSet<State>> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, step) in
        steps.iter().enumerate().filter(|(_, step)| !matches!(step.outcome, Outcome::Refused(_)))
    {
        moments.push((step.called, false, index));
        if !matches!(step.outcome, Outcome::Lost(_)) {
            moments.push((step.answered, true, index));
        }
    }
    moments.sort();
    // Each: a state, and the steps that were called and have not taken effect.
    let mut ways: BTreeSet<(State, Vec<usize>)> = BTreeSet::new();
    for state in from {
        let mut states = vec![*state];
        by_itself(&mut states, mortal);
        ways.extend(states.into_iter().map(|state| (state, Vec::new())));
    }
    for (_, is_answer, index) in moments {
        if is_answer {
            ways = all_orders(ways, steps, mortal)?;
            ways.retain(|(_, open)| !open.contains(&index));
        } else {
            let called = |(state, mut open): (State, Vec<usize>)| {
                open.push(index);
                (state, open)
            };
            ways = ways.into_iter().map(called).collect();
        }
        if ways.is_empty() {
            break;
        }
    }
    Some(all_orders(ways, steps, mortal)?.into_iter().map(|(state, _)| state).collect())
}

fn joins(step: &Step) -> bool {
    matches!(step.verb, Verb::Create | Verb::Prepare) && matches!(step.outcome, Outcome::Done(_))
}

fn may_be_undone(step: &Step) -> bool {
    matches!(step.verb, Verb::Run | Verb::Start) && !matches!(step.outcome, Outcome::Done(_))
}

/// Lets every open step take effect, or not yet, in every order.
fn all_orders(
    ways: BTreeSet<(State, Vec<usize>)>,
    steps: &[Step],
    mortal: bool,
) -> Option<BTreeSet<(State, Vec<usize>)>> {
    let mut all = ways.clone();
    let mut fresh: Vec<_> = ways.into_iter().collect();
    while let Some((state, open)) = fresh.pop() {
        for (place, index) in open.iter().enumerate() {
            let mut left = open.clone();
            left.remove(place);
            let mut states = after(steps[*index].verb, &steps[*index].outcome, state);
            if joins(&steps[*index]) && left.iter().any(|open| may_be_undone(&steps[*open])) {
                // It was acknowledged in the middle of a start, which is undone as a whole if it does not come about.
                let kept = state.kept || steps[*index].verb == Verb::Prepare && state.stage != Stage::Gone;
                states.push(State { kept, ..state });
            }
            by_itself(&mut states, mortal);
            for state in states {
                let way = (state, left.clone());
                if all.insert(way.clone()) {
                    fresh.push(way);
                }
            }
        }
        if all.len() > MOST {
            return None;
        }
    }
    Some(all)
}

/// Whether what was found is among what is possible.
pub(crate) fn matching(possible: &BTreeSet<State>, stage: Stage, life: u64) -> BTreeSet<State> {
    let is_meant = |state: &&State| {
        let lives =
            matches!(stage, Stage::Gone | Stage::Defined) || state.life.is_none_or(|known| known == life);
        state.stage == stage && lives
    };
    let found = Some(life).filter(|_| !matches!(stage, Stage::Gone | Stage::Defined));
    possible.iter().filter(is_meant).map(|state| State { life: found, ..*state }).collect()
}

/// The model itself is tried on what it must and must not find possible, each time the tool runs: a check that never fails is
/// worth nothing.
pub(crate) fn try_itself() {
    let step = |verb, outcome, called, answered| Step { verb, outcome, called, answered };
    let acked = || Outcome::Done(None);
    let lost = || Outcome::Lost(String::new());
    let run = |life| Outcome::Done(Some((life, 100)));
    let stages = |steps: &[Step]| -> BTreeSet<Stage> {
        let states = possible(&BTreeSet::from([State::GONE]), steps, false).expect("few ways");
        states.into_iter().map(|state| state.stage).collect()
    };
    let set = |stages: &[Stage]| stages.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(stages(&[step(Verb::Define, acked(), 1, 2)]), set(&[Stage::Defined]));
    assert_eq!(stages(&[step(Verb::Run, lost(), 1, 2)]), set(&[Stage::Gone, Stage::Running]));
    let started = step(Verb::Run, run(7), 1, 2);
    assert_eq!(stages(&[started.clone(), step(Verb::Pause, acked(), 3, 4)]), set(&[Stage::Paused]));
    let both = [started.clone(), step(Verb::Pause, acked(), 3, 6), step(Verb::Resume, acked(), 4, 5)];
    assert_eq!(stages(&both), set(&[Stage::Running, Stage::Paused]), "at the same time, in any order");
    let after = [started.clone(), step(Verb::Pause, acked(), 3, 4), step(Verb::Resume, acked(), 5, 6)];
    assert_eq!(stages(&after), set(&[Stage::Running]), "one after the other");
    let ended = [started.clone(), step(Verb::Stop, lost(), 3, 4), step(Verb::Shutdown, acked(), 5, 6)];
    assert_eq!(stages(&ended), set(&[Stage::Gone]));
    let joined =
        [step(Verb::Run, lost(), 1, 9), step(Verb::Create, acked(), 2, 3), step(Verb::Define, acked(), 4, 5)];
    assert_eq!(stages(&joined), set(&[Stage::Defined, Stage::Running]));
    let states = possible(&BTreeSet::from([State::GONE]), &[started], false).expect("few ways");
    assert!(
        matching(&states, Stage::Running, 8).is_empty(),
        "another life is not the one that was acknowledged"
    );
    assert!(!matching(&states, Stage::Running, 7).is_empty());
}
