//! Sandboxes that outlive their supervisor: found again, with their pids, exits and pauses, and nothing else touched.
//!
//! The supervisor that is killed is this executable, run again by [`Host`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sandkeeper::model::{Exit, ExitReason, Life};
use sandkeeper::runtime::linux::{AdoptBy, ExitEvidence, LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::{Instance, Observer, Reality, Runtime, Urgency};
use sandkeeper::spec::{Mount, SandboxSpec};
use sandkeeper::{ErrorKind, SandboxKey};

use crate::support::*;

/// Tells the executable to be a host: a file with the state directory, and what to do there.
const HOST: &str = "SANDKEEPER_TEST_HOST";

const SOON: Duration = Duration::from_secs(10);

/// What a host does for one sandbox.
#[derive(Clone)]
enum Kind {
    Sleeper,
    /// Beats into a file.
    Heart(PathBuf),
    /// Exits with 7 as soon as a file is there.
    Seven(PathBuf),
    Paused,
    /// Created and not started.
    Created,
    /// Ended before the host is killed, with status 3.
    Ended,
    /// Being set up, and frozen in that.
    Stuck,
    /// Made and ended over and over, from this life on, each a thousand lives apart.
    Churn,
}

impl Kind {
    fn text(&self) -> String {
        match self {
            Self::Sleeper => "sleeper".to_owned(),
            Self::Heart(file) => format!("heart:{}", file.display()),
            Self::Seven(file) => format!("seven:{}", file.display()),
            Self::Paused => "paused".to_owned(),
            Self::Created => "created".to_owned(),
            Self::Ended => "ended".to_owned(),
            Self::Stuck => "stuck".to_owned(),
            Self::Churn => "churn".to_owned(),
        }
    }

    fn parse(text: &str) -> Self {
        let (name, file) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "sleeper" => Self::Sleeper,
            "heart" => Self::Heart(file.into()),
            "seven" => Self::Seven(file.into()),
            "paused" => Self::Paused,
            "created" => Self::Created,
            "ended" => Self::Ended,
            "stuck" => Self::Stuck,
            "churn" => Self::Churn,
            _ => panic!("{text}"),
        }
    }

    fn spec(&self) -> SandboxSpec {
        match self {
            Self::Sleeper | Self::Paused | Self::Created | Self::Stuck | Self::Churn => sleeper(),
            Self::Heart(file) => heartbeat(file),
            Self::Seven(file) => {
                let mut spec = shell("while ! test -e /mnt/flag; do sleep 0.01; done; exit 7");
                let source = file.parent().unwrap().to_owned();
                spec.mounts.push(Mount { source, target: "/mnt".into(), writable: false });
                spec
            }
            Self::Ended => shell("exit 3"),
        }
    }
}

fn config(dir: &Path) -> LinuxConfig {
    LinuxConfig {
        state_dir: Some(dir.to_owned()),
        linger: Duration::from_millis(300),
        zygotes: 2,
        ready_networks: 0,
        ..LinuxConfig::default()
    }
}

/// Not a test of its own: what [`Host`] runs.
#[test]
fn host_to_kill() {
    let Ok(told) = std::env::var(HOST) else { return };
    let told = std::fs::read_to_string(told).unwrap();
    let mut lines = told.lines();
    let dir = PathBuf::from(lines.next().unwrap());
    let jobs: Vec<String> = lines.map(str::to_owned).collect();
    block_on(async {
        let runtime = LinuxRuntime::new(config(&dir)).unwrap();
        let recorder = Arc::new(Recorder::default());
        for job in jobs {
            let [id, life, kind] = job.split(' ').collect::<Vec<_>>()[..] else { panic!("{job}") };
            let (life, kind) = (Life(life.parse().unwrap()), Kind::parse(kind));
            let instance = instance(&recorder, id, life, kind.spec());
            if matches!(kind, Kind::Churn) {
                tokio::spawn(churn(Arc::clone(&runtime), Arc::clone(&recorder), id.to_owned(), life.0));
                continue;
            }
            runtime.create(&instance).await.unwrap();
            let mut pid = 0;
            if matches!(kind, Kind::Stuck) {
                let group = runtime.cgroup_root().join(instance.key.file_name(255));
                std::fs::write(group.join("cgroup.freeze"), "1").unwrap();
                let (runtime, instance) = (Arc::clone(&runtime), Arc::clone(&instance));
                tokio::spawn(async move { runtime.start(&instance).await });
                let procs = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
                eventually("it is born", SOON, || !procs().is_empty());
                pid = procs().trim().parse().unwrap();
            } else if !matches!(kind, Kind::Created) {
                pid = runtime.start(&instance).await.unwrap().pid;
            }
            if matches!(kind, Kind::Paused) {
                runtime.pause(&instance).await.unwrap();
            }
            if matches!(kind, Kind::Ended) {
                recorder.exit(life, SOON);
            }
            eprintln!("sandbox {id} {pid}");
        }
        eprintln!("zygotes {:?}", runtime.usage().zygotes);
        eprintln!("ready");
        std::future::pending::<()>().await;
    });
}

/// Makes and ends one sandbox after the other: pause leaders, and processes with a root and without.
async fn churn(runtime: Arc<LinuxRuntime>, recorder: Arc<Recorder>, id: String, first: u64) {
    for life in first.. {
        let spec = match life % 3 {
            0 => sleeper(),
            1 => shell("exit 5"),
            _ => shell("sleep 100"),
        };
        let instance = instance(&recorder, &id, Life(life), spec);
        runtime.create(&instance).await.unwrap();
        runtime.start(&instance).await.unwrap();
        if life % 2 == 0 {
            runtime.stop(&instance, Urgency::Now).await.unwrap();
        }
        runtime.delete(&instance).await.unwrap();
    }
}

fn instance(recorder: &Arc<Recorder>, id: &str, life: Life, spec: SandboxSpec) -> Arc<Instance> {
    let key = SandboxKey::new("default", id).unwrap();
    Instance::new(key, life, Arc::new(spec), Arc::clone(recorder) as Arc<dyn Observer>)
}

/// A program with sandboxes, to be killed.
struct Host {
    process: Child,
    pids: BTreeMap<String, u32>,
    zygotes: Vec<u32>,
}

impl Host {
    /// Starts one, and waits until it has done its jobs: names, lives and kinds.
    fn start(dir: &Path, jobs: &[(&str, u64, Kind)]) -> Self {
        let mut told = dir.display().to_string();
        for (id, life, kind) in jobs {
            told += &format!("\n{id} {life} {}", kind.text());
        }
        let jobs_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&jobs_file, told).unwrap();
        #[expect(
            clippy::zombie_processes,
            reason = "it is waited for when it is killed; else the test fails"
        )]
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["adoption::host_to_kill", "--exact", "--nocapture"])
            .env(HOST, jobs_file.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let (mut pids, mut zygotes) = (BTreeMap::new(), Vec::new());
        for line in BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap) {
            if let Some((id, pid)) = line.strip_prefix("sandbox ").and_then(|rest| rest.split_once(' ')) {
                pids.insert(id.to_owned(), pid.parse().unwrap());
            } else if let Some(list) = line.strip_prefix("zygotes ") {
                let list = list.trim_matches(['[', ']']);
                zygotes = list.split(", ").map(|pid| pid.parse().unwrap()).collect();
            } else if line == "ready" {
                return Self { process, pids, zygotes };
            }
            said.push(line);
        }
        panic!("the host has ended:\n{}", said.join("\n"));
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn kill_with_zygotes(&mut self) {
        self.kill();
        for pid in &self.zygotes {
            kill(*pid);
        }
        for pid in &self.zygotes {
            eventually("the zygote ends", SOON, || has_ended(*pid));
        }
    }
}

/// Whether a process that is not our child has ended. Whoever inherits it reaps it in their own time.
fn has_ended(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z 1 "))
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A place for state, and what was made for it gone at the end, also if the test fails.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where the cgroup root is.
    fn root(&self) -> Option<PathBuf> {
        std::fs::read_to_string(self.state().join("linux.root")).ok().map(|path| path.trim_end().into())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(root) = self.root().filter(|root| root.exists()) else { return };
        std::fs::write(root.join("cgroup.kill"), "1").unwrap();
        eventually("what a failed test has left goes", SOON, || {
            for group in std::fs::read_dir(&root).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(group.path());
            }
            std::fs::remove_dir(&root).is_ok()
        });
    }
}

/// The next supervisor on a state directory.
struct Next {
    runtime: Arc<LinuxRuntime>,
    recorder: Arc<Recorder>,
}

impl Next {
    fn new(dir: &Path) -> Self {
        Self::with(config(dir))
    }

    fn with(config: LinuxConfig) -> Self {
        Self { runtime: LinuxRuntime::new(config).unwrap(), recorder: Arc::default() }
    }

    fn instance(&self, id: &str, life: u64, kind: &Kind) -> Arc<Instance> {
        instance(&self.recorder, id, Life(life), kind.spec())
    }

    async fn reattach(&self, instance: &Arc<Instance>) -> Reality {
        tokio::time::timeout(SOON, self.runtime.reattach(instance)).await.expect("it ends").unwrap()
    }

    /// That it runs with this pid.
    #[track_caller]
    fn assert_running(&self, reality: &Reality, pid: u32, is_frozen: bool) {
        match reality {
            Reality::Running { started, frozen } => {
                assert_eq!((started.pid, *frozen), (pid, is_frozen));
            }
            other => panic!("{other:?} instead of running as {pid}"),
        }
    }

    async fn delete(&self, instance: &Arc<Instance>) {
        tokio::time::timeout(SOON, self.runtime.delete(instance)).await.expect("it ends").unwrap();
        let group = self.runtime.cgroup_root().join(instance.key.file_name(255));
        assert!(!group.exists(), "{} is left", group.display());
    }

    /// Ends everything, and checks that nothing is left.
    async fn close(self, dir: &Path) {
        assert_eq!(self.runtime.left_behind(), Vec::<String>::new());
        let usage = self.runtime.usage();
        assert_eq!((usage.sandboxes, usage.id_blocks), (0, 0), "{usage:?}");
        let root = self.runtime.cgroup_root().to_owned();
        self.runtime.close().await;
        assert!(!root.exists(), "{} is left", root.display());
        assert!(!dir.join("zygotes").exists(), "sockets are left");
        for pid in usage.zygotes {
            eventually("the zygote ends", SOON, || has_ended(pid));
        }
    }
}

fn exit_of(reality: &Reality) -> Exit {
    match reality {
        Reality::Ended(exit) => *exit,
        other => panic!("{other:?} instead of an end"),
    }
}

/// Field case C05. Goal: the living are adopted as they are, and the dead are told as they died. Method: every kind, and a host
/// that is killed; some end while it is down.
#[test]
fn a_killed_hosts_sandboxes_are_found_as_they_are() {
    let place = Place::new();
    let (state, beats_to, flag) = (place.state(), place.path("beats"), place.path("flag"));
    std::fs::write(&beats_to, "").unwrap();
    let jobs = [
        ("a", 11, Kind::Sleeper),
        ("heart", 12, Kind::Heart(beats_to.clone())),
        ("b", 13, Kind::Seven(flag.clone())),
        ("c", 14, Kind::Sleeper),
        ("paused", 15, Kind::Paused),
        ("created", 16, Kind::Created),
        ("ended", 17, Kind::Ended),
    ];
    let mut host = Host::start(&state, &jobs);
    host.kill();
    let before = beats(&beats_to);
    std::fs::write(&flag, "").unwrap();
    kill(host.pids["c"]);
    let ended = |id: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.pids[id])).unwrap();
        stat.contains(") Z ")
    };
    eventually("b ends", SOON, || ended("b"));
    eventually("c ends", SOON, || ended("c"));
    eventually("the heart beats on", SOON, || beats(&beats_to) > before + 50);
    block_on(async {
        let next = Next::new(&state);
        let mut usage = next.runtime.usage().zygotes;
        usage.sort();
        host.zygotes.sort();
        assert_eq!(usage, host.zygotes, "the zygotes are taken over");
        assert_eq!(next.runtime.usage().id_blocks, 7, "their IDs are theirs");
        let mut instances = BTreeMap::new();
        let mut found = BTreeMap::new();
        for (id, life, kind) in &jobs {
            let instance = next.instance(id, *life, kind);
            found.insert(*id, next.reattach(&instance).await);
            instances.insert(*id, instance);
        }
        for id in ["a", "heart", "paused"] {
            next.assert_running(&found[id], host.pids[id], id == "paused");
            assert!(next.runtime.probe(&instances[id]).await.unwrap().alive);
        }
        assert_eq!(found["created"], Reality::Created);
        for (id, reason) in [("b", ExitReason::Exited(7)), ("c", ExitReason::Signalled(9))] {
            assert_eq!(exit_of(&found[id]), Exit { reason, at_unix_nanos: 0 }, "{id}");
            assert_eq!(next.recorder.exit(instances[id].life, SOON), exit_of(&found[id]));
        }
        // What the host has seen it has written down, with the time.
        let exit = exit_of(&found["ended"]);
        assert_eq!(exit.reason, ExitReason::Exited(3));
        assert!(exit.at_unix_nanos > 0);
        // From here on they are like any others.
        next.runtime.start(&instances["created"]).await.unwrap();
        next.runtime.resume(&instances["paused"]).await.unwrap();
        assert!(!next.runtime.probe(&instances["paused"]).await.unwrap().frozen);
        kill(host.pids["a"]);
        let exit = next.recorder.exit(Life(11), SOON);
        assert_eq!(exit.reason, ExitReason::Signalled(9));
        assert!(exit.at_unix_nanos > 0, "seen as it happened");
        next.runtime.stop(&instances["paused"], Urgency::Ask).await.unwrap();
        assert_eq!(next.recorder.exit(Life(15), SOON).reason, ExitReason::Exited(0));
        for instance in instances.values() {
            next.delete(instance).await;
        }
        for pid in host.pids.values().filter(|pid| **pid != 0) {
            assert!(!process_exists(*pid), "{pid} is left");
        }
        next.close(&state).await;
    });
}

/// Goal: where the zygotes are gone as well, the groups lead to the sandboxes; the same is so where that is all that is looked at.
/// Method: both, with every kind.
#[test]
fn the_groups_lead_to_the_sandboxes_where_the_zygotes_do_not() {
    for zygotes_killed in [true, false] {
        let place = Place::new();
        let (state, beats_to) = (place.state(), place.path("beats"));
        std::fs::write(&beats_to, "").unwrap();
        let jobs = [
            ("a", 11, Kind::Sleeper),
            ("heart", 12, Kind::Heart(beats_to.clone())),
            ("c", 14, Kind::Sleeper),
            ("paused", 15, Kind::Paused),
            ("created", 16, Kind::Created),
            ("ended", 17, Kind::Ended),
        ];
        let mut host = Host::start(&state, &jobs);
        if zygotes_killed {
            host.kill_with_zygotes();
        } else {
            host.kill();
        }
        kill(host.pids["c"]);
        block_on(async {
            let next = Next::with(LinuxConfig { adopt_by: AdoptBy::Group, ..config(&state) });
            assert_eq!(next.runtime.usage().id_blocks, 6, "their IDs are theirs");
            let mut instances = BTreeMap::new();
            let mut found = BTreeMap::new();
            for (id, life, kind) in &jobs {
                let instance = next.instance(id, *life, kind);
                found.insert(*id, next.reattach(&instance).await);
                instances.insert(*id, instance);
            }
            for id in ["a", "heart", "paused"] {
                next.assert_running(&found[id], host.pids[id], id == "paused");
            }
            assert_eq!(found["created"], Reality::Created);
            assert_eq!(exit_of(&found["ended"]).reason, ExitReason::Exited(3));
            // Nobody can tell any more; but it is not 0.
            assert_eq!(exit_of(&found["c"]), Exit { reason: ExitReason::Lost, at_unix_nanos: 0 });
            let before = beats(&beats_to);
            eventually("the heart beats on", SOON, || beats(&beats_to) > before + 50);
            kill(host.pids["a"]);
            let exit = next.recorder.exit(Life(11), SOON);
            assert_eq!(exit.reason, ExitReason::Signalled(9));
            for instance in instances.values() {
                next.delete(instance).await;
            }
            next.close(&state).await;
            // Whoever has inherited them reaps them in their own time.
            for pid in host.pids.values().filter(|pid| **pid != 0) {
                eventually("the process ends", SOON, || has_ended(*pid));
            }
        });
    }
}

/// Goal: each place where an exit status is looked for works for the adopted, too. Method: force each, with and without zygotes.
#[test]
fn the_exit_of_an_adopted_sandbox_is_known_wherever_it_can_be() {
    for zygotes_killed in [false, true] {
        for (evidence, expected) in [
            (ExitEvidence::Best, ExitReason::Exited(7)),
            (ExitEvidence::Pidfd, ExitReason::Exited(7)),
            (ExitEvidence::Nothing, ExitReason::Lost),
        ] {
            let place = Place::new();
            let (state, flag) = (place.state(), place.path("flag"));
            let kind = Kind::Seven(flag.clone());
            let mut host = Host::start(&state, &[("b", 3, kind.clone())]);
            if zygotes_killed {
                host.kill_with_zygotes();
            } else {
                host.kill();
            }
            block_on(async {
                let next = Next::with(LinuxConfig { exit_evidence: evidence, ..config(&state) });
                let instance = next.instance("b", 3, &kind);
                let found = next.reattach(&instance).await;
                next.assert_running(&found, host.pids["b"], false);
                std::fs::write(&flag, "").unwrap();
                let exit = next.recorder.exit(Life(3), SOON);
                // An orphan's parent takes its time, and is not waited for.
                let late =
                    zygotes_killed && evidence == ExitEvidence::Pidfd && exit.reason == ExitReason::Lost;
                assert!(
                    exit.reason == expected || late,
                    "{exit:?} by {evidence:?}, zygotes killed: {zygotes_killed}"
                );
                next.delete(&instance).await;
                next.close(&state).await;
            });
        }
    }
}

/// Goal: what nobody has a record of is listed with what its owner gave along, and only that is ended. Method: some known, some
/// not, one whose mark is unreadable, and a group of somebody else's with a process in it.
#[test]
fn what_nobody_knows_is_listed_and_ended_and_nothing_else() {
    let place = Place::new();
    let state = place.state();
    let jobs = [
        ("a", 11, Kind::Sleeper),
        ("b", 12, Kind::Sleeper),
        ("c", 13, Kind::Created),
        ("d", 14, Kind::Paused),
        ("e", 15, Kind::Sleeper),
    ];
    let mut host = Host::start(&state, &jobs);
    host.kill();
    let root = place.root().unwrap();
    // As if it had been killed before it came to mark it.
    std::fs::create_dir(root.join("default@fresh")).unwrap();
    let unmarked = root.join("default@foreign");
    std::fs::create_dir(&unmarked).unwrap();
    let mut foreigner = Bystander::new();
    std::fs::write(unmarked.join("cgroup.procs"), foreigner.0.id().to_string()).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("default@d"), "user.sandkeeper", b"nonsense", flags).unwrap();
    block_on(async {
        let next = Next::new(&state);
        assert!(!root.join("default@fresh").exists());
        // Of e another life is known.
        let known =
            |key: &SandboxKey, life: Life| [("a", 11), ("e", 9)].contains(&(key.id().as_str(), life.0));
        let survivors = next.runtime.survivors(&known).await.unwrap();
        let mut listed: Vec<_> =
            survivors.iter().map(|survivor| (survivor.key.id().to_string(), survivor.life.0)).collect();
        listed.sort();
        assert_eq!(
            listed,
            [("b", 12), ("c", 13), ("d", 0), ("e", 15)].map(|(id, life)| (id.to_owned(), life))
        );
        for survivor in &survivors {
            let id = survivor.key.id();
            let group = root.join(format!("default@{id}"));
            assert!(survivor.description.contains(&group.display().to_string()), "{}", survivor.description);
            if id.as_str() != "c" {
                let pid = format!("pid {}", host.pids[id.as_str()]);
                assert!(survivor.description.contains(&pid), "{}", survivor.description);
            }
            assert_eq!(survivor.keepsake, KEEPSAKE);
            tokio::time::timeout(SOON, next.runtime.end_survivor(survivor)).await.expect("it ends").unwrap();
            assert!(!group.exists());
            // Once more changes nothing.
            next.runtime.end_survivor(survivor).await.unwrap();
        }
        assert!(next.runtime.survivors(&known).await.unwrap().is_empty());
        for id in ["b", "d", "e"] {
            eventually("it is reaped", SOON, || !process_exists(host.pids[id]));
        }
        assert!(foreigner.lives());
        let a = next.instance("a", 11, &Kind::Sleeper);
        let found = next.reattach(&a).await;
        next.assert_running(&found, host.pids["a"], false);
        assert_eq!(next.runtime.usage().id_blocks, 1, "the IDs of the others are free");
        next.delete(&a).await;
        drop(foreigner);
        std::fs::remove_dir(&unmarked).unwrap();
        next.close(&state).await;
    });
}

/// Goal: a life is ended by its number, and no other. Method: without a reattach, stop and delete lives that are there, that were
/// followed by later ones, and that came before.
#[test]
fn lives_are_ended_without_having_been_reattached_and_never_another() {
    let place = Place::new();
    let state = place.state();
    let jobs = [
        ("a", 11, Kind::Sleeper),
        ("b", 12, Kind::Paused),
        ("c", 13, Kind::Sleeper),
        ("d", 14, Kind::Sleeper),
    ];
    let mut host = Host::start(&state, &jobs);
    host.kill();
    block_on(async {
        let next = Next::new(&state);
        let a = next.instance("a", 11, &Kind::Sleeper);
        next.runtime.stop(&a, Urgency::Now).await.unwrap();
        assert_eq!(next.recorder.count(Life(11)), 1);
        assert_eq!(next.recorder.exit(Life(11), SOON).reason, ExitReason::Signalled(9));
        next.delete(&a).await;
        next.delete(&next.instance("b", 12, &Kind::Paused)).await;
        assert_eq!(next.recorder.count(Life(12)), 1);
        // An earlier life of c is long gone; the one that is there stays.
        next.runtime.delete(&next.instance("c", 7, &Kind::Sleeper)).await.unwrap();
        let c = next.instance("c", 13, &Kind::Sleeper);
        let found = next.reattach(&c).await;
        next.assert_running(&found, host.pids["c"], false);
        assert_eq!(next.reattach(&next.instance("c", 7, &Kind::Sleeper)).await, Reality::Absent);
        next.runtime.delete(&next.instance("c", 20, &Kind::Sleeper)).await.unwrap();
        assert!(process_exists(host.pids["c"]), "it is known, and only its own delete ends it");
        next.delete(&c).await;
        // A later life of d never came to be: what is there is an earlier one's leftover.
        let later = next.instance("d", 20, &Kind::Sleeper);
        assert_eq!(next.reattach(&later).await, Reality::Absent);
        next.delete(&later).await;
        eventually("it is reaped", SOON, || !process_exists(host.pids["d"]));
        next.close(&state).await;
    });
}

/// Goal: the next life of an ID ends the one that an earlier host has left, and takes nothing from it. Method: run it.
#[test]
fn what_an_earlier_host_has_left_running_is_ended_by_the_next_life() {
    let place = Place::new();
    let state = place.state();
    let mut host = Host::start(&state, &[("a", 11, Kind::Sleeper)]);
    host.kill();
    block_on(async {
        let next = Next::new(&state);
        let a = next.instance("a", 12, &Kind::Sleeper);
        next.runtime.create(&a).await.unwrap();
        next.runtime.start(&a).await.unwrap();
        eventually("the earlier one is reaped", SOON, || !process_exists(host.pids["a"]));
        assert_eq!(next.runtime.usage().id_blocks, 1);
        next.delete(&a).await;
        next.close(&state).await;
    });
}

/// Goal: a sandbox is said to run only when it has been set up. Method: freeze it in its set-up and kill its host; then thaw it, end
/// it, or kill it from outside.
#[test]
fn what_is_still_being_set_up_is_waited_for_or_ended() {
    let place = Place::new();
    let state = place.state();
    let jobs = [("a", 11, Kind::Stuck), ("b", 12, Kind::Stuck), ("c", 13, Kind::Stuck)];
    let mut host = Host::start(&state, &jobs);
    host.kill();
    let root = place.root().unwrap();
    block_on(async {
        let next = Next::new(&state);
        let [a, b, c] = jobs.map(|(id, life, kind)| next.instance(id, life, &kind));
        let soon = tokio::time::timeout(Duration::from_millis(100), next.runtime.reattach(&a));
        assert!(soon.await.is_err(), "nobody can say that it runs");
        std::fs::write(root.join("default@a/cgroup.freeze"), "0").unwrap();
        let found = next.reattach(&a).await;
        next.assert_running(&found, host.pids["a"], false);
        kill(host.pids["b"]);
        assert_eq!(next.reattach(&b).await, Reality::Created, "it never ran");
        std::fs::write(root.join("default@b/cgroup.freeze"), "0").unwrap();
        next.runtime.start(&b).await.unwrap();
        tokio::time::timeout(SOON, next.runtime.stop(&c, Urgency::Now)).await.expect("it ends").unwrap();
        assert_eq!(next.recorder.count(Life(13)), 0, "what never ran has no end");
        for instance in [&a, &b, &c] {
            next.delete(instance).await;
        }
        next.close(&state).await;
    });
}

/// Goal: two directories have nothing to do with each other. Method: the same IDs and lives in both; one is closed.
#[test]
fn two_state_directories_never_touch_each_other() {
    let (one, other) = (Place::new(), Place::new());
    let jobs = [("a", 11, Kind::Sleeper)];
    let mut hosts = [Host::start(&one.state(), &jobs), Host::start(&other.state(), &jobs)];
    hosts.iter_mut().for_each(Host::kill);
    block_on(async {
        let (left, right) = (Next::new(&one.state()), Next::new(&other.state()));
        let a = left.instance("a", 11, &Kind::Sleeper);
        left.delete(&a).await;
        left.close(&one.state()).await;
        let a = right.instance("a", 11, &Kind::Sleeper);
        let found = right.reattach(&a).await;
        right.assert_running(&found, hosts[1].pids["a"], false);
        right.delete(&a).await;
        right.close(&other.state()).await;
    });
}

/// Goal: one directory has one backend. Method: a second one; and directories that are not one's own.
#[test]
fn a_state_directory_has_one_backend_and_one_owner() {
    let place = Place::new();
    let state = place.state();
    block_on(async {
        let first = Next::new(&state);
        let refused = |state: &Path| LinuxRuntime::new(config(state)).err().expect("refused");
        let error = refused(&state);
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let holder = format!("in use by process {}", std::process::id());
        assert!(error.to_string().contains(&holder), "{error}");
        // By another path it is the same.
        std::os::unix::fs::symlink(&state, place.path("link")).unwrap();
        assert!(refused(&place.path("link")).to_string().contains(&holder));
        first.runtime.leave().await;
        assert_eq!(
            first.runtime.create(&first.instance("a", 1, &Kind::Sleeper)).await.unwrap_err().kind(),
            ErrorKind::FailedPrecondition
        );
        let second = Next::new(&place.path("link"));
        assert!(second.runtime.capabilities().adopt);
        second.close(&state).await;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(refused(&state).to_string().contains("may be changed by others"));
        std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&state, Some(1234), None).unwrap();
        assert!(refused(&state).to_string().contains("belongs to user 1234"));
    });
}

/// Goal: a path may be longer than a socket's name. Method: a deep directory.
#[test]
fn a_state_directory_may_be_deep() {
    let place = Place::new();
    let state = place.state().join("deep/".repeat(60));
    block_on(async {
        let next = Next::new(&state);
        next.runtime.leave().await;
        Next::new(&state).close(&state).await;
    });
}

/// Goal: what is left of a directory that is not used any more goes by itself. Method: kill a host without sandboxes; and one whose
/// directory is removed while its sandbox runs.
#[test]
fn zygotes_that_nobody_comes_back_to_end() {
    let place = Place::new();
    let mut host = Host::start(&place.state(), &[]);
    let root = place.root().unwrap();
    host.kill();
    for pid in &host.zygotes {
        eventually("the zygote ends", SOON, || has_ended(*pid));
    }
    eventually("the root goes", SOON, || !root.exists());
    assert_eq!(std::fs::read_dir(place.state().join("zygotes")).unwrap().count(), 0);
    // With a sandbox they stay, as long as somebody can come.
    let mut host = Host::start(&place.state(), &[("a", 11, Kind::Sleeper)]);
    host.kill();
    eventually("the idle one goes", SOON, || {
        host.zygotes.iter().filter(|pid| !has_ended(**pid)).count() == 1
    });
    let keepers: Vec<u32> = host.zygotes.iter().copied().filter(|pid| !has_ended(*pid)).collect();
    for entry in std::fs::read_dir(place.state().join("zygotes")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    eventually("the other one ends", SOON, || has_ended(keepers[0]));
    block_on(async {
        let next = Next::new(&place.state());
        let a = next.instance("a", 11, &Kind::Sleeper);
        let found = next.reattach(&a).await;
        next.assert_running(&found, host.pids["a"], false);
        next.delete(&a).await;
        next.close(&place.state()).await;
    });
}

/// Goal: leaving leaves everything, in the same process as well. Method: leave and drop, one after the other.
#[test]
fn a_backend_that_leaves_is_followed_by_the_next() {
    let place = Place::new();
    let state = place.state();
    block_on(async {
        let first = Next::new(&state);
        let a = first.instance("a", 11, &Kind::Sleeper);
        first.runtime.create(&a).await.unwrap();
        let pid = first.runtime.start(&a).await.unwrap().pid;
        first.runtime.leave().await;
        let second = Next::new(&state);
        let a = second.instance("a", 11, &Kind::Sleeper);
        let found = second.reattach(&a).await;
        second.assert_running(&found, pid, false);
        drop(second);
        let third = Next::new(&state);
        let a = third.instance("a", 11, &Kind::Sleeper);
        let found = third.reattach(&a).await;
        third.assert_running(&found, pid, false);
        assert_eq!(first.recorder.count(Life(11)), 0);
        third.delete(&a).await;
        third.close(&state).await;
    });
}

/// Goal: a zygote that does not answer keeps nobody from starting, and its sandboxes are found by their groups. Method: stop it.
#[test]
fn a_zygote_that_does_not_answer_is_left_alone() {
    let place = Place::new();
    let state = place.state();
    let jobs = [("a", 11, Kind::Sleeper), ("b", 12, Kind::Sleeper)];
    let mut host = Host::start(&state, &jobs);
    host.kill();
    let stopped = rustix::process::Pid::from_raw(host.zygotes[0] as i32).unwrap();
    rustix::process::kill_process(stopped, rustix::process::Signal::STOP).unwrap();
    block_on(async {
        let next = Next::new(&state);
        let findings = next.runtime.capabilities().findings;
        assert!(findings.iter().any(|(name, _)| name == "zygotes left alone"), "{findings:?}");
        assert_eq!(next.runtime.usage().zygotes.len(), 2, "another takes its place");
        for (id, life, kind) in &jobs {
            let instance = next.instance(id, *life, kind);
            let found = next.reattach(&instance).await;
            next.assert_running(&found, host.pids[*id], false);
            next.delete(&instance).await;
        }
        rustix::process::kill_process(stopped, rustix::process::Signal::CONT).unwrap();
        next.close(&state).await;
    });
}

/// Field case C06. Goal: a process that got a sandbox's old number is never signalled, nor taken for the sandbox. Method: kill
/// host, zygotes and sandbox, and have a bystander born with that number.
#[test]
fn a_bystander_with_a_sandboxs_old_number_is_left_alone() {
    let place = Place::new();
    let state = place.state();
    let mut host = Host::start(&state, &[("a", 11, Kind::Sleeper)]);
    host.kill_with_zygotes();
    let pid = host.pids["a"];
    kill(pid);
    eventually("it is reaped by whoever inherited it", SOON, || !process_exists(pid));
    let Some(mut bystander) = born_as(pid) else {
        eprintln!("the next process ID cannot be chosen here");
        return;
    };
    block_on(async {
        let next = Next::new(&state);
        let a = next.instance("a", 11, &Kind::Sleeper);
        assert_eq!(exit_of(&next.reattach(&a).await).reason, ExitReason::Lost);
        assert!(!next.runtime.probe(&a).await.unwrap().alive);
        for urgency in [Urgency::Ask, Urgency::Now] {
            next.runtime.stop(&a, urgency).await.unwrap();
        }
        next.delete(&a).await;
        assert!(bystander.lives());
        next.close(&state).await;
        assert!(bystander.lives());
    });
}

/// A process that has nothing to do with us. Gone at the end.
struct Bystander(Child);

impl Bystander {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A process of this number, if numbers can be chosen here.
fn born_as(pid: u32) -> Option<Bystander> {
    for _ in 0..200 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let child = Bystander::new();
        if child.0.id() == pid {
            return Some(child);
        }
    }
    None
}

/// What this process has used of a core.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Goal: adoption is quick. Method: many sandboxes, timed; the figures are for whoever runs it alone.
#[test]
fn many_survivors_are_adopted() {
    let count = size(300, 10_000);
    let place = Place::new();
    let state = place.state();
    let ids: Vec<String> = (0..count).map(|i| format!("s-{i}")).collect();
    let jobs: Vec<(&str, u64, Kind)> =
        ids.iter().enumerate().map(|(i, id)| (id.as_str(), 100 + i as u64, Kind::Sleeper)).collect();
    let mut host = Host::start(&state, &jobs);
    host.kill();
    block_on(async {
        let start = std::time::Instant::now();
        let next = Next::new(&state);
        let made = start.elapsed();
        let instances: Vec<_> = jobs.iter().map(|(id, life, kind)| next.instance(id, *life, kind)).collect();
        let (start, used) = (std::time::Instant::now(), cpu_time());
        let mut tasks = tokio::task::JoinSet::new();
        for chunk in instances.chunks(count.div_ceil(64)) {
            let (runtime, chunk) = (Arc::clone(&next.runtime), chunk.to_vec());
            tasks.spawn(async move {
                for instance in chunk {
                    assert!(matches!(runtime.reattach(&instance).await, Ok(Reality::Running { .. })));
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let (took, used) = (start.elapsed(), cpu_time() - used);
        eprintln!("{count} survivors: the backend {made:?}; reattached in {took:?}, of {used:?} on a core");
        for instance in &instances {
            next.delete(instance).await;
        }
        next.close(&state).await;
    });
}

/// Field case C04. Goal: wherever a host is killed, what it was making is found or gone, and can be ended. Method: kill hosts that
/// make and end sandboxes as fast as they can; reattach what their groups say, end the rest, and count what is left.
#[test]
fn a_host_killed_at_any_moment_leaves_nothing_that_is_not_found() {
    let jobs: Vec<(String, u64)> = (0..6).map(|i| (format!("c-{i}"), 1_000_000 * (i + 1))).collect();
    let jobs: Vec<(&str, u64, Kind)> =
        jobs.iter().map(|(id, life)| (id.as_str(), *life, Kind::Churn)).collect();
    let place = Place::new();
    let state = place.state();
    let (mut running, mut ended, mut created) = (0, 0, 0);
    for round in 0..size(12, 200) {
        let mut host = Host::start(&state, &jobs);
        let moment = Duration::from_micros(scatter(round as u64) % 60_000);
        block_on(async { tokio::time::sleep(moment).await });
        host.kill();
        block_on(async {
            let next = Next::new(&state);
            let children = || {
                let list =
                    |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
                next.runtime.usage().zygotes.iter().map(list).collect::<String>()
            };
            for survivor in next.runtime.survivors(&|_, _| false).await.unwrap() {
                let kind = if survivor.life.0.is_multiple_of(3) { Kind::Sleeper } else { Kind::Ended };
                let instance = next.instance(survivor.key.id().as_str(), survivor.life.0, &kind);
                if scatter(survivor.life.0).is_multiple_of(3) {
                    tokio::time::timeout(SOON, next.runtime.end_survivor(&survivor))
                        .await
                        .expect("it ends")
                        .unwrap();
                    continue;
                }
                match next.reattach(&instance).await {
                    Reality::Running { started, .. } => {
                        assert!(process_exists(started.pid));
                        running += 1;
                    }
                    Reality::Ended(exit) => {
                        let reasons = [ExitReason::Exited(5), ExitReason::Signalled(9)];
                        assert!(reasons.contains(&exit.reason), "{survivor:?} {exit:?}");
                        ended += 1;
                    }
                    Reality::Created => created += 1,
                    Reality::Absent => panic!("{survivor:?} is not found"),
                }
                next.delete(&instance).await;
            }
            eventually(&format!("round {round}: no child is left"), SOON, || children().is_empty());
            next.close(&state).await;
        });
    }
    eprintln!("{running} ran, {ended} had ended, {created} were only created");
    assert!(running + ended + created > 0);
}
