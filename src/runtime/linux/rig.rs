//! For tests: a cgroup root of their own with zygotes in it, removed at the end, also after a panic.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::io::Interest;

use super::plan::{IdMap, Plan, PlanNetwork};
use super::protocol::{Child, wait_status_of_name};
use super::readiness::watched;
use super::zygote::{Files, Groups, Spawned, Zygotes};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Exit, Life};
use crate::runtime::{Instance, Observer};
use crate::spec::{ProcessSpec, RootFs, SandboxSpec};

/// What tests map sandboxes' users to.
pub(super) const IDS: IdMap = IdMap { host_start: 1_000_000, count: 65_536, one_user: false };

pub(super) struct Rig {
    // Dropped in this order: the zygotes remove the root.
    pub(super) zygotes: Arc<Zygotes>,
    pub(super) root: Root,
}

/// Where cgroup v2 is mounted.
pub(super) fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    line.split(' ').nth(4).expect("a mount point").into()
}

pub(super) fn open_dir(path: &Path) -> OwnedFd {
    let file = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
    file.unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

/// A cgroup root that no other test has.
pub(super) fn make_root() -> (PathBuf, Groups) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mount = cgroup_mount();
    let name = format!("sandkeeper-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let root = mount.join(name);
    fs::create_dir(&root).expect("tests run as root");
    fs::create_dir(root.join("zygotes")).expect("just made");
    let groups =
        Groups { root: open_dir(&root), leaf: open_dir(&root.join("zygotes")), parent: open_dir(&mount) };
    (root, groups)
}

/// A network namespace of nobody's, its loopback down.
#[allow(unsafe_code)]
pub(super) fn new_network() -> OwnedFd {
    let make = || {
        // SAFETY: CLONE_NEWNET concerns this thread's network and nothing else.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "tests run as root");
        File::open("/proc/thread-self/ns/net").expect("proc is mounted").into()
    };
    std::thread::spawn(make).join().expect("it does not panic")
}

impl Rig {
    pub(super) fn new(zygotes: usize) -> Self {
        let (root, groups) = make_root();
        let zygotes = Zygotes::launch(zygotes, groups).unwrap_or_else(|error| panic!("{error}"));
        Self { zygotes, root: Root(root) }
    }

    /// A new cgroup for a sandbox.
    pub(super) fn group(&self) -> OwnedFd {
        open_dir(&self.group_path())
    }

    pub(super) fn group_path(&self) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = self.root.0.join(format!("box-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).expect("the root is ours");
        super::group::mark(open_dir(&path), "a test").expect("marked");
        path
    }

    pub(super) fn files(&self) -> Files {
        files(self.group())
    }

    pub(super) async fn spawn(&self, spec: SandboxSpec) -> Result<Spawned, Error> {
        self.zygotes.spawn(&plan(spec)?, self.files()).await
    }

    /// Starts it, waits for its end and lets it go; says how it ended.
    pub(super) async fn run(&self, spec: SandboxSpec) -> Result<End, Error> {
        let spawned = self.spawn(spec).await?;
        Ok(self.end_of(spawned).await)
    }

    /// Waits for its end and lets it go.
    pub(super) async fn end_of(&self, spawned: Spawned) -> End {
        let Spawned { pid, pidfd, zygote } = spawned;
        let pidfd = watched(pidfd, Interest::READABLE).expect("a pidfd");
        let readable = tokio::time::timeout(Duration::from_secs(20), pidfd.readable());
        let _ = readable.await.expect("it ends in time").expect("a pidfd");
        let end = End::of(pid);
        self.zygotes.reap(zygote, pid);
        end
    }
}

/// What a start in this group needs.
pub(super) fn files(group: OwnedFd) -> Files {
    Files { group: Arc::new(group), child: Child { life: 1, ..Child::default() }, network: None }
}

/// A cgroup root, gone at the end.
pub(super) struct Root(pub(super) PathBuf);

impl Drop for Root {
    /// Waits until the zygotes, which have been told to end, have removed everything. What they leave is
    /// removed by force, and a failure of the test.
    fn drop(&mut self) {
        if self.gone_within(Duration::from_secs(5)) {
            return;
        }
        for group in
            fs::read_dir(&self.0).into_iter().flatten().flatten().filter(|group| group.path().is_dir())
        {
            let _ = fs::write(group.path().join("cgroup.kill"), "1");
        }
        let late = Instant::now() + Duration::from_secs(5);
        while self.0.exists() && Instant::now() < late {
            for group in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(&self.0);
            pause_thread();
        }
        assert!(std::thread::panicking(), "the zygotes have left {}", self.0.display());
    }
}

impl Root {
    pub(super) fn gone_within(&self, limit: Duration) -> bool {
        let late = Instant::now() + limit;
        while self.0.exists() {
            if Instant::now() > late {
                return false;
            }
            pause_thread();
        }
        true
    }
}

/// How a leader ended, as its remains tell it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    /// What its name tells.
    pub(super) told: Option<u32>,
    /// Its own wait status.
    pub(super) own: u32,
}

impl End {
    fn of(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("not reaped yet");
        let (name, rest) =
            (&stat[stat.find('(').unwrap() + 1..stat.rfind(')').unwrap()], &stat[stat.rfind(')').unwrap()..]);
        let own = rest.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
        Self { told: wait_status_of_name(name.as_bytes()), own }
    }
}

struct Deaf;
impl Observer for Deaf {
    fn exited(&self, _: Life, _: Exit, _: bool) {}
}

/// A sandbox of this spec, to plan for.
pub(super) fn instance(spec: SandboxSpec) -> Arc<Instance> {
    let key = SandboxKey::new("test", "box-1").unwrap();
    Instance::new(key, Life(1), Arc::new(spec), Arc::new(Deaf))
}

/// A plan with a network namespace of its own, made by the zygote.
pub(super) fn plan(spec: SandboxSpec) -> Result<Plan, Error> {
    plan_with(spec, PlanNetwork::Fresh)
}

pub(super) fn plan_with(spec: SandboxSpec, network: PlanNetwork) -> Result<Plan, Error> {
    spec.check("define")?;
    let ids = match spec.isolation.users {
        crate::spec::Users::Host => None,
        _ => Some(IDS),
    };
    Plan::new(&instance(spec), ids, network)
}

/// A sandbox that shows the host's root and runs this shell script.
pub(super) fn shell(script: &str) -> SandboxSpec {
    let process = ProcessSpec::new(["/bin/sh", "-c", script]);
    SandboxSpec { process: Some(process), root: RootFs::HostReadOnly, ..SandboxSpec::default() }
}

/// A new directory of this test's, removed at the end.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sandkeeper-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a place for temporary files");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a shell script in a sandbox and returns its end, and what it wrote.
pub(super) async fn run_shell(
    rig: &Rig,
    script: &str,
    change: impl FnOnce(&mut SandboxSpec),
) -> Result<(End, String), Error> {
    let scratch = Scratch::new();
    let path = scratch.0.join("output");
    let mut spec = shell(script);
    let process = spec.process.as_mut().expect("a shell");
    process.stdio.stdout = Some(path.clone());
    process.stdio.stderr = Some(path.clone());
    change(&mut spec);
    let end = rig.run(spec).await?;
    let output = fs::read(&path).expect("the output");
    Ok((end, String::from_utf8_lossy(&output).into_owned()))
}

#[track_caller]
pub(super) fn ok<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

#[track_caller]
pub(super) fn refused<T>(result: Result<T, Error>, kind: ErrorKind, with: &str) {
    let error = result.err().expect("it cannot start");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(with), "{error} does not say {with:?}");
}

/// Waits until no zygote has a child, dead or alive.
pub(super) async fn nothing_is_left(rig: &Rig) {
    let children = || rig.zygotes.pids().iter().map(|pid| children_of(*pid)).collect::<String>();
    until("no child is left", || children().is_empty()).await;
}

/// Waits until it holds, or fails saying that it does not.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < late, "after 10 s it does not hold that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) fn children_of(pid: u32) -> String {
    // A process that is gone has none.
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_else(|_| String::new())
}

/// Waits a moment on a thread of the test's own.
#[expect(clippy::disallowed_methods, reason = "no worker runs here")]
fn pause_thread() {
    std::thread::sleep(Duration::from_millis(2));
}
