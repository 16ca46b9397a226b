//! The daemon as an ordinary user: without any right, in a cgroup that was given to that user.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sandkeeper::spec::{Mount, Network, RootFs, SandboxSpec, Users};
use sandkeeper::surface::grpc::Client;
use sandkeeper::{Error, ErrorKind};

use crate::daemon::{USER, as_user_in, read_if_there, remove_group};
use crate::support::{
    Daemon, Plan, block_on, directory, has_ended, in_host, key, of_process, phase, refused, run, send, until,
};

/// All kinds of namespaces that a sandbox has of its own.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A cgroup that root gives to [`USER`], and a leaf in it to begin in. Dropping it ends and removes everything in it.
struct Given {
    group: PathBuf,
    leaf: PathBuf,
}

impl Given {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = cgroups().join(format!("sandkeeper-test-user-{}-{number}", std::process::id()));
        let leaf = group.join("leaf");
        std::fs::create_dir(&group).expect("tests run as root");
        let given = Self { group, leaf };
        std::fs::create_dir(&given.leaf).unwrap();
        for path in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(given.group.join(path), Some(USER), Some(USER)).unwrap();
        }
        given
    }

    fn plan(&self) -> Plan {
        Plan { as_user_in: Some(self.leaf.clone()), ..Plan::default() }
    }

    /// Nothing is in it but the leaf, and in that nobody.
    #[track_caller]
    fn is_as_it_was(&self) {
        let entries = std::fs::read_dir(&self.group).unwrap().map(Result::unwrap);
        let groups: Vec<_> = entries.filter(|entry| entry.file_type().unwrap().is_dir()).collect();
        let paths: Vec<_> = groups.iter().map(std::fs::DirEntry::path).collect();
        assert_eq!(paths, std::slice::from_ref(&self.leaf));
        for group in [&self.group, &self.leaf] {
            assert_eq!(read_if_there(&group.join("cgroup.procs")), "", "{}", group.display());
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        remove_group(&self.group);
    }
}

/// Where cgroup v2 is mounted.
fn cgroups() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    line.split(' ').nth(4).unwrap().into()
}

/// A sandbox with the programs of the host and nothing else of it, that runs this shell script.
fn shell(script: &str) -> SandboxSpec {
    let mut spec = in_host(&["/bin/sh", "-c", script]);
    spec.root = RootFs::Minimal;
    let programs = ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists());
    let mount = |path: &str| Mount { source: path.into(), target: path.into(), writable: false };
    spec.mounts = programs.map(mount).collect();
    if let Some(process) = &mut spec.process {
        process.stdio.log_bytes = Some(1 << 16);
    }
    spec
}

/// One that counts, and ends with status 3 when asked to.
fn counting() -> SandboxSpec {
    shell("trap 'exit 3' TERM; echo up; while :; do :; done")
}

/// What a sandbox's main process has written so far.
async fn written(client: &mut Client, id: &str) -> String {
    let mut pages = client.logs(&key(id), false, None).await.unwrap();
    let mut text = Vec::new();
    while let Some(page) = pages.next().await.unwrap() {
        text.extend(page.data);
    }
    String::from_utf8(text).unwrap()
}

/// Waits until a sandbox's main process has written this.
async fn has_written(client: &mut Client, id: &str, expected: &str) -> String {
    loop {
        let text = written(client, id).await;
        if text.contains(expected) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs a verb as the same user, who must name the daemon's socket; gives status, output and errors.
fn verb(daemon: &Daemon, given: &Given, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = as_user_in(&given.leaf);
    let output = command.arg("--socket").arg(daemon.socket()).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn group_of(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.cgroup_root().unwrap().join(key(id).file_name(255))
}

/// How much time the processes of a sandbox have run for, in microseconds.
fn run_time(daemon: &Daemon, id: &str) -> u64 {
    let stat = std::fs::read_to_string(group_of(daemon, id).join("cpu.stat")).unwrap();
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok()).unwrap()
}

/// Goal: every verb does what it says. Method: one sandbox from its start to its end, judged by the kernel where that can be
/// asked: counters, the freeze, what is left.
#[test]
fn an_ordinary_user_runs_sandboxes_from_start_to_end() {
    block_on(async {
        let given = Given::new();
        let mut daemon = Daemon::start_as(given.plan());
        assert!(daemon.cgroup_root().is_none_or(|root| root.starts_with(&given.group)));
        let log = daemon.log();
        for part in ["user 54321's", "lost without root: users", "lost without root: groups"] {
            assert!(log.contains(part), "{part:?} is not in the log:\n{log}");
        }
        let mut client = daemon.client().await;
        let findings = client.version().await.unwrap().findings;
        assert!(findings["lost without root: users"].contains("user 54321"), "{findings:?}");

        client.create(&key("pause"), Some(&SandboxSpec::default())).await.unwrap();
        run(&mut client, "pause", SandboxSpec::default()).await;
        let pid = run(&mut client, "count", counting()).await;
        let status = client.status(&key("count")).await.unwrap();
        for item in ["user-namespace:54321+1", "users:one", "no-new-privileges", "seccomp:default"] {
            assert!(status.isolation.iter().any(|given| given == item), "{item}: {status:?}");
        }
        client.ping(&key("count")).await.unwrap();
        assert!(client.probe(&key("count")).await.unwrap().alive);
        has_written(&mut client, "count", "up").await;

        client.pause(&key("count")).await.unwrap();
        let events = std::fs::read_to_string(group_of(&daemon, "count").join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        let before = run_time(&daemon, "count");
        assert_eq!(run_time(&daemon, "count"), before);
        client.resume(&key("count")).await.unwrap();
        until("it counts on", || (run_time(&daemon, "count") > before).then_some(()));

        let script = "id -u; echo wrong >&2; exit 4";
        // Whichever zygote is the next in turn: only its own may enter a sandbox.
        for _ in 0..3 {
            let (code, out, err) = verb(&daemon, &given, &["exec", "count", "--", "/bin/sh", "-c", script]);
            assert_eq!((code, &*out, &*err), (Some(4), "0\n", "wrong\n"));
        }
        let (code, out, _) = verb(&daemon, &given, &["list"]);
        assert!(code == Some(0) && out.contains("pause") && out.contains("count"), "{out}");

        client.stop(&key("count"), Some(Duration::from_secs(60))).await.unwrap();
        assert_eq!(client.wait(&key("count")).await.unwrap().status, 3);
        assert!(has_ended(pid));
        for id in ["count", "pause"] {
            client.shutdown(&key(id), Some(Duration::ZERO)).await.unwrap();
        }
        assert_eq!(daemon.groups(), Vec::<String>::new());
        assert_eq!(daemon.terminate(), Some(0));
        until("nothing is left", || daemon.cgroup_root().is_none().then_some(()));
        given.is_as_it_was();
    });
}

/// Goal: what is running goes on and is found again; what has ended meanwhile is told. Method: `kill -9`, with a sandbox that runs, one
/// that is paused, and one that ends while no daemon is there.
#[test]
fn a_killed_daemon_of_an_ordinary_user_finds_its_sandboxes_again() {
    block_on(async {
        let given = Given::new();
        // In the group that was given itself, as a service manager puts it.
        let plan = Plan { as_user_in: Some(given.group.clone()), ..Plan::default() };
        let mut daemon = Daemon::start_as(plan);
        let mut client = daemon.client().await;
        let running = run(&mut client, "running", counting()).await;
        let paused = run(&mut client, "paused", counting()).await;
        let ending =
            run(&mut client, "ending", shell("trap 'exit 7' TERM; echo up; while :; do :; done")).await;
        has_written(&mut client, "ending", "up").await;
        has_written(&mut client, "running", "up").await;
        client.pause(&key("paused")).await.unwrap();
        daemon.kill9();
        assert!(!has_ended(running) && !has_ended(paused));
        send(ending, Signal::TERM);
        until("it ends by itself", || has_ended(ending).then_some(()));

        daemon.start_again();
        daemon.settled().await;
        let mut client = daemon.client().await;
        for (id, pid, expected) in [("running", running, "running"), ("paused", paused, "paused")] {
            let status = client.status(&key(id)).await.unwrap();
            assert_eq!((status.pid, &*status.phase), (pid, expected), "{id}");
        }
        assert_eq!(client.wait(&key("ending")).await.unwrap().status, 7);
        client.resume(&key("paused")).await.unwrap();
        client.ping(&key("paused")).await.unwrap();
        let (code, out, err) = verb(&daemon, &given, &["exec", "running", "--", "/bin/echo", "found"]);
        assert_eq!((code, &*out), (Some(0), "found\n"), "{err}");
        client.stop(&key("running"), Some(Duration::from_secs(60))).await.unwrap();
        assert_eq!(client.wait(&key("running")).await.unwrap().status, 3);
        for id in ["running", "paused", "ending"] {
            client.shutdown(&key(id), Some(Duration::ZERO)).await.unwrap();
        }
        run(&mut client, "next", SandboxSpec::default()).await;
        phase(&mut client, "next", "running").await;
        client.shutdown(&key("next"), Some(Duration::ZERO)).await.unwrap();
        assert_eq!(daemon.terminate(), Some(0));
        until("nothing is left", || daemon.cgroup_root().is_none().then_some(()));
        given.is_as_it_was();
    });
}

/// Goal: a sandbox of the same user is held as much as any. Method: what the kernel says of its processes from outside, and what they
/// find inside.
#[test]
fn what_is_inside_is_one_user_in_namespaces_of_its_own() {
    block_on(async {
        let given = Given::new();
        let mut daemon = Daemon::start_as(given.plan());
        let mut client = daemon.client().await;
        let other = run(&mut client, "other", counting()).await;
        let script = "id; cat /proc/self/uid_map; echo processes; ls -d /proc/[0-9]*; echo root; ls -A /root /home /srv; \
                      echo network; tail -n +3 /proc/net/dev; \
                      for pid in $(seq 2 400); do kill -0 $pid 2>/dev/null && [ $pid != $$ ] && echo reached $pid; done; \
                      cat /proc/1/environ 2>/dev/null && echo read init; mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
                      unshare -U true 2>/dev/null && echo unshared; echo x 2>/dev/null > /usr/x && echo wrote; \
                      echo done; while :; do sleep 1; done";
        let pid = run(&mut client, "inside", shell(script)).await;
        let text = has_written(&mut client, "inside", "done").await;
        assert!(text.starts_with("uid=0 gid=0"), "{text}");
        for never in ["reached", "read init", "mounted", "unshared", "wrote"] {
            assert!(!text.contains(never), "{never}: {text}");
        }
        let section = |name: &str| {
            let lines = text.lines().skip_while(|line| *line != name).skip(1);
            lines
                .take_while(|line| line.contains('/') || line.contains("lo:"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let processes = section("processes");
        assert!((2..=3).contains(&processes.len()) && processes[0] == "/proc/1", "{text}");
        assert_eq!(section("network").len(), 1, "{text}");

        let main = of_process(pid, &format!("task/{pid}/children")).unwrap();
        let main: u32 = main.split_whitespace().next().unwrap().parse().unwrap();
        for (pid, capabilities) in [(pid, "0000000000000020"), (main, "0000000000000000")] {
            let status = of_process(pid, "status").unwrap();
            let line = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(line("Uid:"), vec![USER.to_string(); 4]);
            assert_eq!(line("Gid:"), vec![USER.to_string(); 4]);
            assert_eq!(line("Groups:"), Vec::<String>::new());
            assert_eq!(line("CapPrm:"), [capabilities]);
            assert_eq!(line("CapBnd:"), ["0000000000000000"]);
            assert_eq!(line("NoNewPrivs:"), ["1"]);
            assert_eq!(line("Seccomp:"), ["2"]);
            let map = of_process(pid, "uid_map").unwrap();
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "54321", "1"]);
        }
        let descriptors = std::fs::read_dir(format!("/proc/{main}/fd")).unwrap();
        let descriptors: BTreeSet<_> = descriptors.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(descriptors, ["0", "1", "2"].map(Into::into).into());
        let namespace = |process: &str, kind: &str| {
            std::fs::metadata(format!("/proc/{process}/ns/{kind}")).map(|file| file.ino()).unwrap()
        };
        for kind in NAMESPACES {
            let all = [pid.to_string(), other.to_string(), daemon.pid().to_string()];
            let numbers = all.each_ref().map(|process| namespace(process, kind));
            assert_eq!(BTreeSet::from(numbers).len(), 3, "{kind}: {numbers:?}");
        }
        daemon.terminate();
    });
}

/// Goal: nothing is left out in silence. Method: each thing that one user cannot give, and paths that must not be shown.
#[test]
fn what_an_ordinary_user_cannot_have_is_refused_by_name() {
    block_on(async {
        let given = Given::new();
        let mut daemon = Daemon::start_as(given.plan());
        let mut client = daemon.client().await;
        let change = |change: &dyn Fn(&mut SandboxSpec)| {
            let mut spec = counting();
            change(&mut spec);
            spec
        };
        let as_user = |change: fn(&mut sandkeeper::spec::User)| {
            let mut spec = counting();
            change(&mut spec.process.as_mut().unwrap().user);
            spec
        };
        let shown = |source: &Path| {
            let mount = Mount { source: source.to_owned(), target: "/mnt".into(), writable: false };
            change(&|spec| spec.mounts.push(mount.clone()))
        };
        let state_dir = daemon.state_dir.clone();
        let cases = [
            (as_user(|user| user.uid = 7), "as user 7"),
            (as_user(|user| user.gid = 7), "group 7"),
            (as_user(|user| user.groups = vec![7]), "1 more groups"),
            (change(&|spec| spec.isolation.users = Users::Host), "users other than its own"),
            (change(&|spec| spec.isolation.no_seccomp = true), "without the system call filter"),
            (change(&|spec| spec.isolation.kept_capabilities = 1 << 21), "CAP_SYS_ADMIN"),
            (change(&|spec| spec.network = Network::Join("/proc/1/ns/net".into())), "/proc/1/ns/net"),
            (change(&|spec| spec.root = RootFs::HostReadOnly), "the host's root"),
            (shown(Path::new("/")), "would show"),
            (shown(&state_dir), "would show"),
            (shown(&state_dir.join("zygotes")), "would show"),
        ];
        for (spec, expected) in cases {
            let error: Error = refused(client.start(&key("refused"), Some(&spec)).await);
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
            assert!(error.to_string().contains(expected), "{expected:?}: {error}");
        }
        // What only root may look at, this user may not show.
        let closed = directory();
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let error = refused(client.start(&key("refused"), Some(&shown(&closed.path().join("x")))).await);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        run(&mut client, "pause", SandboxSpec::default()).await;
        run(&mut client, "one", counting()).await;
        let (code, _, err) = verb(&daemon, &given, &["exec", "one", "--user", "7", "--", "/bin/true"]);
        assert!(code != Some(0) && err.contains("as user 7"), "{err}");
        daemon.terminate();
    });
}

/// Goal: no way leads to the state directory, whatever it is called. Method: the directory mounted elsewhere, below something harmless,
/// and the sockets alone; and the same mount of something harmless.
#[test]
fn other_mounts_of_the_state_directory_are_refused() {
    block_on(async {
        let given = Given::new();
        let mut daemon = Daemon::start_as(given.plan());
        let mut client = daemon.client().await;
        let place = directory();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (alias, harmless) = (place.path().join("a/alias"), place.path().join("harmless"));
        std::fs::create_dir_all(&alias).unwrap();
        std::fs::create_dir(&harmless).unwrap();
        let showing = |source: &Path| {
            let mut spec = counting();
            spec.mounts.push(Mount { source: source.to_owned(), target: "/mnt".into(), writable: false });
            spec
        };
        let sockets = daemon.state_dir.join("zygotes");
        for shown in [&daemon.state_dir, &sockets] {
            rustix::mount::mount_bind(shown, &alias).unwrap();
            let mut errors = Vec::new();
            for source in [&*alias, place.path()] {
                errors.push(client.start(&key("refused"), Some(&showing(source))).await.err());
            }
            rustix::mount::unmount(&alias, rustix::mount::UnmountFlags::DETACH).unwrap();
            for error in errors {
                let error: Error = error.unwrap();
                assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
                assert!(error.to_string().contains("would show the state directory"), "{error}");
            }
        }
        rustix::mount::mount_bind(&harmless, &alias).unwrap();
        let started = client.start(&key("free"), Some(&showing(place.path()))).await;
        rustix::mount::unmount(&alias, rustix::mount::UnmountFlags::DETACH).unwrap();
        started.unwrap();
        daemon.terminate();
    });
}

/// Goal: a root of the user's own and writable mounts work, owned by that user on the host. Method: a program that writes.
#[test]
fn directories_of_the_user_are_roots_and_mounts() {
    block_on(async {
        let given = Given::new();
        let mut daemon = Daemon::start_as(given.plan());
        let mut client = daemon.client().await;
        let at = |name: &str| daemon.directory.path().join(name);
        for name in ["root", "data"] {
            std::fs::create_dir(at(name)).unwrap();
            chown(at(name), Some(USER), Some(USER)).unwrap();
        }
        for name in ["dev", "proc", "sys", "data", "usr", "bin", "lib", "lib64"] {
            std::fs::create_dir(at("root").join(name)).unwrap();
        }
        let mut spec = shell(
            "echo text > /data/file; { echo text > /other; } 2>/dev/null || echo read-only; ls /sys/class/net",
        );
        spec.root = RootFs::Directory { path: at("root"), writable: false };
        spec.network = Network::None;
        spec.mounts.push(Mount { source: at("data"), target: "/data".into(), writable: true });
        run(&mut client, "writer", spec).await;
        assert_eq!(client.wait(&key("writer")).await.unwrap().status, 0);
        assert_eq!(written(&mut client, "writer").await, "read-only\nlo\n");
        assert_eq!(std::fs::read_to_string(at("data").join("file")).unwrap(), "text\n");
        assert_eq!(std::fs::metadata(at("data").join("file")).unwrap().uid(), USER);
        daemon.terminate();
    });
}

/// Goal: whoever has no cgroup of their own hears what to ask root for, before anything is made.
#[test]
fn without_a_cgroup_of_its_own_it_says_what_root_would_do() {
    let given = Given::new();
    let not_given = given.leaf.join("deeper");
    std::fs::create_dir(&not_given).unwrap();
    chown(given.group.join("cgroup.procs"), Some(0), Some(0)).unwrap();
    let directory = directory();
    chown(directory.path(), Some(USER), Some(USER)).unwrap();
    let state_dir = directory.path().join("state");
    let output = as_user_in(&not_given).args(["serve", "--state-dir"]).arg(&state_dir).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in [
        "CAP_SYS_ADMIN",
        "leaf/deeper",
        "user 54321's",
        "mkdir",
        "chown",
        "cgroup.procs",
        "systemd-run --user -p Delegate=yes",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    assert!(!state_dir.exists());
}

/// Goal: nobody has to name paths. Method: the directory that a login gives.
#[test]
fn a_users_own_daemon_is_found_where_the_login_keeps_its_files() {
    let given = Given::new();
    let directory = directory();
    chown(directory.path(), Some(USER), Some(USER)).unwrap();
    let mut serve = as_user_in(&given.leaf);
    serve.env("XDG_RUNTIME_DIR", directory.path()).args(["serve", "--zygotes", "1", "--log-level", "error"]);
    let mut child = serve.spawn().unwrap();
    let socket = directory.path().join("sandkeeper/sandkeeper.sock");
    until("it is up", || socket.exists().then_some(()));
    let mut list = as_user_in(&given.leaf);
    let output = list.env("XDG_RUNTIME_DIR", directory.path()).args(["run", "one"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let mut end = as_user_in(&given.leaf);
    let output = end.env("XDG_RUNTIME_DIR", directory.path()).args(["shutdown", "one"]).output().unwrap();
    assert!(output.status.success());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}
