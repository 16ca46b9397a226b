//! Limits, which need a machine with cgroup v2 alone. Each case panics if it fails.
//!
//! They need root, `/bin/sh` with `sleep`, and no swap. One at a time: the backend moves the whole process into a leaf where
//! it is in the way, and the last case moves it itself. Whoever includes this provides `crate::support`, which lies beside
//! the tests of the backend.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::Runtime;
use sandkeeper::runtime::linux::LinuxConfig;
use sandkeeper::spec::{Limits, SandboxSpec};

use crate::support::*;

/// Every case, by its name.
pub(crate) const CASES: &[(&str, fn())] = &[
    ("the_root_enables_the_controllers", the_root_enables_the_controllers),
    ("limits_are_written_as_asked", limits_are_written_as_asked),
    (
        "a_leftover_group_is_replaced_by_one_with_the_new_limits",
        a_leftover_group_is_replaced_by_one_with_the_new_limits,
    ),
    ("memory_limit_kills_and_is_reported_as_oom", memory_limit_kills_and_is_reported_as_oom),
    ("a_kill_by_us_is_not_reported_as_oom", a_kill_by_us_is_not_reported_as_oom),
    ("pids_limit_keeps_a_sandbox_from_forking", pids_limit_keeps_a_sandbox_from_forking),
    ("cpu_limit_throttles", cpu_limit_throttles),
    ("a_host_in_the_way_is_named_and_moved_on_request", a_host_in_the_way_is_named_and_moved_on_request),
];

/// A backend in whose groups everything can be limited.
fn bed() -> Bed {
    Bed::with(LinuxConfig { move_host_to_leaf: true, ..LinuxConfig::default() })
}

fn limited(mut spec: SandboxSpec, limits: Limits) -> SandboxSpec {
    spec.limits = limits;
    spec
}

fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

/// The number beside a key of a flat-keyed file.
fn count(group: &Path, file: &str, key: &str) -> u64 {
    let text = read(group, file);
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {key} in {file}: {text}"))
}

/// A machine with all controllers is said to have them, and the groups have their files.
pub(crate) fn the_root_enables_the_controllers() {
    block_on(async {
        let bed = bed();
        let can = bed.runtime.capabilities();
        assert!(can.limit_memory && can.limit_swap && can.limit_cpu && can.limit_pids, "{can:?}");
        let enabled = read(bed.runtime.cgroup_root(), "cgroup.subtree_control");
        for controller in ["memory", "pids", "cpu"] {
            assert!(enabled.split(' ').any(|name| name == controller), "{enabled}");
        }
        let instance = bed.instance("unlimited", sleeper());
        bed.run(&instance).await;
        assert_eq!(read(&bed.group(&instance), "memory.max"), "max");
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// What is written is what was asked, in the kernel's units.
pub(crate) fn limits_are_written_as_asked() {
    block_on(async {
        let bed = bed();
        let limits = Limits {
            memory_bytes: Some(32 << 20),
            swap_bytes: Some(0),
            cpu_millis: Some(250),
            pids: Some(16),
        };
        let instance = bed.instance("limited", limited(sleeper(), limits));
        bed.run(&instance).await;
        let group = bed.group(&instance);
        for (file, value) in [
            ("memory.max", "33554432"),
            ("memory.oom.group", "1"),
            ("memory.swap.max", "0"),
            ("cpu.max", "25000 100000"),
            ("pids.max", "16"),
        ] {
            assert_eq!(read(&group, file), value, "{file}");
        }
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Field case C20 (a) and (c), with limits.
pub(crate) fn a_leftover_group_is_replaced_by_one_with_the_new_limits() {
    block_on(async {
        let bed = bed();
        let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(20), ..Limits::default() };
        let instance = bed.instance("x", limited(sleeper(), limits));
        let group = bed.group(&instance);
        fs::create_dir_all(group.join("below")).unwrap();
        fs::write(group.join("pids.max"), "1").unwrap();
        fs::write(group.join("below/cgroup.freeze"), "1").unwrap();
        bed.run(&instance).await;
        assert_eq!((read(&group, "pids.max"), read(&group, "memory.max")), ("20".into(), "67108864".into()));
        assert!(!bed.runtime.probe(&instance).await.unwrap().frozen);
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Field case C20, the loop. Goal: an end for want of memory is named so, and never keeps the ID from its next life.
pub(crate) fn memory_limit_kills_and_is_reported_as_oom() {
    block_on(async {
        let bed = bed();
        let limits = Limits { memory_bytes: Some(16 << 20), ..Limits::default() };
        // A text that doubles until there is no room for it.
        let hog = "x=0123456789abcdef; while :; do x=$x$x; done";
        for round in 0..20 {
            let instance = bed.instance("hog", limited(shell(hog), limits));
            bed.run(&instance).await;
            let (recorder, life) = (std::sync::Arc::clone(&bed.recorder), instance.life);
            let exit = tokio::task::spawn_blocking(move || recorder.exit(life, Duration::from_secs(60)));
            let exit = exit.await.unwrap();
            assert_eq!((exit.reason, exit.status()), (ExitReason::OomKilled, 137), "round {round}");
            bed.delete(&instance).await;
        }
        bed.close().await;
    });
}

/// A memory limit alone does not make an end one for want of memory.
pub(crate) fn a_kill_by_us_is_not_reported_as_oom() {
    block_on(async {
        let bed = bed();
        let limits = Limits { memory_bytes: Some(64 << 20), ..Limits::default() };
        let instance = bed.instance("stopped", limited(sleeper(), limits));
        bed.run(&instance).await;
        bed.stop(&instance).await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Signalled(9));
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// A sandbox that forks beyond its limit is refused by the kernel, and only it.
pub(crate) fn pids_limit_keeps_a_sandbox_from_forking() {
    block_on(async {
        let bed = bed();
        let limits = Limits { pids: Some(5), ..Limits::default() };
        let script = "i=0; while [ $i -lt 20 ]; do sleep 100 & i=$((i+1)); done; sleep 100";
        let instance = bed.instance("forker", limited(shell(script), limits));
        bed.run(&instance).await;
        let group = bed.group(&instance);
        eventually("the kernel refuses a fork", Duration::from_secs(30), || {
            count(&group, "pids.events", "max") > 0
        });
        let now: u64 = read(&group, "pids.current").parse().unwrap();
        assert!(now <= 5, "{now} processes");
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// A sandbox that wants a whole CPU and may have a tenth is throttled.
pub(crate) fn cpu_limit_throttles() {
    block_on(async {
        let bed = bed();
        let limits = Limits { cpu_millis: Some(100), ..Limits::default() };
        let instance = bed.instance("spinner", limited(shell("while :; do :; done"), limits));
        bed.run(&instance).await;
        let group = bed.group(&instance);
        eventually("it is throttled", Duration::from_secs(30), || {
            count(&group, "cpu.stat", "nr_throttled") > 2
        });
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// This process's own cgroup, as a directory.
fn own_group() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2").to_owned();
    mount().join(own)
}

/// Where cgroup v2 is mounted.
fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    line.split(' ').nth(4).unwrap().into()
}

fn move_self_to(group: &Path) {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// Goal: a host that sits where limits are to be put in force is told so, and moved only if it asks for that. Method: this
/// process is in a group of its own that is not the root of the hierarchy; if it is not in one yet, it moves there and back.
pub(crate) fn a_host_in_the_way_is_named_and_moved_on_request() {
    let before = own_group();
    let made = (before == mount()).then(|| {
        let group = mount().join(format!("sandkeeper-case-{}", std::process::id()));
        // As a service manager does for what it delegates.
        fs::write(mount().join("cgroup.subtree_control"), "+memory +pids +cpu").unwrap();
        fs::create_dir(&group).unwrap();
        move_self_to(&group);
        group
    });
    let group = made.clone().unwrap_or_else(|| before.clone());
    let limits = Limits { pids: Some(10), ..Limits::default() };
    block_on(async {
        let in_the_way = Bed::new();
        let error = in_the_way.runtime.check(&limited(sleeper(), limits)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        for part in [group.to_str().unwrap(), "move_host_to_leaf"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let instance = in_the_way.instance("unlimited", sleeper());
        in_the_way.run(&instance).await;
        in_the_way.delete(&instance).await;
        in_the_way.close().await;
        assert_eq!(own_group(), group, "not moved unasked");

        let mover = bed();
        assert_eq!(own_group(), group.join("sandkeeper-host"));
        // One that comes later, and does not ask, finds the host out of the way.
        let later = Bed::new();
        for bed in [&mover, &later] {
            assert_eq!(bed.runtime.cgroup_root().parent(), Some(group.as_path()));
            let instance = bed.instance("limited", limited(sleeper(), limits));
            bed.run(&instance).await;
            assert_eq!(read(&bed.group(&instance), "pids.max"), "10");
            bed.delete(&instance).await;
        }
        later.close().await;
        mover.close().await;
    });
    if let Some(made) = made {
        move_self_to(&before);
        fs::remove_dir(made.join("sandkeeper-host")).unwrap();
        fs::remove_dir(&made).unwrap();
    }
}
