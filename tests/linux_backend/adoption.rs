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

/// Tells the executable to be a host: the state directory, and what to do there.
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
            _ => panic!("{text}"),
        }
    }

    fn spec(&self) -> SandboxSpec {
        match self {
            Self::Sleeper | Self::Paused | Self::Created => sleeper(),
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
            runtime.create(&instance).await.unwrap();
            let mut pid = 0;
            if !matches!(kind, Kind::Created) {
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
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["adoption::host_to_kill", "--exact", "--nocapture"])
            .env(HOST, told)
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
            eventually("the zygote goes", SOON, || !process_exists(*pid));
        }
    }
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
            eventually("the zygote goes", SOON, || !process_exists(pid));
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
