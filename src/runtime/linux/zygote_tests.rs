//! Starts on the real kernel: how sandboxes run and end, and that nothing is left of those that fail.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use super::super::plan::PlanNetwork;
use super::super::rig::{
    End, Rig, Root, Scratch, cgroup_mount, make_root, new_network, open_dir, plan, plan_with, run_shell,
    shell,
};
use super::*;
use crate::spec::{Mount, ProcessSpec, Resource, Rlimit, RootFs, SandboxSpec, Users};

#[track_caller]
fn ok<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, kind: ErrorKind, with: &str) {
    let error = result.err().expect("it cannot start");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(with), "{error} does not say {with:?}");
}

/// Goal: a sandbox is cut off from the host in every namespace. Method: compare the links of its leader with our own.
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

/// Goal: every exit status is told, in full where the init's own status cannot tell it.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_process_is_told_exactly() {
    let rig = Rig::new(2);
    for status in [0, 1, 7, 126, 127, 128, 137, 254, 255_u32] {
        let end = ok(rig.run(shell(&format!("exit {status}"))).await);
        assert_eq!(end, End { told: Some(status << 8), own: status << 8 });
    }
    for signal in [1, 2, 3, 6, 9, 11, 14, 15_u32] {
        // A shell cannot kill itself with all of these, but it can become something that is killed.
        let end = ok(rig.run(shell(&format!("ulimit -c 0; kill -{signal} $$; exit 99"))).await);
        assert_eq!(end.told.map(|status| status & 0x7f), Some(signal), "{end:?}");
        assert_eq!(end.own, (128 + signal) << 8);
    }
    // Killed from outside, nobody is left to tell.
    let spawned = ok(rig.spawn(shell("sleep 60")).await);
    pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
    assert_eq!(rig.end_of(spawned).await, End { told: None, own: 9 });
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_passed_on_and_orphans_are_reaped() {
    let rig = Rig::new(1);
    let scratch = Scratch::new();
    let output = scratch.0.join("output");
    let script = "trap 'echo got term; exit 5' TERM; (sleep 0 & ) ; (sleep 0 &); sleep 0.2; cat /proc/[0-9]*/stat | grep -c ' Z '; \
                  echo ready; while :; do sleep 0.05; done";
    let mut spec = shell(script);
    spec.process.as_mut().unwrap().stdio.stdout = Some(output.clone());
    let spawned = ok(rig.spawn(spec).await);
    until("it is ready", || fs::read_to_string(&output).unwrap_or_default().contains("ready")).await;
    pidfd_send_signal(&spawned.pidfd, Signal::TERM).unwrap();
    assert_eq!(rig.end_of(spawned).await, End { told: Some(5 << 8), own: 5 << 8 });
    assert_eq!(fs::read_to_string(&output).unwrap(), "0\nready\ngot term\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_gets_what_its_spec_says() {
    let rig = Rig::new(1);
    let script = "id -u; id -g; id -G; pwd; echo $COLOUR; ulimit -Sn; ulimit -Hn; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; \
                  umask; cat /proc/self/cgroup | grep ^0; echo oops >&2; tty; cat; ls /proc/self/fd | wc -l";
    let (end, output) = ok(run_shell(&rig, script, |spec| {
        spec.hostname = Some("blue-7".to_owned());
        let process = spec.process.as_mut().unwrap();
        process.env = vec!["COLOUR=blue".to_owned(), "PATH=/usr/bin:/bin".to_owned()];
        process.cwd = "/usr".into();
        process.user.uid = 1234;
        process.user.gid = 2345;
        process.user.groups = vec![7, 8];
        process.rlimits = vec![Rlimit { resource: Resource::OpenFiles, soft: 100, hard: 200 }];
    })
    .await);
    // `ls` has three descriptors and the directory's.
    let wanted = "1234\n2345\n2345 7 8\n/usr\nblue\n100\n200\nblue-7\n0022\n0::/\noops\nnot a tty\n4\n";
    assert_eq!(output, wanted, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_init_the_process_is_pid_1() {
    let rig = Rig::new(1);
    let no_init = |spec: &mut SandboxSpec| spec.isolation.no_init = true;
    let (end, output) = ok(run_shell(&rig, "echo $$; exit 3", no_init).await);
    assert_eq!((end, output.as_str()), (End { told: None, own: 3 << 8 }, "1\n"));
    let mut spec = SandboxSpec { process: Some(ProcessSpec::new(["/no/such"])), ..shell("") };
    no_init(&mut spec);
    refused(
        rig.run(spec).await,
        ErrorKind::InvalidArgument,
        "no such program in the sandbox's root: /no/such",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let rig = Rig::new(1);
    let program = |name: &str| {
        let mut process = ProcessSpec::new([name]);
        process.user.uid = 1000;
        SandboxSpec { process: Some(process), ..shell("") }
    };
    let invalid = ErrorKind::InvalidArgument;
    refused(rig.run(program("/bin/foo")).await, invalid, "no such program in the sandbox's root: /bin/foo");
    refused(rig.run(program("foo")).await, invalid, "no such program in the search path of the sandbox: foo");
    refused(
        rig.run(program("/etc/passwd")).await,
        invalid,
        "not executable for the process's user: /etc/passwd",
    );
    let minimal = SandboxSpec { process: Some(ProcessSpec::new(["/bin/sh"])), ..SandboxSpec::default() };
    refused(rig.run(minimal).await, invalid, "no such program");
    let mut spec = shell("");
    spec.process.as_mut().unwrap().cwd = "/no/where".into();
    refused(rig.run(spec).await, invalid, "cannot enter its working directory");
    let mut spec = shell("");
    spec.process.as_mut().unwrap().stdio.stdout = Some("/no/where/output".into());
    refused(rig.run(spec).await, invalid, "/no/where/output");
    let mut spec = shell("");
    spec.mounts.push(Mount { source: "/usr".into(), target: "/no/where".into(), writable: false });
    refused(rig.run(spec).await, invalid, "the target of a mount is not in its root (targets: /no/where)");
    let root = RootFs::Directory { path: "/no/where".into(), writable: false };
    refused(rig.run(SandboxSpec { root, ..shell("") }).await, invalid, "the root, \"/no/where\" on the host");
    nothing_is_left(&rig).await;
}

/// Waits until no zygote has a child, dead or alive.
async fn nothing_is_left(rig: &Rig) {
    let children = || rig.zygotes.pids().iter().map(|pid| children_of(*pid)).collect::<String>();
    until("no child is left", || children().is_empty()).await;
}

/// Waits until it holds, or fails saying that it does not.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < late, "after 10 s it does not hold that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn children_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
}

/// Goal: a start that nobody waits for any more leaves nothing, however far it came. Method: drop its future after a growing
/// number of polls, and later after a growing time.
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
    let private_kilobytes = || {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let of = |name: &str| -> u64 {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        of("Pss:")
    };
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
    assert!(private_kilobytes() < 100, "{} KiB", private_kilobytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_arguments_arrive() {
    let rig = Rig::new(1);
    let (end, output) = ok(run_shell(&rig, "echo ${#1} $#; exit 4", |spec| {
        let process = spec.process.as_mut().unwrap();
        process.args.push("name".to_owned());
        process.args.push("x".repeat(100_000));
        process.args.extend((0..4_000).map(|number| format!("{number:04}")));
    })
    .await);
    assert_eq!((end.told, output.as_str()), (Some(4 << 8), "100000 4001\n"));
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

/// Goal: a sandbox whose set-up hangs, as on a file system that does not answer, holds up nobody else. Method: it is born into a
/// frozen group, at the only zygote.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_holds_up_nobody() {
    let rig = Rig::new(1);
    for spec in [SandboxSpec::default(), shell("exit 0")] {
        let path = rig.group_path();
        fs::write(path.join("cgroup.freeze"), "1").unwrap();
        let plan = ok(plan(spec));
        let files = Files { group: open_dir(&path), network: None };
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
    let files = Files { group: open_dir(&path), network: None };
    let mut hanging = std::pin::pin!(rig.zygotes.spawn(&plan, files));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut hanging).await.is_err());
    fs::write(path.join("cgroup.kill"), "1").unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(5), hanging).await.expect("it does not hang");
    refused(outcome, ErrorKind::Aborted, "it was killed while it was being set up");
    nothing_is_left(&rig).await;
}

/// Goal: read-only and without devices means every mount below, too. Method: as the host's root, whom no mode bits stop.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_is_read_only_and_without_devices_all_the_way_down() {
    let rig = Rig::new(1);
    // A mount below what is shown.
    let below = cgroup_mount();
    let below = below.strip_prefix("/sys/fs").unwrap().display();
    let script = &format!(
        "mkdir /mnt/{below}/escaped 2>&1 | grep -o 'Read-only file system'; cat /opt/null 2>&1 | grep -o 'Permission denied'"
    );
    let (_, output) = ok(run_shell(&rig, script, |spec| {
        spec.isolation.users = Users::Host;
        let mount = |source: &str, target: &str| Mount {
            source: source.into(),
            target: target.into(),
            writable: false,
        };
        spec.mounts = vec![mount("/sys/fs", "/mnt"), mount("/dev", "/opt")];
    })
    .await);
    assert_eq!(output, "Read-only file system\nPermission denied\n");
}

/// Goal: what is given up is given up, and nothing else with it.
#[tokio::test(flavor = "multi_thread")]
async fn each_isolation_can_be_given_up_alone() {
    let rig = Rig::new(1);
    let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; grep CapBnd /proc/self/status; grep -c ' /proc/' /proc/mounts";
    let run = |change: fn(&mut SandboxSpec)| run_shell(&rig, script, change);
    let words = |output: &str| output.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let none = "0000000000000000";
    let (_, all) = ok(run(|_| {}).await);
    let masks = words(&all)[6].clone();
    assert_ne!(masks, "0");
    assert_eq!(words(&all), ["NoNewPrivs:", "1", "Seccomp:", "2", "CapBnd:", none, &masks]);
    let (_, output) = ok(run(|spec| spec.isolation.allow_new_privileges = true).await);
    assert_eq!(words(&output), ["NoNewPrivs:", "0", "Seccomp:", "2", "CapBnd:", none, &masks]);
    let (_, output) = ok(run(|spec| spec.isolation.no_seccomp = true).await);
    assert_eq!(words(&output), ["NoNewPrivs:", "1", "Seccomp:", "0", "CapBnd:", none, &masks]);
    let (_, output) = ok(run(|spec| spec.isolation.unmasked_paths = true).await);
    assert_eq!(words(&output), ["NoNewPrivs:", "1", "Seccomp:", "2", "CapBnd:", none, "0"]);
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

/// Not a test: the host in one, with sandboxes of both kinds. Tells its cgroup root and their pids, and waits to be killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by no_process_and_no_cgroup_outlives_a_killed_host"]
#[expect(clippy::print_stdout, reason = "it tells its parent")]
async fn a_host_to_kill() {
    if std::env::var_os(HOST).is_none() {
        return;
    }
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

/// Goal: `kill -9` of an embedding program leaves nothing of ours. Method: this test program again, as the host, in another
/// process.
#[test]
fn no_process_and_no_cgroup_outlives_a_killed_host() {
    use std::io::BufRead;
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "runtime::linux::zygote::tests::a_host_to_kill"])
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
    let files = Files { group: open_dir(&group), network: None };
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

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_shown_as_the_spec_says() {
    let rig = Rig::new(1);
    let scratch = Scratch::new();
    for dir in ["root", "root/usr", "root/data", "root/own", "root/dev", "root/proc", "root/sys", "shared"] {
        fs::create_dir(scratch.0.join(dir)).unwrap();
    }
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(scratch.0.join("shared/file"), "from the host\n").unwrap();
    for link in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), scratch.0.join("root").join(link)).unwrap();
    }
    // Out of the root, for a careless resolver.
    std::os::unix::fs::symlink("/../../../../data", scratch.0.join("root/link")).unwrap();
    for (dir, mode) in [("root/own", 0o777), ("shared", 0o777)] {
        fs::set_permissions(scratch.0.join(dir), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mount = |source: &str, target: &str, writable| Mount {
        source: source.into(),
        target: target.into(),
        writable,
    };
    let shared = scratch.0.join("shared");
    let shared = shared.to_str().unwrap();
    let script = "cat /data/file; echo a >/data/new 2>/dev/null || echo data read-only; echo b >/own/new && echo own writable; \
                  echo c >/own/shared/new && cat /own/shared/new; [ -e /etc ] || echo no etc; ls /dev | tr '\\n' ' '; grep -c . /proc/mounts >/dev/null && echo proc";
    for (writable, expected) in [(true, "own writable\n"), (false, "")] {
        let (end, output) = ok(run_shell(&rig, script, |spec| {
            spec.root = RootFs::Directory { path: scratch.0.join("root"), writable };
            spec.process.as_mut().unwrap().args[0] = "/usr/bin/sh".to_owned();
            fs::create_dir_all(scratch.0.join("root/own/shared")).unwrap();
            spec.mounts = vec![
                mount("/usr", "/usr", false),
                mount(shared, "/link", false),
                mount(shared, "/own/shared", true),
            ];
            spec.process.as_mut().unwrap().stdio.stderr = None;
        })
        .await);
        let devices = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ";
        let wanted = format!("from the host\ndata read-only\n{expected}c\nno etc\n{devices}proc\n");
        assert_eq!(output, wanted, "{end:?}");
        assert!(!scratch.0.join("root/dev/null").exists(), "a mount has come out of its sandbox");
    }
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
            let files = Files { group: rig.group(), network: given.clone() };
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

#[tokio::test(flavor = "multi_thread")]
async fn without_a_user_namespace_the_process_is_the_hosts_user() {
    let rig = Rig::new(1);
    let (end, output) =
        ok(run_shell(&rig, "cat /proc/self/uid_map; id -u; touch /tmp/x && echo tmp", |spec| {
            spec.isolation.users = Users::Host;
            spec.process.as_mut().unwrap().user.uid = 33;
        })
        .await);
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "4294967295", "33", "tmp"], "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_capabilities_are_kept_and_no_others() {
    let rig = Rig::new(1);
    let net_bind = 1 << 10;
    for uid in [0, 1000] {
        let (_, output) = ok(run_shell(&rig, "grep -E 'Cap(Eff|Bnd|Prm)' /proc/self/status", |spec| {
            spec.isolation.kept_capabilities = net_bind;
            spec.process.as_mut().unwrap().user.uid = uid;
        })
        .await);
        assert_eq!(output.matches("0000000000000400").count(), 3, "as {uid}: {output}");
    }
}

/// Not a benchmark: tells roughly what a start takes, for whoever changes something here.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures, asserts nothing"]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
async fn how_long_a_start_takes() {
    let rig = Rig::new(2);
    let network = Arc::new(new_network());
    let none = || SandboxSpec { network: crate::spec::Network::None, ..SandboxSpec::default() };
    let cases: [(&str, SandboxSpec, PlanNetwork); 5] = [
        ("pause, given network", SandboxSpec::default(), PlanNetwork::Given),
        ("pause, fresh network", SandboxSpec::default(), PlanNetwork::Fresh),
        ("pause, no network", none(), PlanNetwork::Host),
        (
            "pause, given, no filter",
            {
                let mut spec = SandboxSpec::default();
                spec.isolation.no_seccomp = true;
                spec
            },
            PlanNetwork::Given,
        ),
        (
            "true, host root, given network",
            SandboxSpec { process: Some(ProcessSpec::new(["/bin/true"])), ..shell("") },
            PlanNetwork::Given,
        ),
    ];
    for (name, spec, kind) in cases {
        let mut times = Vec::new();
        for _ in 0..300 {
            let given = (kind == PlanNetwork::Given).then(|| Arc::clone(&network));
            let files = Files { group: rig.group(), network: given };
            let begun = Instant::now();
            let plan = ok(plan_with(spec.clone(), kind));
            let spawned = ok(rig.zygotes.spawn(&plan, files).await);
            times.push(begun.elapsed());
            pidfd_send_signal(&spawned.pidfd, Signal::KILL).unwrap();
            rig.end_of(spawned).await;
        }
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}", times[150], times[297]);
    }
}
