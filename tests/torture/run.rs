//! The course of a run: rounds of asking, killing, starting again and looking; then the fail-points; then the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sandkeeper::failpoint;
use sandkeeper::surface::grpc::Client;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::book::{Book, Wrong, count};
use crate::check::Check;
use crate::clients::{self, Crowd};
use crate::daemon::{Daemon, Ended, Place};
use crate::dice::Dice;
use crate::heart::Hearts;
use crate::world::Sight;
use crate::{Arguments, say};

/// A daemon is killed at any moment up to this long after the clients go on.
const LIFETIME: Duration = Duration::from_millis(350);

/// And one that has just been started, up to this long after that.
const CHILDHOOD: Duration = Duration::from_millis(150);

/// How long a fail-point has to be reached before it is given up for this time.
const REACHING: Duration = Duration::from_secs(6);

/// How often in a row a fail-point may be missed before it counts as one that nothing reaches.
const MISSES: u64 = 6;

/// How long a daemon has to finish recovering.
const RECOVERING: Duration = Duration::from_secs(30);

/// How long a daemon has to end when it is asked to.
const ENDING: Duration = Duration::from_secs(20);

/// More faults than that tell nothing new.
const MOST_FAULTS: usize = 25;

/// How it went.
#[derive(Default)]
struct Tally {
    kills: u64,
    starts: u64,
    checks: u64,
    hits: BTreeMap<&'static str, u64>,
    slowest_answer: Duration,
    slowest_recovery: Duration,
}

struct Run<'a> {
    arguments: &'a Arguments,
    place: Place,
    sight: Sight,
    book: Arc<Book>,
    crowd: Arc<Crowd>,
    mounts_before: BTreeSet<String>,
    dice: Dice,
    tally: Tally,
}

/// Runs it all. Whether nothing was wrong.
pub(crate) async fn run(arguments: &Arguments) -> Result<bool, String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed =
        arguments.seed.unwrap_or_else(|| now.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007));
    say(&format!("seed {seed}"));
    for name in &arguments.only {
        if !failpoint::NAMES.contains(&name.as_str()) {
            return Err(format!(
                "there is no fail-point {name:?}; there are: {}",
                failpoint::NAMES.join(", ")
            ));
        }
    }
    let dir = directory(arguments.place.as_deref())
        .map_err(|error| format!("its directory cannot be made: {error}"))?;
    let program = arguments.daemon.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_sandkeeper")));
    let token = format!("torture-{}-{seed}", std::process::id());
    let set_up = || -> std::io::Result<Book> {
        Book::new(Hearts::new(&dir.path().join("hearts"), &token)?, arguments.sandboxes)
    };
    let book = Arc::new(set_up().map_err(|error| format!("the hearts' files cannot be made: {error}"))?);
    let place = Place::new(program, dir.path());
    let sight = Sight { state: place.state.clone(), dir: dir.path().to_owned(), token };
    let crowd = Arc::new(Crowd {
        book: Arc::clone(&book),
        socket: place.socket.clone(),
        gate: Arc::new(RwLock::new(())),
        over: AtomicBool::new(false),
    });
    let mounts_before = sight.look(None).mounts;
    let mut run = Run {
        arguments,
        place,
        sight,
        book,
        crowd: Arc::clone(&crowd),
        mounts_before,
        dice: Dice::new(seed),
        tally: Tally::default(),
    };
    let clients: Vec<JoinHandle<()>> = (0..arguments.clients)
        .map(|number| {
            let dice = Dice::new(run.dice.next());
            tokio::task::spawn_local(clients::ask(Arc::clone(&crowd), number, arguments.clients, dice))
        })
        .collect();
    let outcome = tokio::select! {
        outcome = run.all() => outcome,
        _ = tokio::signal::ctrl_c() => Err("it was interrupted".to_owned()),
    };
    crowd.over.store(true, Ordering::Release);
    for client in clients {
        client.abort();
    }
    if outcome.is_err() {
        run.clear_up().await;
    }
    let passed = outcome.is_ok() && run.is_sound();
    run.summarise(seed);
    if arguments.keep {
        say(&format!("state and logs are in {}", dir.keep().display()));
    }
    outcome.map(|()| passed)
}

fn directory(place: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let memory = Path::new("/dev/shm");
    let dir = match place {
        Some(place) => tempfile::tempdir_in(place)?,
        None if memory.is_dir() => tempfile::tempdir_in(memory)?,
        None => tempfile::tempdir()?,
    };
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

impl Run<'_> {
    async fn all(&mut self) -> Result<(), String> {
        let mut daemon = self.start(None).await?.0;
        daemon = self.random_kills(daemon).await?;
        if self.arguments.failpoints > 0 {
            daemon = self.fail_points(daemon).await?;
        }
        self.end(daemon).await
    }

    fn is_to_end(&self) -> bool {
        let faults = self.book.faults.lock().expect("no panic").len();
        faults >= MOST_FAULTS || self.arguments.fail_fast && faults > 0
    }

    /// Starts a daemon, and waits until it answers.
    async fn start(&mut self, armed: Option<&str>) -> Result<(Daemon, Client), String> {
        let mut daemon = self.place.start(armed, &[]).map_err(|error| format!("no daemon: {error}"))?;
        self.tally.starts += 1;
        self.book.note_everywhere(&format!("daemon {} started", daemon.pid()));
        let client = daemon.client(&self.place).await?;
        self.tally.slowest_answer = self.tally.slowest_answer.max(daemon.started.elapsed());
        Ok((daemon, client))
    }

    fn kill(&mut self, daemon: &mut Daemon) {
        if let Some(ended) = daemon.ended() {
            let what = format!("the daemon has ended by itself: {ended:?}\n{}", self.place.last_words());
            self.book.fault(Wrong::Stuck, what, None);
        }
        daemon.kill();
        self.tally.kills += 1;
        self.book.note_everywhere(&format!("daemon {} killed", daemon.pid()));
    }

    async fn random_kills(&mut self, mut daemon: Daemon) -> Result<Daemon, String> {
        let begun = Instant::now();
        let limit = Duration::from_secs_f64(self.arguments.minutes * 60.0);
        let mut told = Instant::now();
        while self.tally.kills < self.arguments.kills && begun.elapsed() < limit && !self.is_to_end() {
            tokio::time::sleep(self.dice.time(LIFETIME)).await;
            if self.dice.percent(20) {
                self.check_as_it_runs(&mut daemon).await?;
                tokio::time::sleep(self.dice.time(CHILDHOOD)).await;
            }
            self.kill(&mut daemon);
            // Sometimes several in a row, while the clients go on asking.
            while self.dice.percent(35) {
                daemon = self.place.start(None, &[]).map_err(|error| format!("no daemon: {error}"))?;
                self.tally.starts += 1;
                tokio::time::sleep(self.dice.time(CHILDHOOD)).await;
                self.kill(&mut daemon);
            }
            daemon = self.start_and_check().await?;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                self.progress();
            }
        }
        Ok(daemon)
    }

    fn progress(&self) {
        let faults = self.book.faults.lock().expect("no panic").len();
        let hits: u64 = self.tally.hits.values().sum();
        say(&format!(
            "{:6.0} s: {} kills, {hits} fail-points, {} acknowledged, {faults} wrong",
            self.book.elapsed().as_secs_f64(),
            self.tally.kills,
            count(&self.book.counts.acknowledged),
        ));
    }

    /// Starts a daemon, has the clients wait, and looks at everything once it has recovered.
    async fn start_and_check(&mut self) -> Result<Daemon, String> {
        let crowd = Arc::clone(&self.crowd);
        // Half the time they have been asking it while it recovered, half the time they have not.
        let early =
            if self.dice.percent(50) { Some(Arc::clone(&crowd.gate).write_owned().await) } else { None };
        let (mut daemon, mut client) = self.start(None).await?;
        let gate = match early {
            Some(gate) => gate,
            None => Arc::clone(&crowd.gate).write_owned().await,
        };
        self.recovered(&mut daemon, &mut client).await?;
        self.check(&mut client).await;
        drop(gate);
        Ok(daemon)
    }

    /// Has the clients wait, and looks at everything: what one daemon leaves behind, the next would remove before anybody sees it.
    async fn check_as_it_runs(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        let gate = Arc::clone(&self.crowd.gate).write_owned().await;
        let mut client = daemon.client(&self.place).await?;
        self.check(&mut client).await;
        drop(gate);
        Ok(())
    }

    async fn check(&mut self, client: &mut Client) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let check = Check { book: &self.book, sight: &self.sight, cores, mounts_before: &self.mounts_before };
        check.run(client).await;
        self.tally.checks += 1;
    }

    /// Waits until nothing is recovering.
    async fn recovered(&mut self, daemon: &mut Daemon, client: &mut Client) -> Result<(), String> {
        loop {
            let version = client.version().await.map_err(|error| {
                let how = daemon.ended();
                format!("the daemon does not answer any more ({how:?}): {error}\n{}", self.place.last_words())
            })?;
            if !version.journal_trouble.is_empty() || version.orphans > 0 {
                let what = format!("journal: {:?}, orphans: {}", version.journal_trouble, version.orphans);
                self.book.fault(Wrong::Lost, what, None);
            }
            if version.recovering == 0 {
                self.tally.slowest_recovery = self.tally.slowest_recovery.max(daemon.started.elapsed());
                return Ok(());
            }
            if daemon.started.elapsed() > RECOVERING {
                let what = format!("{} are still recovering after {RECOVERING:?}", version.recovering);
                self.book.fault(Wrong::Stuck, what, None);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn fail_points(&mut self, mut daemon: Daemon) -> Result<Daemon, String> {
        let begun = Instant::now();
        let limit = Duration::from_secs_f64(self.arguments.minutes * 60.0);
        let only = &self.arguments.only;
        let names: Vec<&'static str> = failpoint::NAMES
            .iter()
            .copied()
            .filter(|name| only.is_empty() || only.iter().any(|only| only == name))
            .collect();
        let mut misses: BTreeMap<&str, u64> = BTreeMap::new();
        let mut told = Instant::now();
        loop {
            let wanting = |name: &&&'static str| {
                let hits = self.tally.hits.get(**name).copied().unwrap_or(0);
                hits < self.arguments.failpoints && misses.get(**name).copied().unwrap_or(0) < MISSES
            };
            let wanted: Vec<&'static str> = names.iter().filter(wanting).copied().collect();
            if wanted.is_empty() || begun.elapsed() > limit || self.is_to_end() {
                return Ok(daemon);
            }
            for name in wanted {
                if begun.elapsed() > limit || self.is_to_end() {
                    break;
                }
                self.kill(&mut daemon);
                let hit = self.until_it_dies_at(name).await?;
                *misses.entry(name).or_default() =
                    if hit { 0 } else { misses.get(name).copied().unwrap_or(0) + 1 };
                daemon = self.start_and_check().await?;
                if told.elapsed() > Duration::from_secs(10) {
                    told = Instant::now();
                    self.progress();
                }
            }
        }
    }

    /// Starts a daemon that dies at a point, and waits until it has. Whether it did.
    async fn until_it_dies_at(&mut self, name: &'static str) -> Result<bool, String> {
        let armed = format!("{name}:{}", 1 + self.dice.below(6));
        let mut daemon =
            self.place.start(Some(&armed), &[]).map_err(|error| format!("no daemon: {error}"))?;
        self.tally.starts += 1;
        self.book.note_everywhere(&format!("daemon {} started, to die at {armed}", daemon.pid()));
        match daemon.ends_within(REACHING).await {
            Some(Ended::Killed) => {
                *self.tally.hits.entry(name).or_default() += 1;
                self.book.note_everywhere(&format!("daemon {} died at {armed}", daemon.pid()));
                Ok(true)
            }
            Some(other) => Err(format!(
                "the daemon was to die at {armed}, and has {other:?}\n{}",
                self.place.last_words()
            )),
            None => {
                self.kill(&mut daemon);
                Ok(false)
            }
        }
    }

    /// The end: one half of the sandboxes is shut down by hand, the other by a daemon that is told to; nothing is left.
    async fn end(&mut self, mut daemon: Daemon) -> Result<(), String> {
        let crowd = Arc::clone(&self.crowd);
        let _gate = Arc::clone(&crowd.gate).write_owned().await;
        let mut client = daemon.client(&self.place).await?;
        for page in self.book.pages.iter().step_by(2) {
            if let Err(error) = client.shutdown(&page.key, Some(Duration::ZERO)).await {
                self.book.fault(Wrong::Stuck, format!("{} does not go: {error}", page.key), Some(page));
            }
        }
        let root = self.sight.root();
        self.ends_in_order(&mut daemon, "which leaves its sandboxes").await;
        let mut last = self
            .place
            .start(None, &["--shutdown-sandboxes"])
            .map_err(|error| format!("no daemon: {error}"))?;
        last.client(&self.place).await?;
        self.ends_in_order(&mut last, "which ends its sandboxes").await;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let check = Check { book: &self.book, sight: &self.sight, cores, mounts_before: &self.mounts_before };
        check.nothing_is_left(root, ENDING).await;
        if self.place.socket.exists() {
            self.book.fault(Wrong::LeftBehind, "the daemon's socket".to_owned(), None);
        }
        Ok(())
    }

    async fn ends_in_order(&self, daemon: &mut Daemon, which: &str) {
        daemon.terminate();
        let ended = daemon.ends_within(ENDING).await;
        if ended != Some(Ended::InOrder) {
            let what = format!("a daemon {which} was asked to end: {ended:?}\n{}", self.place.last_words());
            self.book.fault(Wrong::Stuck, what, None);
        }
    }

    /// Ends all there is after a failure of the run itself.
    async fn clear_up(&mut self) {
        let root = self.sight.root();
        if let Ok(mut last) = self.place.start(None, &["--shutdown-sandboxes"])
            && last.client(&self.place).await.is_ok()
        {
            last.terminate();
            let _ended = last.ends_within(ENDING).await;
        }
        let Some(root) = root.filter(|root| root.exists()) else { return };
        // By the kernel, in the daemon's own root and nowhere else.
        let _ = std::fs::write(root.join("cgroup.kill"), "1");
        for _ in 0..200 {
            let children = std::fs::read_dir(&root).into_iter().flatten().flatten();
            children.for_each(|child| drop(std::fs::remove_dir(child.path())));
            if std::fs::remove_dir(&root).is_ok() || !root.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn unreached(&self) -> Vec<&'static str> {
        if self.arguments.failpoints == 0 {
            return Vec::new();
        }
        let only = &self.arguments.only;
        let asked =
            failpoint::NAMES.iter().filter(|name| only.is_empty() || only.iter().any(|only| only == *name));
        asked
            .copied()
            .filter(|name| self.tally.hits.get(name).copied().unwrap_or(0) < self.arguments.failpoints)
            .collect()
    }

    fn is_sound(&self) -> bool {
        self.book.faults.lock().expect("no panic").is_empty() && self.unreached().is_empty()
    }

    fn summarise(&self, seed: u64) {
        let counts = &self.book.counts;
        let errors = self.book.errors.lock().expect("no panic").clone();
        let wrong = |wrong| self.book.wrongs(wrong);
        let (tally, unreached) = (&self.tally, self.unreached());
        let unhit = failpoint::NAMES.iter().map(|name| (*name, tally.hits.get(name).copied().unwrap_or(0)));
        let hits: BTreeMap<&str, u64> = unhit.filter(|_| self.arguments.failpoints > 0).collect();
        if self.arguments.json {
            let faults = self.book.faults.lock().expect("no panic");
            let faults: Vec<&str> = faults.iter().map(|fault| fault.what.as_str()).collect();
            let summary = serde_json::json!({
                "seed": seed, "seconds": self.book.elapsed().as_secs_f64(), "kills": tally.kills, "starts": tally.starts,
                "checks": tally.checks, "acknowledged": count(&counts.acknowledged), "refused": count(&counts.refused),
                "failed": count(&counts.failed), "answers_lost": count(&counts.lost_answers),
                "looks": count(&counts.looks), "programs": count(&counts.programs),
                "lost": wrong(Wrong::Lost), "doubled": wrong(Wrong::Doubled), "left_behind": wrong(Wrong::LeftBehind),
                "disturbed": wrong(Wrong::Disturbed), "stuck": wrong(Wrong::Stuck), "wrong_answers": wrong(Wrong::Answer),
                "failpoints": hits, "unreached": unreached, "slowest_answer_ms": tally.slowest_answer.as_millis() as u64,
                "slowest_recovery_ms": tally.slowest_recovery.as_millis() as u64, "notes": errors, "faults": faults,
            });
            return say(&summary.to_string());
        }
        say(&format!("summary of seed {seed}, after {:.0} s", self.book.elapsed().as_secs_f64()));
        say(&format!("  kills {}, starts {}, checks {}", tally.kills, tally.starts, tally.checks));
        say(&format!(
            "  commands: {} acknowledged, {} refused, {} failed, {} without an answer; {} looks, {} programs",
            count(&counts.acknowledged),
            count(&counts.refused),
            count(&counts.failed),
            count(&counts.lost_answers),
            count(&counts.looks),
            count(&counts.programs),
        ));
        say(&format!(
            "  lost {}, doubled {}, left behind {}, disturbed {}, stuck {}, wrong answers {}",
            wrong(Wrong::Lost),
            wrong(Wrong::Doubled),
            wrong(Wrong::LeftBehind),
            wrong(Wrong::Disturbed),
            wrong(Wrong::Stuck),
            wrong(Wrong::Answer),
        ));
        for (name, hits) in hits {
            say(&format!("  fail-point {name}: {hits}"));
        }
        if !unreached.is_empty() {
            say(&format!("  not hit often enough: {}", unreached.join(", ")));
        }
        say(&format!(
            "  slowest: {} ms until it answered, {} ms until all was recovered",
            tally.slowest_answer.as_millis(),
            tally.slowest_recovery.as_millis()
        ));
        for (text, times) in errors {
            say(&format!("  {times} x {text}"));
        }
    }
}
