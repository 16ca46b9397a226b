//! Processes on the real kernel: they get what their spec says, and their ends are told exactly.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Signal, pidfd_send_signal};

use super::rig::{End, Rig, Scratch, cgroup_mount, nothing_is_left, ok, refused, run_shell, shell, until};
use crate::error::ErrorKind;
use crate::spec::{Mount, ProcessSpec, Resource, Rlimit, RootFs, SandboxSpec, Users};

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
    until("it is ready", || fs::read_to_string(&output).is_ok_and(|text| text.contains("ready"))).await;
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

/// Goal: read-only and without devices means every mount below, too. Method: as the host's root, whom no mode
/// bits stop.
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
