//! Searches the machine's whole bounded world: every state that any order of commands, completions, failures, exits,
//! deadlines and lost owners can reach.

use std::collections::{HashMap, VecDeque};

use super::*;

pub(super) const NOW: BootMillis = BootMillis(1_000);
const LATER: BootMillis = BootMillis(1_000_000);
const EXIT: Exit = Exit { reason: ExitReason::Exited(3), at_unix_nanos: 1 };

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Move {
    Command(Command),
    Observe(Observation),
}

/// What came of it.
pub(super) struct Edge {
    pub(super) from: Lifecycle,
    pub(super) what: Move,
    pub(super) to: Lifecycle,
    pub(super) effects: Vec<Effect>,
    pub(super) answer: Option<Answer>,
}

/// Everything that can happen to a lifecycle.
fn moves(lifecycle: &Lifecycle) -> Vec<Move> {
    let fresh = Life(lifecycle.life().0 + 1);
    let commands = [
        Command::Define,
        Command::Create { life: fresh },
        Command::Start { life: fresh },
        Command::Pause,
        Command::Resume,
        Command::Stop { grace_millis: 0 },
        Command::Stop { grace_millis: 10 },
        Command::Shutdown { grace_millis: 0 },
        Command::Shutdown { grace_millis: 10 },
    ];
    let mut moves: Vec<Move> = commands.into_iter().map(Move::Command).collect();
    let mut observe = |observation| moves.push(Move::Observe(observation));
    observe(Observation::Due);
    observe(Observation::OwnerLost);
    for all_ended in [false, true] {
        observe(Observation::Exited { life: lifecycle.life(), exit: EXIT, all_ended });
    }
    if let Some(op) = lifecycle.op() {
        observe(Observation::Ended { op, failed: true });
        if lifecycle.is_recovering() {
            let running = [false, true].map(|frozen| Found::Running { frozen });
            for found in [Found::Absent, Found::Created, Found::Ended(EXIT)].into_iter().chain(running) {
                observe(Observation::Found { op, found });
            }
        } else {
            observe(Observation::Ended { op, failed: false });
        }
    }
    moves
}

fn take(from: &Lifecycle, what: Move) -> Option<Edge> {
    let (to, effects, answer) = match what {
        Move::Command(command) => {
            let (to, effects, answer) = from.command(command, NOW).ok()?;
            (to, effects, Some(answer))
        }
        Move::Observe(observation) => {
            let now = if observation == Observation::Due { LATER } else { NOW };
            let (to, effects) = from.observe(observation, now);
            (to, effects, None)
        }
    };
    Some(Edge { from: from.clone(), what, to, effects, answer })
}

/// Visits every edge of the world once.
pub(super) fn explore(mut visit: impl FnMut(&Edge)) -> Vec<Lifecycle> {
    let starts = [Lifecycle::defined(), Lifecycle::passing()];
    let mut seen: HashMap<Lifecycle, ()> = starts.iter().map(|start| (start.clone(), ())).collect();
    let mut queue: VecDeque<Lifecycle> = starts.into_iter().collect();
    let mut all = Vec::new();
    while let Some(from) = queue.pop_front() {
        for what in moves(&from) {
            let Some(edge) = take(&from, what) else { continue };
            visit(&edge);
            // What is due is stamped with the moment it was armed in; a due move happens later than all others.
            let to = edge.to.at_moment_of(NOW).canonical();
            if seen.insert(to.clone(), ()).is_none() {
                queue.push_back(to);
            }
        }
        // Its supervisor may be killed at any time, and the next one goes on from what was written down.
        if let Some(record) = from.record() {
            let restored = Lifecycle::restored(&record).at_moment_of(NOW).canonical();
            if seen.insert(restored.clone(), ()).is_none() {
                queue.push_back(restored);
            }
        }
        all.push(from);
        assert!(all.len() < 100_000, "the world does not end");
    }
    all
}

/// What happens when nobody asks for anything more and every operation ends this way.
fn settle_down(mut lifecycle: Lifecycle, failed: bool, until: impl Fn(&Lifecycle) -> bool) -> Lifecycle {
    for _ in 0..20 {
        if until(&lifecycle) {
            break;
        }
        let observation = match lifecycle.op() {
            Some(op) if lifecycle.is_recovering() && !failed => {
                Observation::Found { op, found: Found::Running { frozen: false } }
            }
            Some(op) => Observation::Ended { op, failed },
            None if lifecycle.deadline().is_some() => Observation::Due,
            None => break,
        };
        let now = lifecycle.deadline().unwrap_or(LATER);
        lifecycle = lifecycle.observe(observation, now).0;
    }
    lifecycle
}

#[test]
fn the_world_is_bounded_and_each_edge_keeps_the_books() {
    let mut edges = 0;
    let all = explore(|edge| {
        edges += 1;
        let Edge { from, what, to, effects, answer } = edge;
        let context = || format!("{what:?}\nfrom {from:?}\nto {to:?}\n{effects:?}");

        // Whoever waited before or waits now is either answered once or still waits.
        let mut waiting = from.waited_for();
        if let Some(Answer::Await(op)) = answer
            && !waiting.contains(op)
        {
            waiting.push(*op);
        }
        for effect in effects {
            if let Effect::Settle(op, _) = effect {
                let at = waiting.iter().position(|waits| waits == op);
                waiting.remove(
                    at.unwrap_or_else(|| panic!("settles {op:?} twice or for nobody: {}", context())),
                );
            }
        }
        let (mut left, mut right) = (waiting, to.waited_for());
        left.sort();
        right.sort();
        assert_eq!(left, right, "{}", context());

        // One operation at a time; one that is dropped is cancelled.
        let begun: Vec<OpId> = effects
            .iter()
            .filter_map(|e| if let Effect::Begin { op, .. } = e { Some(*op) } else { None })
            .collect();
        assert!(begun.len() <= 1, "{}", context());
        assert!(begun.iter().all(|op| to.op() == Some(*op)), "{}", context());
        let over = matches!(what, Move::Observe(Observation::Ended { .. } | Observation::Found { .. }));
        if from.op().is_some() && from.op() != to.op() && !over {
            assert!(effects.contains(&Effect::Cancel(from.op().unwrap())), "{}", context());
        }

        // The end of a life is told once, and a life that has ended does not come back.
        let told = effects.iter().filter(|effect| matches!(effect, Effect::Tell(..))).count();
        assert_eq!(
            told,
            usize::from(from.is_open() && (!to.is_open() || to.life() != from.life())),
            "{}",
            context()
        );
        if matches!(what, Move::Observe(Observation::Exited { .. })) && !told_of(effects).is_empty() {
            assert_eq!(told_of(effects), [EXIT], "a reported end is the one that is told: {}", context());
        }
        if !from.is_open() && from.life() == to.life() {
            assert!(!to.is_open(), "{}", context());
        }

        // What is due is armed.
        if to.deadline().is_some() && to.deadline() != from.deadline() {
            assert!(effects.iter().any(|effect| matches!(effect, Effect::Arm(_))), "{}", context());
        }
        if from.phase() == Phase::Gone {
            assert_eq!(to.phase(), Phase::Gone, "{}", context());
        }
    });
    for lifecycle in &all {
        use Phase::*;
        let open = lifecycle.is_open();
        match lifecycle.phase() {
            Created | Starting | Running | Pausing | Paused | Resuming => assert!(open, "{lifecycle:?}"),
            Defined | Stopped | Gone => assert!(!open, "{lifecycle:?}"),
            Creating | Stopping | Deleting => {}
        }
    }
    let phases: std::collections::HashSet<Phase> = all.iter().map(Lifecycle::phase).collect();
    assert_eq!(phases.len(), Phase::ALL.len(), "a phase is never reached");
    assert!(all.len() > 100, "only {} states: the search does not search", all.len());
    println!("{} states, {edges} edges", all.len());
}

fn told_of(effects: &[Effect]) -> Vec<Exit> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Tell(_, exit) = effect { Some(*exit) } else { None })
        .collect()
}

/// Goal: who ends a sandbox whose end is known already changes nothing about that end.
#[test]
fn an_end_reported_before_its_start_is_not_forgotten_by_a_stop_or_shutdown() {
    let life = Life(1);
    for end in [Command::Stop { grace_millis: 10 }, Command::Shutdown { grace_millis: 10 }] {
        let (mut at, ..) = Lifecycle::defined().command(Command::Start { life }, NOW).unwrap();
        at = at.observe(Observation::Ended { op: at.op().unwrap(), failed: false }, NOW).0;
        at = at.observe(Observation::Exited { life, exit: EXIT, all_ended: true }, NOW).0;
        let (mut at, mut effects, _) = at.command(end, NOW).unwrap();
        while let Some(op) = at.op() {
            let (next, more) = at.observe(Observation::Ended { op, failed: false }, NOW);
            at = next;
            effects.extend(more);
        }
        assert_eq!(told_of(&effects), [EXIT], "{end:?}");
    }
}

#[test]
fn nobody_waits_for_what_can_no_longer_settle() {
    for lifecycle in explore(|_| {}) {
        for failed in [false, true] {
            let end = settle_down(lifecycle.clone(), failed, |at| at.waited_for().is_empty());
            assert!(end.waited_for().is_empty(), "failed: {failed}\nfrom {lifecycle:?}\nto {end:?}");
        }
    }
}

#[test]
fn from_every_state_a_shutdown_ends_in_gone() {
    for lifecycle in explore(|_| {}) {
        let (shutting, ..) =
            lifecycle.command(Command::Shutdown { grace_millis: 10 }, NOW).expect("always legal");
        let end = settle_down(shutting, false, |at| at.phase() == Phase::Gone);
        assert_eq!(end.phase(), Phase::Gone, "from {lifecycle:?}");
        assert!(!end.is_open() && end.waited_for().is_empty(), "from {lifecycle:?}\nto {end:?}");
    }
}

#[test]
fn a_shutdown_outlasts_failing_deletes() {
    for lifecycle in explore(|_| {}) {
        let (shutting, ..) =
            lifecycle.command(Command::Shutdown { grace_millis: 0 }, NOW).expect("always legal");
        let told = settle_down(shutting, true, |at| at.waited_for().is_empty());
        let end = settle_down(told, false, |at| at.phase() == Phase::Gone);
        assert_eq!(end.phase(), Phase::Gone, "from {lifecycle:?}");
    }
}

/// Goal: whenever its supervisor is killed, the next one goes on with what was under way, and brings it to its end. Method:
/// restore from every state, let the backend find the instance running or gone, and let nobody ask for anything.
#[test]
fn what_was_under_way_when_its_supervisor_died_comes_to_its_end() {
    for lifecycle in explore(|_| {}) {
        let Some(record) = lifecycle.record() else { continue };
        let restored = Lifecycle::restored(&record);
        assert_eq!(restored.record(), Some(record), "what is restored is what was written");
        assert_eq!(restored.phase(), record.phase);
        for found in [
            Found::Running { frozen: false },
            Found::Running { frozen: true },
            Found::Absent,
            Found::Ended(EXIT),
        ] {
            let (end, effects) = go_on(restored.clone(), found);
            let context = || format!("{found:?}\nfrom {record:?}\nto {end:?}\n{effects:?}");
            assert!(
                end.waited_for().is_empty() && end.op().is_none() && end.deadline().is_none(),
                "{}",
                context()
            );
            match end.phase() {
                Phase::Gone => assert!(record.shutdown || !record.kept, "{}", context()),
                Phase::Defined => assert!(
                    record.kept && !record.shutdown && (!record.ran || record.phase != Phase::Running),
                    "{}",
                    context()
                ),
                Phase::Stopped => assert!(!record.shutdown, "{}", context()),
                Phase::Running | Phase::Paused | Phase::Created => {
                    assert!(
                        !record.shutdown && record.until.is_none() && end.life() == record.life,
                        "{}",
                        context()
                    );
                }
                other => panic!("it does not rest in {other}: {}", context()),
            }
            let begun = effects
                .iter()
                .any(|e| matches!(e, Effect::Begin { operation: Operation::Start | Operation::Create, .. }));
            assert!(!begun, "nothing is started that nobody asked for: {}", context());
        }
    }
}

/// What a restored lifecycle comes to by itself, where this is found and everything works.
fn go_on(mut at: Lifecycle, found: Found) -> (Lifecycle, Vec<Effect>) {
    let mut effects = Vec::new();
    for _ in 0..20 {
        let observation = match at.op() {
            Some(op) if at.is_recovering() => Observation::Found { op, found },
            Some(op) => Observation::Ended { op, failed: false },
            None if at.deadline().is_some() => Observation::Due,
            None => break,
        };
        let now = at.deadline().map_or(NOW, |at| at.max(NOW));
        let (next, more) = at.observe(observation, now);
        at = next;
        effects.extend(more);
    }
    (at, effects)
}

/// Goal: a stop that was under way gets the rest of its grace, and no more. Method: what is found running is asked again,
/// until the moment that was written down; past it, it is killed.
#[test]
fn a_stop_under_way_keeps_its_deadline_across_a_restart() {
    let until = BootMillis(NOW.0 + 500);
    let record = Record {
        phase: Phase::Stopping,
        life: Life(3),
        ran: true,
        kept: true,
        shutdown: false,
        exit: None,
        until: Some(until),
    };
    for (now, asked) in [(NOW, true), (LATER, false)] {
        let (searching, _) = Lifecycle::restored(&record).observe(Observation::Due, now);
        let op = searching.op().expect("it is searched for");
        let (at, effects) =
            searching.observe(Observation::Found { op, found: Found::Running { frozen: false } }, now);
        let begun = |wanted| {
            effects.iter().any(|e| matches!(e, Effect::Begin { operation, .. } if *operation == wanted))
        };
        assert_eq!((begun(Operation::Ask), begun(Operation::Kill)), (asked, !asked), "{effects:?}");
        assert_eq!(at.deadline(), asked.then_some(until));
    }
}

#[test]
fn stale_reports_change_nothing() {
    for lifecycle in explore(|_| {}) {
        let stale_op = OpId(u64::MAX);
        let stale_life = Life(lifecycle.life().0 + 7);
        let reports = [
            Observation::Ended { op: stale_op, failed: false },
            Observation::Ended { op: stale_op, failed: true },
            Observation::Found { op: stale_op, found: Found::Absent },
            Observation::Exited { life: stale_life, exit: EXIT, all_ended: true },
        ];
        for report in reports {
            assert_eq!(lifecycle.observe(report, NOW), (lifecycle.clone(), vec![]), "{report:?}");
        }
        if lifecycle.deadline().is_some_and(|at| at > NOW) {
            assert_eq!(lifecycle.observe(Observation::Due, NOW), (lifecycle.clone(), vec![]));
        }
    }
}
