//! The cases of the lifecycle on real sandboxes: the whole way from a keeper's caller to the kernel. Needs root.
//!
//! Every test has a keeper of its own and ends by checking that nothing is left. `SANDKEEPER_FULL=1` runs the full sizes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandkeeper::model::{ExitReason, Phase};
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::{Runtime, contract};
use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};
use sandkeeper::{Controller, ErrorKind, Keeper, SandboxKey, WatchItem};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn size(scaled: u64, full: u64) -> u64 {
    if std::env::var_os("SANDKEEPER_FULL").is_some() { full } else { scaled }
}

fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

/// A number that looks random, the same in every run.
fn scatter(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_add(0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

/// A sandbox in the host's root that runs this shell script.
fn shell(script: &str) -> SandboxSpec {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", script]);
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() }
}

/// A sandbox that writes a line to `file` every 10 ms.
fn heartbeat(file: &Path) -> SandboxSpec {
    let mut spec = shell("while :; do echo beat; sleep 0.01; done");
    spec.process.as_mut().unwrap().stdio.stdout = Some(file.to_owned());
    spec
}

fn beats(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// Whether there is such a process, a zombie included.
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// SIGKILL from outside to the leader of a sandbox of ours.
fn kill_leader(pid: u32) {
    assert!(pid > 1);
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

struct House {
    keeper: Keeper,
    runtime: Arc<LinuxRuntime>,
    scratch: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("sandkeeper-keeper-test-").tempdir().unwrap();
        let runtime = LinuxRuntime::new(LinuxConfig::default()).expect("these tests need root and cgroup v2");
        let keeper = Keeper::builder().runtime("linux", Arc::clone(&runtime) as _).build().unwrap();
        Self { keeper, runtime, scratch }
    }

    /// The cgroups of a sandbox.
    fn groups(&self, key: &SandboxKey) -> Vec<PathBuf> {
        let name = key.file_name(255);
        let groups = std::fs::read_dir(self.runtime.cgroup_root()).unwrap();
        let path = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path();
        let ours = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&name);
        groups.map(path).filter(ours).collect()
    }

    /// Nothing of this sandbox is left on the node.
    #[track_caller]
    fn node_is_clean(&self, key: &SandboxKey, pid: u32) {
        assert!(!exists(pid), "process {pid} is left");
        assert_eq!(self.groups(key), Vec::<PathBuf>::new());
        assert!(self.keeper.inspect(key).is_err());
    }

    /// Shuts everything down and checks that nothing is left.
    async fn close(self) {
        let failed = self.keeper.close(Some(Duration::ZERO)).await;
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(self.runtime.left_behind(), Vec::<String>::new());
        let usage = self.runtime.usage();
        assert_eq!((usage.sandboxes, usage.id_blocks), (0, 0), "{usage:?}");
        let root = self.runtime.cgroup_root().to_owned();
        drop(self.keeper);
        self.runtime.close().await;
        assert!(!root.exists(), "{} is left", root.display());
        self.scratch.close().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_linux_backend_upholds_the_contract() {
    let house = House::new();
    let runtime: Arc<dyn Runtime> = Arc::clone(&house.runtime) as _;
    contract::upholds_everything(&runtime, &SandboxSpec::default()).await;
    contract::upholds_everything(&runtime, &shell("exec sleep 1000")).await;
    house.close().await;
}

/// Goal: with a state directory it is the same backend. Method: the same contract.
#[tokio::test(flavor = "multi_thread")]
async fn the_linux_backend_upholds_the_contract_with_a_state_directory() {
    let place = tempfile::tempdir().unwrap();
    let state_dir = Some(place.path().join("state"));
    let linux = LinuxRuntime::new(LinuxConfig { state_dir, ..LinuxConfig::default() }).unwrap();
    let runtime: Arc<dyn Runtime> = Arc::clone(&linux) as _;
    contract::upholds_everything(&runtime, &SandboxSpec::default()).await;
    contract::upholds_everything(&runtime, &shell("exec sleep 1000")).await;
    assert_eq!(linux.left_behind(), Vec::<String>::new());
    let root = linux.cgroup_root().to_owned();
    linux.close().await;
    assert!(!root.exists());
}

/// C01 (a): many callers, one process.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_starts_make_one_leader() {
    let house = House::new();
    let key = key("dup-1");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let keeper = house.keeper.clone();
        calls.spawn(async move { keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid });
    }
    let pids = calls.join_all().await;
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(house.groups(&key).len(), 1);
    house.keeper.shutdown(&key, None).await.unwrap();
    house.node_is_clean(&key, pids[0]);
    house.close().await;
}

/// C02 (c): a Shutdown at any moment of a start leaves a clean node.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_at_any_moment_of_a_start_leaves_a_clean_node() {
    let house = House::new();
    for round in 0..size(60, 200) {
        let key = key(&format!("race-{round}"));
        let spec = if round % 2 == 0 { SandboxSpec::default() } else { shell("exec sleep 1000") };
        let start = house.keeper.run(&key, spec);
        let shutdown = async {
            tokio::time::sleep(Duration::from_micros(scatter(round) % 4_000)).await;
            house.keeper.shutdown(&key, Some(Duration::ZERO)).await
        };
        let (start, shutdown) = tokio::join!(start, shutdown);
        shutdown.expect("always legal");
        match start {
            // The Shutdown came before or after it.
            Ok(sandbox) => {
                if house.keeper.ping(&key).is_err() {
                    house.node_is_clean(&key, sandbox.started.pid);
                }
            }
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::Aborted | ErrorKind::FailedPrecondition), "{error}");
            }
        }
    }
    house.close().await;
}

/// C03: a caller that goes away in the middle of a start leaves a whole sandbox or none, and no descriptor or zombie.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_starts_complete_and_leak_nothing() {
    let house = House::new();
    for round in 0..size(40, 100) {
        let key = key(&format!("gone-{round}"));
        let abandon = Duration::from_micros(scatter(round) % 3_000);
        let _ = tokio::time::timeout(abandon, house.keeper.run(&key, SandboxSpec::default())).await;
        let again = house.keeper.run(&key, SandboxSpec::default()).await.expect("joins it, or has it");
        assert!(house.keeper.ping(&key).is_ok());
        house.keeper.shutdown(&key, None).await.unwrap();
        house.node_is_clean(&key, again.started.pid);
    }
    house.close().await;
}

/// C07: processes that end at once are started once, ended once, with their own status.
#[tokio::test(flavor = "multi_thread")]
async fn instant_exits_lose_nothing() {
    let house = House::new();
    let mut watch = house.keeper.watch();
    let count = size(100, 500);
    let mut calls = tokio::task::JoinSet::new();
    let turns = Arc::new(tokio::sync::Semaphore::new(64));
    for number in 0..count {
        let (keeper, turns) = (house.keeper.clone(), Arc::clone(&turns));
        calls.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let key = key(&format!("instant-{number}"));
            let sandbox =
                keeper.run(&key, shell(&format!("exit {}", number % 200))).await.expect("it did start");
            let pid = sandbox.started.pid;
            assert!(pid > 1 && pid < 1 << 22, "{pid}");
            let exit = keeper.wait(&key).await.expect("it did end");
            assert_eq!(exit.reason, ExitReason::Exited((number % 200) as u8), "{key}");
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    let mut seen = HashMap::<SandboxKey, Vec<Phase>>::new();
    while seen.values().filter(|phases| phases.contains(&Phase::Stopped)).count() < count as usize {
        if let Some(WatchItem::Event(event)) = watch.next().await {
            seen.entry(event.key).or_default().push(event.phase);
        }
    }
    for (key, phases) in seen {
        use Phase::*;
        assert_eq!(phases, [Defined, Creating, Starting, Running, Stopped], "{key}");
    }
    house.close().await;
}

/// C07, second half: leaders killed from outside in one burst, each with somebody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_kills_from_outside_reaches_everybody() {
    let house = House::new();
    let mut pids = Vec::new();
    let mut waits = tokio::task::JoinSet::new();
    for number in 0..size(150, 500) {
        let key = key(&format!("burst-{number}"));
        pids.push(house.keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid);
        let keeper = house.keeper.clone();
        waits.spawn(async move { keeper.wait(&key).await.unwrap() });
    }
    tokio::time::sleep(MS(20)).await;
    pids.into_iter().for_each(kill_leader);
    let heard =
        tokio::time::timeout(Duration::from_secs(5), waits.join_all()).await.expect("everybody is told");
    assert!(heard.iter().all(|exit| exit.status() == 137), "{heard:?}");
    house.close().await;
}

/// C08: Shutdown is a barrier; and a leader's end is the sandbox's, whatever its children do.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_means_gone() {
    let house = House::new();
    let again = key("again");
    let deaf_child =
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; exec sleep 1000";
    for _ in 0..size(30, 200) {
        let sandbox = house.keeper.run(&again, shell(deaf_child)).await.expect("the name is free");
        house.keeper.shutdown(&again, Some(MS(1))).await.unwrap();
        house.node_is_clean(&again, sandbox.started.pid);
    }

    let orphaning = key("orphaning");
    let script = "(setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; exit 3";
    let sandbox = house.keeper.run(&orphaning, shell(script)).await.unwrap();
    assert_eq!(house.keeper.wait(&orphaning).await.unwrap().reason, ExitReason::Exited(3));
    assert_eq!(house.keeper.inspect(&orphaning).unwrap().phase, "stopped");
    house.keeper.shutdown(&orphaning, None).await.unwrap();
    house.node_is_clean(&orphaning, sandbox.started.pid);
    house.close().await;
}

/// C09: what somebody has destroyed by hand can still be shut down.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_destroyed_by_hand_is_still_shut_down() {
    let house = House::new();
    let key = key("by-hand");
    let sandbox = house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let [group] = &house.groups(&key)[..] else { panic!("one group") };
    std::fs::write(group.join("cgroup.kill"), "1").unwrap();
    let begun = Instant::now();
    while std::fs::remove_dir(group).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(MS(1)).await;
    }
    assert_eq!(house.keeper.wait(&key).await.unwrap().status(), 137);
    for _ in 0..3 {
        house.keeper.shutdown(&key, None).await.unwrap();
    }
    house.node_is_clean(&key, sandbox.started.pid);
    house.close().await;
}

/// C10: what is paused ends like anything else, at once; a pause that races with the end does not outlive it.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_ends_and_an_end_clears_a_pause() {
    let house = House::new();
    let ready = house.scratch.path().join("ready");
    let term7 = || {
        let mut spec = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        spec.process.as_mut().unwrap().stdio.stdout = Some(ready.clone());
        spec
    };
    let paused = key("paused");
    for stop_first in [false, true] {
        let sandbox = house.keeper.run(&paused, term7()).await.unwrap();
        house.keeper.pause(&paused).await.unwrap();
        let begun = Instant::now();
        if stop_first {
            house.keeper.stop(&paused, Some(Duration::from_secs(3))).await.unwrap();
            assert_eq!(house.keeper.wait(&paused).await.unwrap().status(), 137, "as documented");
        }
        house.keeper.shutdown(&paused, None).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4));
        house.node_is_clean(&paused, sandbox.started.pid);
    }
    // Not paused, it is asked, and may answer.
    std::fs::remove_file(&ready).unwrap();
    house.keeper.run(&paused, term7()).await.unwrap();
    while beats(&ready) == 0 {
        tokio::time::sleep(MS(2)).await;
    }
    house.keeper.stop(&paused, Some(Duration::from_secs(10))).await.unwrap();
    assert_eq!(house.keeper.wait(&paused).await.unwrap().reason, ExitReason::Exited(7));

    for round in 0..size(40, 500) {
        let key = key(&format!("short-{round}"));
        let millis = scatter(round) % 20;
        house.keeper.run(&key, shell(&format!("sleep 0.{millis:03}; exit 5"))).await.unwrap();
        let pause = house.keeper.pause(&key).await;
        if let Err(error) = &pause {
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        }
        // It may have been frozen before it ended: then it ends when it is thawed.
        let resumed = house.keeper.resume(&key).await;
        assert_eq!(house.keeper.wait(&key).await.unwrap().status(), 5, "{pause:?} {resumed:?}");
        assert_eq!(house.keeper.inspect(&key).unwrap().phase, "stopped");
        assert_eq!(house.keeper.resume(&key).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        house.keeper.shutdown(&key, None).await.unwrap();
    }
    house.close().await;
}

/// C12: paused means that nothing moves, and alive.
#[tokio::test(flavor = "multi_thread")]
async fn paused_means_that_nothing_moves() {
    let house = House::new();
    let key = key("heart");
    let file = house.scratch.path().join("beats");
    house.keeper.run(&key, heartbeat(&file)).await.unwrap();
    for _ in 0..3 {
        let before = beats(&file);
        let moved = async {
            while beats(&file) == before {
                tokio::time::sleep(MS(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), moved).await.expect("it runs");
        house.keeper.pause(&key).await.unwrap();
        let frozen = beats(&file);
        tokio::time::sleep(MS(size(100, 1_000))).await;
        assert_eq!(beats(&file), frozen, "it moved while it was paused");
        assert!(house.keeper.ping(&key).is_ok());
        assert!(house.keeper.probe(&key).await.unwrap().frozen);
        assert_eq!(house.keeper.inspect(&key).unwrap().phase, "paused");
        house.keeper.resume(&key).await.unwrap();
        assert!(!house.keeper.probe(&key).await.unwrap().frozen);
    }
    house.keeper.shutdown(&key, None).await.unwrap();
    house.close().await;
}

/// C16: the longest names, and names that differ only in case, start and are told apart in the kernel.
#[tokio::test(flavor = "multi_thread")]
async fn long_and_similar_names_are_different_sandboxes() {
    let house = House::new();
    let longest = "n".repeat(76);
    let almost = format!("{}m", "n".repeat(75));
    let names = [
        ("default", "Abc"),
        ("default", "abc"),
        ("a", "b.c"),
        ("a.b", "c"),
        (&longest, &longest),
        (&longest, &almost),
    ];
    let mut pids = Vec::new();
    for (namespace, id) in names {
        let key = SandboxKey::new(namespace, id).unwrap();
        pids.push((key, house.keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid));
    }
    let (first, rest) = pids.split_first().unwrap();
    house.keeper.shutdown(&first.0, None).await.unwrap();
    house.node_is_clean(&first.0, first.1);
    assert!(rest.iter().all(|(key, pid)| house.keeper.ping(key).is_ok() && exists(*pid)));
    house.close().await;
}

/// C20 (b): a group under our root with somebody else's process in it is named, and left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_process_in_the_way_is_neither_killed_nor_joined() {
    let house = House::new();
    let key = key("occupied");
    // Where the sandbox's group is to be, whatever the backend adds to the name.
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let [group] = &house.groups(&key)[..] else { panic!("one group") };
    let group = group.clone();
    house.keeper.shutdown(&key, None).await.unwrap();
    std::fs::create_dir(&group).unwrap();
    let mut foreign = std::process::Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    std::fs::write(group.join("cgroup.procs"), foreign.id().to_string()).unwrap();
    match house.keeper.run(&key, SandboxSpec::default()).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
            assert!(error.to_string().contains(&*group.to_string_lossy()), "{error} names the group");
        }
        // Or in a fresh group.
        Ok(_) => house.keeper.shutdown(&key, None).await.unwrap(),
    }
    assert!(foreign.try_wait().unwrap().is_none(), "it was killed");
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), foreign.id().to_string(), "it was joined");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    std::fs::remove_dir(&group).unwrap();
    house.keeper.run(&key, SandboxSpec::default()).await.expect("free again");
    house.close().await;
}

/// A zygote that is killed is replaced, and its sandboxes stay supervised.
#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_outlive_their_zygotes() {
    let house = House::new();
    let mut pids = HashMap::new();
    for number in 0..20 {
        let key = key(&format!("orphan-{number}"));
        pids.insert(key, house.keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid);
    }
    house.runtime.usage().zygotes.into_iter().for_each(kill_leader);
    for key in pids.keys() {
        assert!(house.keeper.ping(key).is_ok());
        assert!(house.keeper.probe(key).await.unwrap().alive);
    }
    let fresh = key("fresh");
    let begun = Instant::now();
    while let Err(error) = house.keeper.run(&fresh, SandboxSpec::default()).await {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "no zygote came: {error}");
    }
    for (at, (key, pid)) in pids.into_iter().enumerate() {
        if at % 2 == 0 {
            kill_leader(pid);
            let exit = tokio::time::timeout(Duration::from_secs(10), house.keeper.wait(&key))
                .await
                .unwrap()
                .unwrap();
            assert_ne!(exit.status(), 0, "never a success that nobody saw");
        }
    }
    // All at once: what lost its parent waits for PID 1 to reap it.
    house.close().await;
}

/// C26 on a real sandbox: its owner fails, and the next one finds the same leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_sandbox_does_not_notice_that_its_owner_failed() {
    let house = House::new();
    let key = key("owned");
    let file = house.scratch.path().join("beats");
    let before = house.keeper.run(&key, heartbeat(&file)).await.unwrap();
    house.keeper.fail_owner(&key);
    let begun = Instant::now();
    let after = loop {
        match house.keeper.start(&key).await {
            Ok(sandbox) => break sandbox,
            // Where panics print their traces, the printing takes most of it.
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(MS(1)).await;
    };
    assert_eq!((after.life, after.started.pid), (before.life, before.started.pid));
    let beaten = beats(&file);
    tokio::time::sleep(MS(100)).await;
    assert!(beats(&file) > beaten);
    house.close().await;
}

/// A program that is not there fails the start, says so, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_work_says_why_and_leaves_nothing() {
    let house = House::new();
    let key = key("nothing");
    let mut spec = shell("");
    spec.process = Some(ProcessSpec::new(["/no/such/program"]));
    let error = house.keeper.run(&key, spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert_eq!(house.groups(&key), Vec::<PathBuf>::new());
    assert!(house.keeper.is_empty());

    let mut limited = SandboxSpec::default();
    limited.limits.memory_bytes = Some(64 << 20);
    if !house.runtime.capabilities().limit_memory {
        let error = house.keeper.run(&key, limited).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
    house.close().await;
}

/// A zygote that does not answer holds up no Shutdown, and what it does too late comes to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_mute_zygote_holds_up_no_shutdown() {
    let house = House::new();
    let signal = |signal| {
        for pid in house.runtime.usage().zygotes {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    };
    let key = key("unheard");
    signal(rustix::process::Signal::STOP);
    let start = tokio::spawn({
        let keeper = house.keeper.clone();
        async move { keeper.run(&key, SandboxSpec::default()).await }
    });
    tokio::time::sleep(MS(100)).await;
    let shutdown = house.keeper.shutdown(&key, Some(Duration::ZERO)).await;
    signal(rustix::process::Signal::CONT);
    shutdown.expect("it does not wait for the zygote");
    assert_eq!(start.await.unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    house.keeper.run(&key, SandboxSpec::default()).await.expect("the zygote works again");
    house.close().await;
}

/// A leader that somebody has moved to another cgroup ends with its sandbox all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_moved_to_another_group_is_ended_too() {
    let house = House::new();
    let key = key("moved");
    let pid = house.keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid;
    let elsewhere = house.runtime.cgroup_root().parent().unwrap().join("cgroup.procs");
    std::fs::write(elsewhere, pid.to_string()).unwrap();
    house.keeper.shutdown(&key, Some(Duration::ZERO)).await.unwrap();
    house.node_is_clean(&key, pid);
    house.close().await;
}
