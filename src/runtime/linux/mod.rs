//! The embedded Linux backend: namespaces, cgroup v2 and pidfds, with no daemon and no helper on disk.
//!
//! ```text
//! LinuxRuntime ── create: a group (tree, controllers), a block of IDs
//!      │          start:  a network (netns), a plan, a spawn by a zygote; its pidfd is watched from then on (exit)
//!      │          pause, resume: freeze
//!      │          exec:   a middle child, and a leash (exec)
//!      │          logs:   files that the init writes (log, log_reader)
//!      └───────── stop, delete: end
//! ```
//!
//! A sandbox costs this process one descriptor, its pidfd, and under 300 bytes. Nothing wakes up for an idle sandbox: one
//! thread sleeps on all pidfds. Calls into the kernel that may wait run on a few threads of the backend's own (cores + 2),
//! not on the caller's async runtime; paths that a spec names are opened on others, of which there are up to 32 while a
//! file system does not answer.
//!
//! On [`LinuxRuntime::close`], on drop, and when the process dies, all sandboxes end and all groups are removed. With a
//! [state directory](LinuxConfig::state_dir) only [`close`](LinuxRuntime::close) does that: else sandboxes go on, and the next
//! backend on that directory finds them (`greet`, `find`).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::Life;
use crate::runtime::{
    Capabilities, Exec, ExecRequest, Instance, LogPage, Reality, Report, Runtime, Started, Survivor, Urgency,
};
use crate::spec::SandboxSpec;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "feature \"linux\" is built and tested on x86_64 Linux only; leave it out with default-features = false"
);

mod channel;
mod close;
mod config;
mod controllers;
mod end;
#[cfg(test)]
mod escape_tests;
mod exec;
mod exit;
mod failure;
mod find;
mod freeze;
mod greet;
mod group;
mod host_files;
mod ids;
mod launch;
mod log;
// The init's half of it is in the same file.
#[allow(dead_code)]
mod log_format;
mod log_reader;
mod machine;
mod mark;
mod message;
mod netns;
mod off_limits;
mod past;
mod plan;
#[cfg(test)]
mod process_tests;
// Half of it is for the other side, the init, which is built from the same file.
#[allow(dead_code)]
mod protocol;
mod readiness;
#[cfg(test)]
mod rig;
mod rights;
mod sandbox;
mod seccomp;
mod start;
mod state_dir;
mod submounts;
mod sys;
mod tree;
mod usage;
#[cfg(test)]
mod version_tests;
mod workers;
mod zygote;

pub use config::{AdoptBy, ExitEvidence, LinuxConfig};
pub use usage::Usage;

use exit::{ExitWatch, Judge};
use freeze::Freezer;
use greet::Greeted;
use ids::Ids;
use log::Logs;
use machine::Machine;
use netns::Networks;
use off_limits::OffLimits;
use past::Past;
use protocol::VERSION;
use sandbox::Lives;
use state_dir::StateDir;
use tree::Tree;
use workers::Workers;
use zygote::{Groups, Zygotes};

/// The most threads that open what specs name.
const OPENERS: usize = 32;

/// How long shutting down waits for sandboxes to end, all together.
const CLOSING: Duration = Duration::from_secs(5);

/// Runs sandboxes as processes in namespaces of their own, directly on this kernel.
///
/// Needs cgroup v2 mounted (beside v1 or alone) and Linux 5.14 or later; and root's capabilities, or else user namespaces and a
/// cgroup delegated to the user it runs as. What sandboxes lack then is told among the findings of its
/// [capabilities](Runtime::capabilities), and specs that ask for it are refused.
pub struct LinuxRuntime {
    inner: Arc<Inner>,
}

/// What the backend's own background work shares.
struct Inner {
    config: LinuxConfig,
    machine: Machine,
    tree: Arc<Tree>,
    lives: Arc<Lives>,
    /// What an earlier backend has left. Nothing without a state directory.
    past: Option<Arc<Past>>,
    state: Option<StateDir>,
    /// Zygotes of an earlier backend that were left alone, and why.
    left_alone: Vec<String>,
    ids: Arc<Ids>,
    networks: Arc<Networks>,
    workers: Workers,
    /// For opening what a spec names: a mute file system may hold these up, and nothing else.
    openers: Workers,
    /// Where logs are, if there is such a place.
    logs: Option<Arc<Logs>>,
    /// What no sandbox of its owner is shown.
    off_limits: Arc<OffLimits>,
    /// Gone once it is closed.
    zygotes: Mutex<Option<Arc<Zygotes>>>,
    exits: Arc<ExitWatch>,
    exit_thread: Mutex<Option<JoinHandle<()>>>,
    closed: AtomicBool,
}

impl LinuxRuntime {
    /// Looks at the machine and sets the backend up: its cgroups, its zygotes and its threads. To be called within a
    /// tokio runtime.
    ///
    /// Usually takes some milliseconds. Where an earlier backend of the same name is still being cleared up, up to some
    /// seconds, in which it blocks.
    ///
    /// # Errors
    /// - [`ErrorKind::PermissionDenied`]: a capability is missing, or without root a cgroup; which, is said.
    /// - [`ErrorKind::FailedPrecondition`]: the machine lacks something, or another backend has this name; what, and what
    ///   to do about it, is said.
    /// - [`ErrorKind::InvalidArgument`]: the configuration makes no sense.
    pub fn new(config: LinuxConfig) -> Result<Arc<Self>, Error> {
        Self::speaking(config, VERSION)
    }

    /// As [`new`](Self::new), for a version of the protocol.
    fn speaking(config: LinuxConfig, version: u32) -> Result<Arc<Self>, Error> {
        let ids = Arc::new(Ids::new(&config)?);
        let machine = Machine::detect()?;
        let logs = config.log_dir.as_deref().map(Logs::open).transpose()?.map(Arc::new);
        let failed = |error| kernel_error("set up the linux backend", "its threads and descriptors", error);
        let cores = std::thread::available_parallelism().map_err(failed)?.get();
        let state =
            config.state_dir.as_deref().map(|path| StateDir::take(path, config.linger)).transpose()?;
        let tree = Arc::new(match &state {
            Some(state) => Tree::open_or_make(&machine, &config, state)?,
            None => Tree::make(&machine, &config)?,
        });
        let mut root = Root { tree: Some(Arc::clone(&tree)), stays: state.is_some() };
        let greeted = state.as_ref().map_or_else(Greeted::default, |state| greet::greet(&state.sockets));
        let workers = Workers::start(cores + 2).map_err(failed)?;
        let openers = Workers::on_demand(OPENERS);
        // Whoever has no right to make one of the host's makes it with the sandbox.
        let one_user = machine.rights.one_user().is_some();
        let of_state = state.as_ref().map(|state| &*state.path);
        let off_limits = OffLimits::find(one_user, of_state, config.log_dir.as_deref(), &config.off_limits)?;
        let ready_networks = if one_user { 0 } else { config.ready_networks };
        let networks = Arc::new(Networks::start(ready_networks).map_err(failed)?);
        let [group, leaf, parent] = tree.share().map_err(failed)?;
        let groups = Groups { root: group, leaf, parent };
        let count = if config.zygotes == 0 { cores } else { config.zygotes };
        let sockets = state.as_ref().map(|state| Arc::clone(&state.sockets));
        let (zygotes, children) =
            Zygotes::take_over(count, groups, one_user, sockets, greeted.zygotes, version)?;
        let past = state.is_some().then(|| {
            Past::new(&tree, Arc::clone(&ids), Arc::clone(&zygotes), children, config.adopt_by).map(Arc::new)
        });
        let past = past
            .transpose()
            .map_err(|error| kernel_error("set up the linux backend", "its cgroups", error))?;
        let lives = Arc::new(Lives::default());
        let judge = Judge {
            lives: Arc::clone(&lives),
            zygotes: Arc::clone(&zygotes),
            tree: Arc::clone(&tree),
            evidence: config.exit_evidence,
            writes: state.is_some(),
        };
        let (exits, thread) = ExitWatch::start(judge).map_err(failed)?;
        root.tree = None;
        let inner = Inner {
            config,
            machine,
            tree,
            lives,
            past,
            state,
            left_alone: greeted.left_alone,
            ids,
            networks,
            workers,
            openers,
            logs,
            off_limits: Arc::new(off_limits),
            zygotes: Mutex::new(Some(zygotes)),
            exits,
            exit_thread: Mutex::new(Some(thread)),
            closed: AtomicBool::new(false),
        };
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// Ends every sandbox and removes everything, the cgroup root included. Whatever is called afterwards is refused.
    ///
    /// Returns when all is gone, or after some seconds if something cannot be ended; [`left_behind`](Self::left_behind)
    /// then names it. A second call waits for nothing. Without a state directory, dropping the backend does the same, and
    /// blocks meanwhile; with one it [leaves](Self::leave) everything.
    pub async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        let (done, closed) = tokio::sync::oneshot::channel();
        let close = move || {
            inner.shut_down();
            let _ = done.send(());
        };
        // A thread of its own: the workers are what it waits for.
        if std::thread::Builder::new().name("sandkeeper-end".to_owned()).spawn(close).is_ok() {
            drop(closed.await);
        } else {
            self.inner.shut_down();
        }
    }

    /// Lets go of every sandbox and leaves it running, for the next backend on the same state directory. Whatever is called
    /// afterwards is refused. Returns when the directory is free.
    ///
    /// What is under way is left as it is: the next backend finds out what has come of it. Dropping the backend does the same,
    /// and blocks meanwhile. Without a state directory there is nobody to leave anything to, and this is
    /// [`close`](Self::close).
    pub async fn leave(&self) {
        if self.inner.state.is_none() {
            return self.close().await;
        }
        let inner = Arc::clone(&self.inner);
        // Nothing of it waits for a sandbox. If it cannot be run, the runtime is ending, and so are we.
        let _ = tokio::task::spawn_blocking(move || inner.let_go()).await;
    }

    /// The directory below which all its cgroups are.
    pub fn cgroup_root(&self) -> &Path {
        &self.inner.tree.path
    }

    /// The cgroups of sandboxes that exist at the moment, each with its processes. When every life has been deleted, there
    /// are none.
    pub fn left_behind(&self) -> Vec<String> {
        self.inner.tree.left_behind()
    }

    /// The processes of a life in words: number, name and state of each. State D, in which the kernel waits for a device
    /// or a server, is what keeps a process from ending or freezing.
    pub fn processes(&self, instance: &Instance) -> Vec<String> {
        let inner = &self.inner;
        let group = match inner.lives.get(instance.life) {
            Some(sandbox) => {
                sandbox.state().group.and_then(|number| inner.tree.open(&instance.key, number).ok()?)
            }
            // One that an earlier backend has left, and that is ended without having been asked for.
            None if inner.past.is_some() => {
                let group = inner.tree.open_named(&instance.key.file_name(255)).ok().flatten();
                group.filter(|group| group::is_marked(group))
            }
            None => None,
        };
        group.map(group::describe_processes).unwrap_or_default()
    }
}

/// Removes the root again if what follows its making fails; one that stays only if nothing is in it.
struct Root {
    tree: Option<Arc<Tree>>,
    stays: bool,
}

impl Drop for Root {
    fn drop(&mut self) {
        match &self.tree {
            Some(tree) if self.stays => tree.remove_empty(),
            Some(tree) => drop(tree.remove_all()),
            None => {}
        }
    }
}

impl Inner {
    /// The zygotes, unless it is closed.
    fn zygotes(&self) -> Result<Arc<Zygotes>, Error> {
        self.zygotes.lock().clone().ok_or_else(closed)
    }

    /// Refuses what could not be put in force here.
    fn check_spec(&self, spec: &SandboxSpec) -> Result<(), Error> {
        self.machine.rights.check(spec)?;
        self.check_log(spec)?;
        self.tree.controllers.check(&spec.limits)
    }

    /// Refuses once it is closed.
    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }
}

impl Drop for LinuxRuntime {
    fn drop(&mut self) {
        if self.inner.state.is_some() { self.inner.let_go() } else { self.inner.shut_down() }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "use the linux backend", "it is closed")
}

/// An error of the kernel's, with the kind that its number suggests.
fn kernel_error(tried: &'static str, what: impl Into<String>, error: io::Error) -> Error {
    let kind = match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => ErrorKind::PermissionDenied,
        Some(
            Errno::NOMEM
            | Errno::NOSPC
            | Errno::AGAIN
            | Errno::MFILE
            | Errno::NFILE
            | Errno::USERS
            | Errno::DQUOT,
        ) => ErrorKind::ResourceExhausted,
        Some(Errno::ROFS | Errno::BUSY | Errno::OPNOTSUPP) => ErrorKind::FailedPrecondition,
        Some(Errno::INVAL | Errno::RANGE) => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, tried, what.into()).caused_by(error)
}

#[async_trait]
impl Runtime for LinuxRuntime {
    fn capabilities(&self) -> Capabilities {
        let controllers = &self.inner.tree.controllers;
        Capabilities {
            pause: true,
            adopt: self.inner.state.is_some(),
            limit_memory: controllers.memory,
            limit_swap: controllers.swap,
            limit_cpu: controllers.cpu,
            limit_pids: controllers.pids,
            findings: self.inner.findings(),
        }
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        self.inner.check_spec(spec)
    }

    async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.inner.create(instance).await.map_err(|error| error.on(&instance.key))
    }

    async fn start(&self, instance: &Arc<Instance>) -> Result<Started, Error> {
        let started = start::start(&self.inner, instance).await;
        started.map_err(|error| error.on(&instance.key))
    }

    async fn pause(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.inner.freeze(instance, Freezer::Freeze).await
    }

    async fn resume(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.inner.freeze(instance, Freezer::Thaw).await
    }

    async fn stop(&self, instance: &Arc<Instance>, urgency: Urgency) -> Result<(), Error> {
        let Some(sandbox) = self.inner.find_to_end(instance).await? else { return Ok(()) };
        let stopped = match urgency {
            Urgency::Ask => end::ask(&sandbox),
            Urgency::Now => self.inner.stop_now(&sandbox).await,
        };
        stopped.map_err(|error| error.on(&instance.key))
    }

    async fn delete(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let deleted = match self.inner.find_to_end(instance).await? {
            Some(sandbox) => self.inner.delete(&sandbox).await.map_err(|error| error.on(&instance.key)),
            None if self.inner.past.is_some() => self.inner.clear_unknown(instance).await,
            None => Ok(()),
        };
        deleted?;
        // After its init, which writes it, is gone; and where a life is not known, a log may be left of it all the same.
        self.inner.remove_log(instance).await.map_err(|error| error.on(&instance.key))
    }

    async fn probe(&self, instance: &Arc<Instance>) -> Result<Report, Error> {
        let leader = self.inner.find(instance).await?.and_then(|sandbox| sandbox.running());
        let alive = leader.is_some_and(|leader| !leader.has_ended());
        let frozen = alive && self.inner.is_frozen(instance).await?;
        Ok(Report { alive, frozen, extra: None })
    }

    async fn holdup(&self, instance: &Arc<Instance>) -> Option<String> {
        let processes = self.processes(instance);
        (!processes.is_empty()).then(|| format!("these processes of it are left: {}", processes.join(", ")))
    }

    async fn exec(&self, instance: &Arc<Instance>, request: &ExecRequest) -> Result<Exec, Error> {
        exec::exec(&self.inner, instance, request).await.map_err(|error| error.on(&instance.key))
    }

    async fn logs(&self, instance: &Arc<Instance>, from: u64, most_bytes: usize) -> Result<LogPage, Error> {
        self.inner.read_log(instance, from, most_bytes).await.map_err(|error| error.on(&instance.key))
    }

    async fn reattach(&self, instance: &Arc<Instance>) -> Result<Reality, Error> {
        self.inner.reality(instance).await.map_err(|error| error.on(&instance.key))
    }

    fn has_survivors(&self) -> bool {
        self.inner.past.as_ref().is_some_and(|past| !past.is_empty())
    }

    async fn survivors(
        &self,
        known: &(dyn for<'a> Fn(&'a SandboxKey, Life) -> bool + Send + Sync),
    ) -> Result<Vec<Survivor>, Error> {
        self.inner.list_survivors(known).await
    }

    async fn end_survivor(&self, survivor: &Survivor) -> Result<(), Error> {
        self.inner.end_survivor(survivor).await
    }

    async fn remove_remains(
        &self,
        known: &(dyn for<'a> Fn(&'a SandboxKey) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        self.remove_logs_except(known)
    }
}

impl Inner {
    async fn freeze(self: &Arc<Self>, instance: &Arc<Instance>, to: Freezer) -> Result<(), Error> {
        let Some(sandbox) = self.find(instance).await? else {
            return Err(freeze::not_running(to).on(&instance.key));
        };
        let busy = sandbox.acquire().await;
        freeze::set(&sandbox, &self.tree, &self.workers, &busy, to).await
    }

    async fn is_frozen(&self, instance: &Instance) -> Result<bool, Error> {
        let Some(sandbox) = self.lives.get(instance.life) else { return Ok(false) };
        let tree = Arc::clone(&self.tree);
        self.workers.run(move || freeze::is_frozen(&tree, &sandbox)).await
    }
}
