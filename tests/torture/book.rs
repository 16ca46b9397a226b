//! What was asked of each sandbox and how it was answered, and what that makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandkeeper::spec::{Mount, Network, ProcessSpec, RootFs};
use sandkeeper::{SandboxKey, SandboxSpec};

use crate::heart::{HEART, Hearts, INSIDE};
use crate::model::{self, Outcome, Stage, State, Step, Verb};

/// What runs in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A heart that ends when it is asked to.
    Heart,
    /// A heart that does not hear when it is asked to end.
    Stubborn,
    /// A heart that ends by itself, with 7.
    Mortal,
    /// Nothing but a leader.
    Sleeper,
}

impl Kind {
    pub(crate) fn of(index: usize) -> Self {
        [Self::Heart, Self::Sleeper, Self::Heart, Self::Stubborn, Self::Heart, Self::Mortal][index % 6]
    }

    pub(crate) fn has_heart(self) -> bool {
        self != Self::Sleeper
    }

    fn spec(self, id: &str, hearts: &Hearts) -> SandboxSpec {
        let beats = if self == Self::Mortal { "12" } else { "0" };
        let heart = format!("{INSIDE}/heart");
        let plain = [heart.as_str(), HEART, id, &hearts.token, beats];
        let mut process = match self {
            Self::Sleeper => return SandboxSpec::default(),
            // What is ignored stays so for who is executed.
            Self::Stubborn => {
                ProcessSpec::new(["/bin/sh", "-c", &format!("trap '' TERM; exec {}", plain.join(" "))])
            }
            Self::Heart | Self::Mortal => ProcessSpec::new(plain),
        };
        if self == Self::Mortal {
            process.stdio.log_bytes = Some(64 * 1_024);
        }
        let mounts = vec![Mount { source: hearts.dir.clone(), target: INSIDE.into(), writable: true }];
        let network = if self == Self::Stubborn { Network::None } else { Network::New };
        SandboxSpec {
            root: RootFs::HostReadOnly,
            process: Some(process),
            mounts,
            network,
            ..SandboxSpec::default()
        }
    }
}

/// One sandbox's page.
pub(crate) struct Page {
    pub(crate) key: SandboxKey,
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) spec: SandboxSpec,
    /// Whether several clients ask things of it at the same time.
    pub(crate) shared: bool,
    pub(crate) entries: Mutex<Entries>,
}

/// What stands on a page.
pub(crate) struct Entries {
    /// What it may have been when it was last looked at.
    pub(crate) known: BTreeSet<State>,
    /// What was asked since.
    pub(crate) steps: Vec<Step>,
    /// The same in words, and what was found, from a while before.
    pub(crate) history: Vec<String>,
    /// What is possible by now, where a single client asks and no answer was lost.
    pub(crate) certain: Option<BTreeSet<State>>,
    /// The leader of each life, as it was told.
    pub(crate) leaders: BTreeMap<u64, u32>,
    /// Which heart beat in which life.
    pub(crate) hearts: BTreeMap<u64, u64>,
    /// When each leader began, by the kernel.
    pub(crate) began: BTreeMap<u64, u64>,
}

/// Something that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// What was acknowledged is not so.
    Lost,
    /// There are two leaders, or two of something else of which there is to be one.
    Doubled,
    /// Something is there of which there is no record.
    LeftBehind,
    /// A sandbox was touched that nobody had asked to.
    Disturbed,
    /// A call, a recovery or an end does not come about.
    Stuck,
    /// An answer that must not be given.
    Answer,
}

/// What was found wrong.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) wrong: Wrong,
    pub(crate) what: String,
}

/// How often what happened.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) lost_answers: AtomicU64,
    pub(crate) looks: AtomicU64,
    pub(crate) programs: AtomicU64,
}

/// The pages of all sandboxes.
pub(crate) struct Book {
    pub(crate) pages: Vec<Page>,
    pub(crate) hearts: Hearts,
    pub(crate) counts: Counts,
    pub(crate) faults: Mutex<Vec<Fault>>,
    /// Errors of calls that failed while the daemon was there, and how often.
    pub(crate) errors: Mutex<BTreeMap<String, u64>>,
    begun: Instant,
    moments: AtomicU64,
}

/// Whether several clients ask things of a sandbox: half of each kind.
fn is_shared(index: usize) -> bool {
    index % 12 >= 6
}

/// How much of the history of a sandbox is kept.
const HISTORY: usize = 60;

pub(crate) fn add(to: &AtomicU64) {
    to.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count(of: &AtomicU64) -> u64 {
    of.load(Ordering::Relaxed)
}

impl Book {
    pub(crate) fn new(hearts: Hearts, sandboxes: usize) -> std::io::Result<Self> {
        let mut pages = Vec::new();
        for index in 0..sandboxes {
            let (id, kind) = (format!("t{index}"), Kind::of(index));
            hearts.prepare(&id)?;
            let entries = Entries {
                known: BTreeSet::from([State::GONE]),
                certain: Some(BTreeSet::from([State::GONE])).filter(|_| !is_shared(index)),
                steps: Vec::new(),
                history: Vec::new(),
                leaders: BTreeMap::new(),
                hearts: BTreeMap::new(),
                began: BTreeMap::new(),
            };
            pages.push(Page {
                key: SandboxKey::new("torture", &id).expect("a name"),
                spec: kind.spec(&id, &hearts),
                shared: is_shared(index),
                id,
                kind,
                entries: Mutex::new(entries),
            });
        }
        Ok(Self {
            pages,
            hearts,
            counts: Counts::default(),
            faults: Mutex::default(),
            errors: Mutex::default(),
            begun: Instant::now(),
            moments: AtomicU64::new(1),
        })
    }

    pub(crate) fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Notes a fault, and says so at once.
    pub(crate) fn fault(&self, wrong: Wrong, what: String, page: Option<&Page>) {
        let history =
            page.map(|page| page.entries.lock().expect("no panic").history.clone()).unwrap_or_default();
        crate::say(&format!("WRONG ({wrong:?}): {what}"));
        for line in &history {
            crate::say(&format!("    {line}"));
        }
        self.faults.lock().expect("no panic").push(Fault { wrong, what });
    }

    pub(crate) fn wrongs(&self, wrong: Wrong) -> usize {
        self.faults.lock().expect("no panic").iter().filter(|fault| fault.wrong == wrong).count()
    }

    /// A kill, a start of the daemon: it belongs to every sandbox's history.
    pub(crate) fn note_everywhere(&self, what: &str) {
        let now = self.elapsed();
        self.pages.iter().for_each(|page| page.note(now, what));
    }

    pub(crate) fn count_error(&self, page: &Page, error: &str) {
        *self.errors.lock().expect("no panic").entry(kind_of(page, error)).or_default() += 1;
    }

    /// Enters a command that was answered, or not.
    pub(crate) fn enter(&self, page: &Page, client: usize, step: Step) {
        match &step.outcome {
            Outcome::Done(_) => add(&self.counts.acknowledged),
            Outcome::Refused(_) => add(&self.counts.refused),
            Outcome::Failed(error) => {
                add(&self.counts.failed);
                self.count_error(page, error);
            }
            Outcome::Lost(_) => add(&self.counts.lost_answers),
        }
        page.note(
            self.elapsed(),
            &format!(
                "#{}..{} client {client}: {:?} → {:?}",
                step.called, step.answered, step.verb, step.outcome
            ),
        );
        let unexplained = page.enter(step);
        if let Some(unexplained) = unexplained {
            self.fault(Wrong::Answer, format!("{}: {unexplained}", page.key), Some(page));
        }
    }
}

/// An error's text without what differs from case to case.
fn kind_of(page: &Page, error: &str) -> String {
    let text: String =
        error.replace(page.key.as_str(), "…").chars().filter(|c| !c.is_ascii_digit()).collect();
    text.chars().take(160).collect()
}

impl Page {
    pub(crate) fn note(&self, at: Duration, what: &str) {
        let history = &mut self.entries.lock().expect("no panic").history;
        if history.len() >= HISTORY {
            history.remove(0);
        }
        history.push(format!("{:9.3} s  {what}", at.as_secs_f64()));
    }

    /// What it may be now, where that can be told.
    pub(crate) fn certain(&self) -> Option<BTreeSet<State>> {
        let certain = self.entries.lock().expect("no panic").certain.clone()?;
        Some(self.by_now(&certain))
    }

    /// The same states, and those that they may have come to by themselves.
    fn by_now(&self, certain: &BTreeSet<State>) -> BTreeSet<State> {
        let mut states = certain.iter().copied().collect();
        model::by_itself(&mut states, self.kind == Kind::Mortal);
        states.into_iter().collect()
    }

    /// Enters a step. Says what cannot be, where what is possible is known at once.
    fn enter(&self, step: Step) -> Option<String> {
        let mut entries = self.entries.lock().expect("no panic");
        let mut unexplained = None;
        if let Outcome::Done(Some((life, pid))) = step.outcome {
            let told = *entries.leaders.entry(life).or_insert(pid);
            if told != pid {
                unexplained = Some(format!("life {life} has leader {pid}, and had {told} before"));
            }
        }
        if self.shared || matches!(step.outcome, Outcome::Lost(_) | Outcome::Failed(_)) {
            entries.certain = None;
        } else if let Some(certain) = entries.certain.take() {
            let next = model::possible(&certain, std::slice::from_ref(&step), self.kind == Kind::Mortal);
            let next = next.unwrap_or_default();
            if next.is_empty() {
                unexplained =
                    Some(format!("{:?} was answered {:?}, but it was {certain:?}", step.verb, step.outcome));
            }
            if let Some(why) = refused_wrongly(&step, &self.by_now(&certain)) {
                unexplained = Some(why);
            }
            entries.certain = Some(next).filter(|next| !next.is_empty());
        }
        entries.steps.push(step);
        unexplained
    }
}

/// A refusal that what is certain does not explain.
fn refused_wrongly(step: &Step, certain: &BTreeSet<State>) -> Option<String> {
    let Outcome::Refused(why) = &step.outcome else { return None };
    let explained = certain.iter().any(|state| match step.verb {
        _ if why.starts_with("NotFound") => state.stage == Stage::Gone,
        Verb::Pause | Verb::Resume => !state.stage.is_alive(),
        Verb::Create | Verb::Prepare => state.stage.is_alive(),
        _ => false,
    });
    let busy = why.starts_with("ResourceExhausted") || why.starts_with("Unavailable");
    (!explained && !busy).then(|| format!("{:?} was refused ({why}), but it was {certain:?}", step.verb))
}
