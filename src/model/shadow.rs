//! Drives the machine against a naive shadow of it, which knows only resting phases and no operations.

use proptest::prelude::*;

use super::*;

const NOW: BootMillis = BootMillis(1_000);
const LATER: BootMillis = BootMillis(1_000_000);

/// What somebody does, and whether the backend does its part.
#[derive(Debug, Clone, Copy)]
enum Act {
    Create { works: bool },
    Start { works: bool },
    Pause { works: bool },
    Resume { works: bool },
    Stop,
    Shutdown,
    Exit,
}

/// A sandbox as somebody outside would describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shadow {
    Defined,
    Created,
    Running,
    Paused,
    Stopped,
    Gone,
}

/// What the actor gets to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Ok,
    Refused,
    Failed,
}

impl Shadow {
    fn act(self, act: Act) -> (Self, Heard) {
        use Heard::*;
        use Shadow::*;
        match (self, act) {
            (Gone, Act::Stop | Act::Shutdown | Act::Exit) => (Gone, Ok),
            (Gone, _) => (Gone, Refused),
            (_, Act::Shutdown) => (Gone, Ok),
            (Defined | Stopped, Act::Create { works: true }) => (Created, Ok),
            (Defined | Stopped, Act::Create { works: false }) => (Defined, Failed),
            (Created, Act::Create { .. }) => (Created, Ok),
            (_, Act::Create { .. }) => (self, Refused),
            (Defined | Stopped | Created, Act::Start { works: true }) => (Running, Ok),
            (Defined | Stopped | Created, Act::Start { works: false }) => (Defined, Failed),
            (Running | Paused, Act::Start { .. }) => (self, Ok),
            (Running, Act::Pause { works: true }) => (Paused, Ok),
            (Running, Act::Pause { works: false }) => (Running, Failed),
            (Paused, Act::Pause { .. }) => (Paused, Ok),
            (Paused, Act::Resume { works: true }) => (Running, Ok),
            (Paused, Act::Resume { works: false }) => (Paused, Failed),
            (Running, Act::Resume { .. }) => (Running, Ok),
            (_, Act::Pause { .. } | Act::Resume { .. }) => (self, Refused),
            (Defined, Act::Stop) => (Defined, Ok),
            (_, Act::Stop) => (Stopped, Ok),
            (Running | Paused, Act::Exit) => (Stopped, Ok),
            (_, Act::Exit) => (self, Ok),
        }
    }
}

/// The real thing, with operations that end at once.
struct Real {
    lifecycle: Lifecycle,
    lives: u64,
}

impl Real {
    /// Lets operations run to their ends. `fails` names the one that does not work.
    fn rest(&mut self, mut effects: Vec<Effect>, fails: Option<Operation>, waits: Option<OpId>) -> Heard {
        let mut heard = Heard::Ok;
        loop {
            let mut begun = None;
            for effect in effects {
                match effect {
                    Effect::Settle(op, Outcome::Failed(_)) if Some(op) == waits => heard = Heard::Failed,
                    Effect::Begin { op, operation, .. } => begun = Some((op, operation)),
                    _ => {}
                }
            }
            let observation = match begun {
                Some((op, operation)) => Observation::Ended { op, failed: Some(operation) == fails },
                None if self.lifecycle.deadline().is_some() => Observation::Due,
                None => return heard,
            };
            (self.lifecycle, effects) = self.lifecycle.observe(observation, LATER);
        }
    }

    fn act(&mut self, act: Act) -> Heard {
        self.lives += 1;
        let life = Life(self.lives);
        let (command, fails) = match act {
            Act::Create { works } => (Command::Create { life }, (!works).then_some(Operation::Create)),
            Act::Start { works } => (Command::Start { life }, (!works).then_some(Operation::Start)),
            Act::Pause { works } => (Command::Pause, (!works).then_some(Operation::Pause)),
            Act::Resume { works } => (Command::Resume, (!works).then_some(Operation::Resume)),
            Act::Stop => (Command::Stop { grace_millis: 10 }, None),
            Act::Shutdown => (Command::Shutdown { grace_millis: 10 }, None),
            Act::Exit => {
                let exit = Exit { reason: ExitReason::Exited(0), at_unix_nanos: 1 };
                let life = self.lifecycle.life();
                let (next, effects) =
                    self.lifecycle.observe(Observation::Exited { life, exit, all_ended: true }, NOW);
                self.lifecycle = next;
                return self.rest(effects, None, None);
            }
        };
        match self.lifecycle.command(command, NOW) {
            Err(_) => Heard::Refused,
            Ok((next, effects, answer)) => {
                self.lifecycle = next;
                let waits = if let Answer::Await(op) = answer { Some(op) } else { None };
                self.rest(effects, fails, waits)
            }
        }
    }

    fn shadow(&self) -> Shadow {
        match self.lifecycle.phase() {
            Phase::Defined => Shadow::Defined,
            Phase::Created => Shadow::Created,
            Phase::Running => Shadow::Running,
            Phase::Paused => Shadow::Paused,
            Phase::Stopped => Shadow::Stopped,
            Phase::Gone => Shadow::Gone,
            moving => panic!("{moving} is not a resting phase"),
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => any::<bool>().prop_map(|works| Act::Create { works }),
        3 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(|works| Act::Start { works }),
        2 => any::<bool>().prop_map(|works| Act::Pause { works }),
        2 => any::<bool>().prop_map(|works| Act::Resume { works }),
        1 => Just(Act::Stop),
        1 => Just(Act::Shutdown),
        1 => Just(Act::Exit),
    ]
}

proptest! {
    #[test]
    fn a_naive_shadow_agrees_whenever_the_machine_rests(acts in proptest::collection::vec(act(), 1..40)) {
        let mut real = Real { lifecycle: Lifecycle::defined(), lives: 0 };
        let mut shadow = Shadow::Defined;
        for (at, act) in acts.iter().enumerate() {
            let (next, expected) = shadow.act(*act);
            let heard = real.act(*act);
            prop_assert_eq!((real.shadow(), heard), (next, expected), "after {:?}", &acts[..=at]);
            shadow = next;
        }
    }
}
