//! Starts on the real kernel: nothing holds up others, and nothing is left of what fails, is dropped, or is
//! killed.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::super::plan::{IdMap, PlanNetwork};
use super::super::protocol::VERSION;
use super::super::rig::{
    End, Rig, Root, Scratch, cgroup_mount, files, make_root, new_network, nothing_is_left, ok, open_dir,
    plan, plan_with, refused, shell, until,
};
use super::super::state_dir::StateDir;
use super::*;
use crate::spec::{ProcessSpec, RootFs, SandboxSpec};

/// Goal: a sandbox is cut off from the host in every namespace. Method: compare the links of its leader with
/// our own.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_leader_runs_in_namespaces_of_its_own_and_ends_when_asked() {
    let rig = Rig::new(1);
    for signal in [Signal::TERM, Signal::INT] {
        let spawned = ok(rig.spawn(SandboxSpec::default()).await);
        for kind in ["mnt", "pid", "ipc", "uts", "cgroup", "user", "net"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            assert_ne!(of(&spawned.pid.to_string()), of("self"), "{kind}");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", spawned.pid)).unwrap();
        for line in
            ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
        {
            assert!(status.contains(line), "{line} is not in\n{status}");
        }
        // The last of all is the report's own, closed just after it.
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", spawned.pid)).unwrap().count();
        assert!(descriptors() <= 1, "it holds descriptors");
        until("it holds no descriptors", || descriptors() == 0).await;
        pidfd_send_signal(&spawned.pidfd, signal).unwrap();
        assert_eq!(rig.end_of(spawned).await, End { told: None, own: 0 });
    }
}

/// Goal: a start that nobody waits for any more leaves nothing, however far it came. Method: drop its future
/// after a growing number of polls, and later after a growing time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_start_leaves_nothing() {
    let rig = Rig::new(2);
    let specs = [SandboxSpec::default(), shell("sleep 60")];
    for round in 0..120_u64 {
        let plan = ok(plan(specs[round as usize % 2].clone()));
        let started = rig.zygotes.spawn(&plan, rig.files());
        if let Ok(started) = tokio::time::timeout(Duration::from_micros(round * 40), started).await {
            let Spawned { pid, pidfd, zygote } = ok(started);
            pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
            rig.end_of(Spawned { pid, pidfd, zygote }).await;
        }
    }
    nothing_is_left(&rig).await;
}

/// Goal: a zygote's memory, descriptors and children do not grow with what it has done.
#[tokio::test(flavor = "multi_thread")]
async fn a_zygote_stays_as_it_was() {
    let rig = Rig::new(1);
    let pid = rig.zygotes.pids()[0];
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();
    for round in 0..200 {
        let mut spec = if round % 4 == 0 { shell("exit 0") } else { SandboxSpec::default() };
        if round % 8 == 0 {
            spec.process.as_mut().unwrap().args.push("x".repeat(100_000));
        }
        let spawned = ok(rig.spawn(spec).await);
        pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
        rig.end_of(spawned).await;
    }
    nothing_is_left(&rig).await;
    assert_eq!(descriptors(), before);
    assert!(kilobytes(pid) < 100, "{} KiB", kilobytes(pid));
}

/// Goal: starts do not get in each other's way. Method: many at once, of both kinds, from two zygotes.
#[tokio::test(flavor = "multi_thread")]
async fn many_start_at_once() {
    let rig = Arc::new(Rig::new(2));
    let starts: Vec<_> = (0..120_u32)
        .map(|number| {
            let rig = Arc::clone(&rig);
            let spec =
                if number % 3 == 0 { shell(&format!("exit {number}")) } else { SandboxSpec::default() };
            tokio::spawn(async move {
                let spawned = ok(rig.spawn(spec).await);
                if number % 3 != 0 {
                    pidfd_send_signal(&spawned.pidfd, Signal::TERM).unwrap();
                }
                (number, rig.end_of(spawned).await)
            })
        })
        .collect();
    for start in starts {
        let (number, end) = start.await.unwrap();
        let status = if number % 3 == 0 { number << 8 } else { 0 };
        assert_eq!(end.own, status, "start {number}");
    }
    nothing_is_left(&rig).await;
}

/// Goal: more requests than a socket holds neither fail nor deadlock with their answers. Method: far more at
/// once, at one zygote, each reaped while others are still being asked for.
#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_socket_holds_are_all_answered() {
    let rig = Arc::new(Rig::new(1));
    let starts: Vec<_> = (0..1_000)
        .map(|_| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move {
                let mut spec = SandboxSpec { network: crate::spec::Network::None, ..SandboxSpec::default() };
                // Never executed, but carried: a program that is not there, with much to say.
                let mut process = ProcessSpec::new(["/none"]);
                process.env = vec![format!("A={}", "x".repeat(8_000))];
                spec.process = Some(process);
                let plan = ok(plan_with(spec, PlanNetwork::Host));
                refused(rig.zygotes.spawn(&plan, rig.files()).await, ErrorKind::InvalidArgument, "/none");
            })
        })
        .collect();
    for start in starts {
        tokio::time::timeout(Duration::from_secs(60), start).await.expect("it does not hang").unwrap();
    }
    nothing_is_left(&rig).await;
}

/// Goal: a sandbox whose set-up hangs, as on a file system that does not answer, holds up nobody else.
/// Method: it is born into a frozen group, at the only zygote.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_holds_up_nobody() {
    let rig = Rig::new(1);
    for spec in [SandboxSpec::default(), shell("exit 0")] {
        let path = rig.group_path();
        fs::write(path.join("cgroup.freeze"), "1").unwrap();
        let plan = ok(plan(spec));
        let files = files(open_dir(&path));
        let mut hanging = std::pin::pin!(rig.zygotes.spawn(&plan, files));
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, &mut hanging).await.is_err(), "a frozen process has run");
        for _ in 0..3 {
            assert_eq!(ok(rig.run(shell("exit 3")).await).own, 3 << 8);
        }
        assert!(tokio::time::timeout(soon, &mut hanging).await.is_err());
    }
    nothing_is_left(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_during_its_set_up_is_told_so() {
    let rig = Rig::new(1);
    let path = rig.group_path();
    fs::write(path.join("cgroup.freeze"), "1").unwrap();
    let plan = ok(plan(SandboxSpec::default()));
    let files = files(open_dir(&path));
    let mut hanging = std::pin::pin!(rig.zygotes.spawn(&plan, files));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut hanging).await.is_err());
    fs::write(path.join("cgroup.kill"), "1").unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(5), hanging).await.expect("it does not hang");
    refused(outcome, ErrorKind::Aborted, "it was killed while it was being set up");
    nothing_is_left(&rig).await;
}

/// Goal: losing a zygote costs a restart of it and nothing else. Method: kill it under a running sandbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_zygote_is_replaced_and_its_sandboxes_live_on() {
    let rig = Rig::new(1);
    let spawned = ok(rig.spawn(SandboxSpec::default()).await);
    let first = rig.zygotes.pids()[0];
    rustix::process::kill_process(rustix::process::Pid::from_raw(first as i32).unwrap(), Signal::KILL)
        .unwrap();
    until("it is replaced", || rig.zygotes.pids().first().is_some_and(|pid| *pid != first)).await;
    assert!(fs::metadata(format!("/proc/{}", spawned.pid)).is_ok(), "the sandbox has died with its zygote");
    assert!(fs::metadata(format!("/proc/{first}")).is_err(), "the zygote was not reaped");
    pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
    rig.zygotes.reap(spawned.zygote, spawned.pid);
    let end = ok(rig.run(shell("exit 9")).await);
    assert_eq!(end.told, Some(9 << 8));
}

/// Names the process that [`no_process_and_no_cgroup_outlives_a_killed_host`] kills.
const HOST: &str = "SANDKEEPER_TEST_HOST";

/// A host with sandboxes of both kinds. Tells its cgroup root and their pids, and waits to be killed.
#[tokio::main]
async fn host_to_kill() {
    let rig = Rig::new(2);
    let mut pids = rig.zygotes.pids();
    for spec in [
        SandboxSpec::default(),
        shell("sleep 60 & sleep 60"),
        SandboxSpec::default(),
        shell("trap '' TERM; sleep 60"),
    ] {
        pids.push(ok(rig.spawn(spec).await).pid);
    }
    println!("\nhost {} {pids:?}", rig.root.0.display());
    std::future::pending::<()>().await;
}

/// Goal: `kill -9` of an embedding program leaves nothing of ours. Method: this test program again, as the
/// host, in another process.
#[test]
fn no_process_and_no_cgroup_outlives_a_killed_host() {
    use std::io::BufRead;
    if std::env::var_os(HOST).is_some() {
        return host_to_kill();
    }
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "runtime::linux::zygote::tests::no_process_and_no_cgroup_outlives_a_killed_host",
        ])
        .env(HOST, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(host.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line =
        lines.find_map(|line| line.strip_prefix("host ").map(str::to_owned)).expect("it tells what it made");
    let (root, pids) = line.split_once(' ').unwrap();
    let root = Root(root.into());
    assert!(root.0.exists());
    let pids: Vec<u32> = pids.trim_matches(['[', ']']).split(", ").map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 6);
    // Held open, so that the numbers cannot be another process's.
    let open = |pid: &u32| {
        let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    };
    let pidfds: Vec<_> = pids.iter().map(open).collect();
    host.kill().unwrap();
    host.wait().unwrap();
    assert!(root.gone_within(Duration::from_secs(3)), "cgroups are left");
    for (pid, pidfd) in pids.iter().zip(&pidfds) {
        let mut ended = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 3, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut ended, Some(&limit)).unwrap(), 1, "process {pid} is left");
    }
}

/// Goal: where the root's parent may hold no process, the zygotes end in another group and still remove all.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_keeper_removes_its_groups_wherever_its_zygotes_end() {
    let (outer, _) = make_root();
    fs::remove_dir(outer.join("zygotes")).unwrap();
    let root = outer.join("keeper");
    fs::create_dir_all(root.join("zygotes")).unwrap();
    let groups = Groups {
        root: open_dir(&root),
        leaf: open_dir(&root.join("zygotes")),
        parent: open_dir(&cgroup_mount()),
    };
    let zygotes = ok(Zygotes::launch(2, groups));
    let group = root.join("box");
    fs::create_dir(&group).unwrap();
    crate::runtime::linux::group::mark(open_dir(&group), "a test").unwrap();
    let files = files(open_dir(&group));
    let spawned = ok(zygotes.spawn(&ok(plan(SandboxSpec::default())), files).await);
    drop(zygotes);
    let mut ended = [rustix::event::PollFd::new(&spawned.pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 3, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&limit)).unwrap(), 1, "the sandbox is left");
    let gone = Root(root).gone_within(Duration::from_secs(3));
    let removed = fs::remove_dir(&outer);
    assert!(gone, "the root is left");
    removed.unwrap();
}

/// Goal: starts in flight at a zygote that dies are told so, and at once.
#[tokio::test(flavor = "multi_thread")]
async fn starts_in_flight_fail_when_their_zygote_dies() {
    let rig = Arc::new(Rig::new(1));
    let pid = rustix::process::Pid::from_raw(rig.zygotes.pids()[0] as i32).unwrap();
    // Stopped, it answers nothing: what is asked now is in flight.
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.spawn(SandboxSpec::default()).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    for start in starts {
        let started =
            tokio::time::timeout(Duration::from_secs(5), start).await.expect("it does not hang").unwrap();
        refused(started, ErrorKind::Unavailable, "its zygote has ended");
    }
    // Without a zygote nobody would remove the cgroups.
    until("it is replaced", || !rig.zygotes.pids().is_empty()).await;
}

/// Goal: whichever network is asked for is the one that it is in, and a zygote is back in its own afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_network_is_entered_and_left() {
    let rig = Rig::new(1);
    let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let mut seen = BTreeMap::new();
    for root in [RootFs::Minimal, RootFs::HostReadOnly] {
        for (name, network) in [
            ("given", PlanNetwork::Given),
            ("fresh", PlanNetwork::Fresh),
            ("host", PlanNetwork::Host),
            ("none", PlanNetwork::Host),
        ] {
            let mut spec = SandboxSpec { root: root.clone(), ..SandboxSpec::default() };
            if name == "none" {
                spec.network = crate::spec::Network::None;
            }
            let given = (name == "given").then(|| Arc::new(new_network()));
            let files = Files { network: given.clone(), ..rig.files() };
            let spawned = ok(rig.zygotes.spawn(&ok(plan_with(spec, network)), files).await);
            let found = net(&spawned.pid.to_string());
            match name {
                "host" => assert_eq!(found, net("self")),
                "none" => assert_eq!(found, net(&rig.zygotes.pids()[0].to_string())),
                "given" => {
                    let inode = rustix::fs::fstat(given.as_deref().unwrap()).unwrap().st_ino;
                    assert_eq!(found.to_str().unwrap(), format!("net:[{inode}]"));
                }
                _ => assert_ne!(found, net("self")),
            }
            seen.insert(found, name);
            pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
            rig.end_of(spawned).await;
        }
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

/// Memory of a process, with its part of what it shares.
fn kilobytes(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Goal: what a builder opens is what was judged. Method: a plan of a directory that is replaced before it is opened, beside one that
/// is not, for a zygote with a user namespace of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_replaced_meanwhile_is_not_shown() {
    let (root, groups) = make_root();
    let (zygotes, _) = Zygotes::take_over(1, groups, true, None, Vec::new(), VERSION).unwrap();
    let rig = Rig { zygotes, root: Root(root) };
    let scratch = Scratch::new();
    let source = scratch.0.join("source");
    fs::create_dir(&source).unwrap();
    let planned = || {
        let mount = crate::spec::Mount { source: source.clone(), target: "/tmp".into(), writable: false };
        let spec = SandboxSpec { mounts: vec![mount], ..SandboxSpec::default() };
        Plan::new(&super::super::rig::instance(spec), Some(IdMap::of_one_user(0)), PlanNetwork::Fresh)
    };
    let (first, second) = (ok(planned()), ok(planned()));
    let spawned = ok(rig.zygotes.spawn(&first, rig.files()).await);
    pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
    rig.end_of(spawned).await;
    fs::rename(&source, scratch.0.join("elsewhere")).unwrap();
    fs::create_dir(&source).unwrap();
    let error = rig.zygotes.spawn(&second, rig.files()).await.unwrap_err().to_string();
    assert!(error.contains("opening the root or the source of a mount") && error.contains("tale"), "{error}");
    nothing_is_left(&rig).await;
}

/// Goal: nobody's sandboxes are made with another's rights. Method: a zygote that was left by an ordinary user's backend, found by
/// one with all rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_zygote_with_other_rights_makes_nothing_any_more() {
    let scratch = Scratch::new();
    let state = StateDir::take(&scratch.0, Duration::from_secs(60)).unwrap();
    let (root, groups) = make_root();
    let again = Groups {
        root: open_dir(&root),
        leaf: open_dir(&root.join("zygotes")),
        parent: open_dir(&cgroup_mount()),
    };
    let sockets = Some(Arc::clone(&state.sockets));
    let (first, _) = Zygotes::take_over(1, groups, true, sockets, Vec::new(), VERSION).unwrap();
    let old = first.pids()[0];
    drop(first);
    let left = crate::runtime::linux::greet::greet(&state.sockets).zygotes;
    assert_eq!(left.iter().map(|left| left.one_user).collect::<Vec<_>>(), [true]);
    let (second, _) = Zygotes::take_over(1, again, false, None, left, VERSION).unwrap();
    assert_ne!(second.pick().unwrap().pid, old);
    until("it ends, having no children", || !second.pids().contains(&old)).await;
    drop(second);
    drop(Root(root));
}
