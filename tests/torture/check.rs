//! Looks whether all is as it must be, while nobody asks for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandkeeper::SandboxKey;
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::SandboxStatus;
use sandkeeper::wire::generated::ListRequest;

use crate::book::{Book, Kind, Page, Wrong};
use crate::model::{self, Outcome, Stage, State};
use crate::world::{Process, Sight, World};

/// How long what is under way has to come to rest: longer than any grace and any retry.
const COMING_TO_REST: Duration = Duration::from_secs(30);

/// How long what is not as it must be has to become so.
const SETTLING: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(10);

/// How long a look takes for which a paused heart must not beat; some beats of one that runs.
const STILL: Duration = Duration::from_millis(60);

/// Compares what the daemon says, what was asked and what there is.
pub(crate) struct Check<'a> {
    pub(crate) book: &'a Book,
    pub(crate) sight: &'a Sight,
    pub(crate) cores: usize,
    pub(crate) mounts_before: &'a BTreeSet<String>,
}

/// What the daemon says of all, once nothing is under way.
type Said = BTreeMap<String, SandboxStatus>;

impl Check<'_> {
    /// All of it.
    pub(crate) async fn run(&self, client: &mut Client) {
        let Some(said) = self.at_rest(client).await else { return };
        self.compare_records(&said);
        let root = self.sight.root();
        let begun = Instant::now();
        let mut said = said;
        loop {
            let world = self.sight.look(root.as_deref());
            let wrongs = self.compare_world(&said, &world);
            if wrongs.is_empty() {
                self.compare_leaders(&said, &world);
                break;
            }
            if begun.elapsed() > SETTLING {
                for (wrong, page, what) in wrongs {
                    self.book.fault(wrong, what, page);
                }
                break;
            }
            tokio::time::sleep(PAUSE).await;
            // What ends by itself may have done so meanwhile.
            match self.at_rest(client).await {
                Some(again) => said = again,
                None => return,
            }
        }
        self.compare_hearts(&said).await;
    }

    /// What is said of all sandboxes once nothing is under way.
    async fn at_rest(&self, client: &mut Client) -> Option<Said> {
        let begun = Instant::now();
        loop {
            let all = match client.list(ListRequest::default()).await {
                Ok(all) => all,
                Err(error) => {
                    self.book.fault(Wrong::Stuck, format!("the list cannot be had: {error}"), None);
                    return None;
                }
            };
            let is_at_rest = |status: &&SandboxStatus| {
                Stage::of_phase(&status.phase).is_some_and(|stage| {
                    // An exit was seen, and its actor has not taken it up yet.
                    !(stage.is_alive() && status.marks.iter().any(|mark| mark == "exited"))
                }) && !status.marks.iter().any(|mark| mark == "recovering")
            };
            let restless: Vec<_> = all.iter().filter(|status| !is_at_rest(status)).collect();
            if restless.is_empty() {
                let name = |status: &SandboxStatus| {
                    SandboxKey::new(&status.namespace, &status.id).map(|key| key.file_name(255))
                };
                return Some(
                    all.into_iter().filter_map(|status| Some((name(&status).ok()?, status))).collect(),
                );
            }
            if begun.elapsed() > COMING_TO_REST {
                for status in restless {
                    let page = self.book.pages.iter().find(|page| page.id == status.id);
                    let found = format!("{} stays {} {:?}", status.id, status.phase, status.marks);
                    self.book.fault(Wrong::Stuck, found, page);
                }
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Every acknowledged command is visible.
    fn compare_records(&self, said: &Said) {
        for page in &self.book.pages {
            let status = said.get(&page.key.file_name(255));
            let stage = status.and_then(|status| Stage::of_phase(&status.phase)).unwrap_or(Stage::Gone);
            let life = status.map_or(0, |status| status.life);
            let mortal = page.kind == Kind::Mortal;
            let (possible, found, steps) = {
                let mut entries = page.entries.lock().expect("no panic");
                let possible = model::possible(&entries.known, &entries.steps, mortal);
                let steps = std::mem::take(&mut entries.steps);
                let found = possible.as_ref().map(|possible| model::matching(possible, stage, life));
                let any = [true, false].map(|kept| State {
                    stage,
                    kept: kept && stage != Stage::Gone,
                    life: Some(life),
                });
                entries.known = match &found {
                    Some(found) if !found.is_empty() => found.clone(),
                    // Too many ways, or a fault: what is there is what is gone on from.
                    _ => any
                        .into_iter()
                        .flat_map(|state| model::matching(&BTreeSet::from([state]), stage, life))
                        .collect(),
                };
                entries.certain = Some(entries.known.clone()).filter(|_| !page.shared);
                (possible, found, steps)
            };
            self.unreadable(page, possible.is_none());
            page.note(self.book.elapsed(), &format!("found {stage:?} life {life}"));
            if let (Some(possible), Some(found)) = (possible, found)
                && found.is_empty()
            {
                let only_alive = !possible.is_empty() && possible.iter().all(|state| state.stage.is_alive());
                let nobody_ended =
                    steps.iter().all(|step| matches!(step.outcome, Outcome::Done(_) | Outcome::Refused(_)));
                let wrong = if stage == Stage::Stopped && only_alive && nobody_ended {
                    Wrong::Disturbed
                } else {
                    Wrong::Lost
                };
                let what =
                    format!("{} is {stage:?} life {life}, and can only be one of {possible:?}", page.key);
                self.book.fault(wrong, what, Some(page));
            }
            if let Some(status) = status {
                self.compare_exit(page, stage, status);
            }
        }
        let known: BTreeSet<String> = self.book.pages.iter().map(|page| page.key.file_name(255)).collect();
        for name in said.keys().filter(|name| !known.contains(*name)) {
            self.book.fault(Wrong::LeftBehind, format!("{name} is listed, and nobody asked for it"), None);
        }
    }

    fn unreadable(&self, page: &Page, is_unreadable: bool) {
        if is_unreadable {
            *self
                .book
                .errors
                .lock()
                .expect("no panic")
                .entry("unchecked: too many ways".to_owned())
                .or_default() += 1;
            page.note(
                self.book.elapsed(),
                "not checked: there are too many ways in which it may have come about",
            );
        }
    }

    /// What is told of an end is true.
    fn compare_exit(&self, page: &Page, stage: Stage, status: &SandboxStatus) {
        let Some(exit) = &status.exit else {
            if stage == Stage::Stopped {
                self.book.fault(
                    Wrong::Answer,
                    format!("{} is stopped, and nothing tells how", page.key),
                    Some(page),
                );
            }
            return;
        };
        let can_be = match (exit.reason.as_str(), exit.status, page.kind) {
            ("exited", 7, Kind::Mortal) | ("exited", 0, Kind::Sleeper) => true,
            ("signalled", 137, _) | ("signalled", 143, Kind::Heart | Kind::Mortal | Kind::Sleeper) => true,
            ("never-ran", status, _) => status != 0,
            ("lost", status, _) => {
                *self.book.errors.lock().expect("no panic").entry("exit lost".to_owned()).or_default() += 1;
                status != 0
            }
            _ => false,
        };
        if !can_be || stage.is_alive() {
            let what = format!("{} is {stage:?}, and is said to have ended so: {exit:?}", page.key);
            self.book.fault(Wrong::Answer, what, Some(page));
        }
    }

    /// What is there has a record, and what has a record is there. Says what is not so.
    fn compare_world<'a>(&'a self, said: &Said, world: &World) -> Vec<(Wrong, Option<&'a Page>, String)> {
        let mut wrongs = Vec::new();
        let stage = |name: &str| said.get(name).and_then(|status| Stage::of_phase(&status.phase));
        let page = |name: &str| self.book.pages.iter().find(|page| page.key.file_name(255) == *name);
        for (name, group) in &world.groups {
            match stage(name) {
                None | Some(Stage::Gone | Stage::Defined) => {
                    let what = format!("cgroup {name} has no instance on record ({:?})", stage(name));
                    wrongs.push((Wrong::LeftBehind, page(name), what));
                }
                Some(Stage::Created | Stage::Stopped) if group.populated => {
                    let what = format!("cgroup {name} has processes, and it is {:?}", stage(name));
                    wrongs.push((Wrong::LeftBehind, page(name), what));
                }
                Some(stage) if stage.is_alive() && group.frozen != (stage == Stage::Paused) => {
                    let what = format!("cgroup {name}: frozen {}, and it is {stage:?}", group.frozen);
                    wrongs.push((Wrong::Disturbed, page(name), what));
                }
                Some(_) => {}
            }
        }
        for (name, status) in said {
            let inside = world.inside.get(name).map(Vec::as_slice).unwrap_or_default();
            if stage(name).is_some_and(Stage::is_alive) {
                self.compare_inside(name, status, inside, &mut wrongs);
            }
        }
        for (name, _) in world.inside.iter().filter(|(name, _)| !world.groups.contains_key(*name)) {
            wrongs.push((
                Wrong::LeftBehind,
                page(name),
                format!("processes in a cgroup {name} that is gone"),
            ));
        }
        for process in &world.astray {
            wrongs.push((Wrong::LeftBehind, None, format!("a process outside of every cgroup: {process:?}")));
        }
        for door in &world.dead_doors {
            wrongs.push((Wrong::LeftBehind, None, format!("socket {door} of a zygote that is gone")));
        }
        let zygotes: Vec<&Process> = world.zygotes.iter().filter(|process| !process.zombie).collect();
        if zygotes.len() != world.doors.len() || zygotes.len() > self.cores {
            let what = format!(
                "{} zygotes and {} sockets for {} cores: {zygotes:?}",
                zygotes.len(),
                world.doors.len(),
                self.cores
            );
            wrongs.push((Wrong::Doubled, None, what));
        }
        for (name, path) in world.named_files.iter().filter(|(name, _)| !said.contains_key(*name)) {
            wrongs.push((
                Wrong::LeftBehind,
                page(name),
                format!("a file of one that is gone: {}", path.display()),
            ));
        }
        for mount in world.mounts.difference(self.mounts_before) {
            wrongs.push((Wrong::LeftBehind, None, format!("a mount: {mount}")));
        }
        wrongs
    }

    /// One that runs has one leader, which is the one that is told, one main process, and no program that nobody waits for.
    fn compare_inside<'a>(
        &'a self,
        name: &str,
        status: &SandboxStatus,
        inside: &[Process],
        wrongs: &mut Vec<(Wrong, Option<&'a Page>, String)>,
    ) {
        let page = self.book.pages.iter().find(|page| page.key.file_name(255) == *name);
        let leaders: Vec<&Process> =
            inside.iter().filter(|process| process.is_leader && !process.zombie).collect();
        match leaders[..] {
            [leader] if leader.pid == status.pid => {}
            [] => wrongs.push((Wrong::Lost, page, format!("{name} is {}, and has no leader", status.phase))),
            [_] => {
                let what = format!("{name}: leader {} is told, and it is {leaders:?}", status.pid);
                wrongs.push((Wrong::Lost, page, what));
            }
            _ => wrongs.push((Wrong::Doubled, page, format!("{name} has several leaders: {leaders:?}"))),
        }
        let others = inside.iter().filter(|process| !process.is_leader);
        let (hearts, programs): (Vec<&Process>, Vec<&Process>) = others.partition(|process| {
            process.arguments.iter().any(|argument| argument.contains(&self.book.hearts.token))
        });
        if hearts.len() > 1 {
            wrongs.push((Wrong::Doubled, page, format!("{name} has several main processes: {hearts:?}")));
        }
        if status.phase == "running" && !programs.is_empty() {
            wrongs.push((
                Wrong::LeftBehind,
                page,
                format!("{name}: programs that nobody waits for: {programs:?}"),
            ));
        }
    }

    /// The leader of a life stays the same, for as long as it lives.
    fn compare_leaders(&self, said: &Said, world: &World) {
        for page in &self.book.pages {
            let name = page.key.file_name(255);
            let Some(status) = said.get(&name).filter(|status| status.pid != 0) else { continue };
            let inside = world.inside.get(&name).map(Vec::as_slice).unwrap_or_default();
            let Some(leader) = inside.iter().find(|process| process.pid == status.pid) else { continue };
            let (pid, began) = {
                let mut entries = page.entries.lock().expect("no panic");
                let pid = *entries.leaders.entry(status.life).or_insert(status.pid);
                (pid, *entries.began.entry(status.life).or_insert(leader.began))
            };
            if (pid, began) != (status.pid, leader.began) {
                let what = format!(
                    "{}: life {} had leader {pid} begun at {began}, and has {} begun at {}",
                    page.key, status.life, status.pid, leader.began
                );
                self.book.fault(Wrong::Disturbed, what, Some(page));
            }
        }
    }

    /// Those that run beat on, those that are paused do not, and each life has one heart.
    async fn compare_hearts(&self, said: &Said) {
        let hearts = self.book.pages.iter().filter(|page| matches!(page.kind, Kind::Heart | Kind::Stubborn));
        let stage = |page: &Page| {
            let status = said.get(&page.key.file_name(255));
            (status.and_then(|status| Stage::of_phase(&status.phase)), status.map_or(0, |status| status.life))
        };
        let files = &self.book.hearts;
        let before: Vec<_> = hearts.map(|page| (page, stage(page), files.beats(&page.id))).collect();
        tokio::time::sleep(STILL).await;
        for (page, (stage, life), beats) in before {
            for line in files.doubled(&page.id) {
                self.book.fault(
                    Wrong::Doubled,
                    format!("{}: two hearts at one time: {line}", page.key),
                    Some(page),
                );
                let _ = files.prepare(&page.id);
            }
            match stage {
                Some(Stage::Paused) => {
                    let now = files.beats(&page.id);
                    if now != beats {
                        let what = format!("{} is paused, and its heart beats: {beats:?}, {now:?}", page.key);
                        self.book.fault(Wrong::Disturbed, what, Some(page));
                    }
                }
                Some(Stage::Running) => self.beats_on(page, life).await,
                _ => {}
            }
        }
    }

    async fn beats_on(&self, page: &Page, life: u64) {
        let begun = Instant::now();
        let before = self.book.hearts.beats(&page.id);
        let now = loop {
            let now = self.book.hearts.beats(&page.id);
            // Two beats of one heart: it has begun, and goes on.
            if now.heart == before.heart && now.count > before.count
                || now.heart != before.heart && now.count > 0
            {
                break now;
            }
            if begun.elapsed() > SETTLING {
                let what = format!("{} runs, and its heart does not beat: {before:?}, {now:?}", page.key);
                return self.book.fault(Wrong::Disturbed, what, Some(page));
            }
            tokio::time::sleep(PAUSE).await;
        };
        let heart = *page.entries.lock().expect("no panic").hearts.entry(life).or_insert(now.heart);
        if heart != now.heart {
            let what = format!("{}: in life {life} heart {heart} beat, and now {} does", page.key, now.heart);
            self.book.fault(Wrong::Disturbed, what, Some(page));
        }
    }

    /// At the end nothing is there. Says what is.
    pub(crate) async fn nothing_is_left(&self, root: Option<PathBuf>, within: Duration) {
        let begun = Instant::now();
        loop {
            let world = self.sight.look(root.as_deref());
            let mut left: Vec<String> = Vec::new();
            left.extend(world.groups.keys().map(|name| format!("cgroup {name}")));
            left.extend(
                root.iter().filter(|root| root.exists()).map(|root| format!("cgroup {}", root.display())),
            );
            let processes = world.inside.values().flatten().chain(&world.zygotes).chain(&world.astray);
            left.extend(processes.map(|process| format!("process {process:?}")));
            left.extend(world.doors.iter().chain(&world.dead_doors).map(|name| format!("socket {name}")));
            left.extend(world.named_files.values().map(|path| format!("file {}", path.display())));
            left.extend(world.mounts.difference(self.mounts_before).map(|mount| format!("mount {mount}")));
            if left.is_empty() {
                return;
            }
            if begun.elapsed() > within {
                left.into_iter()
                    .for_each(|what| self.book.fault(Wrong::LeftBehind, format!("at the end: {what}"), None));
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
