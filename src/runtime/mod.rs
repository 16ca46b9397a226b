//! What a backend must be able to do, and the backends.
//!
//! A backend obeys and does not judge: it knows no phase, keeps no queue and sets no deadline. Its caller, the sandbox's
//! actor, runs at most one operation of a life at a time, gives each a deadline, and rolls back what failed.
//!
//! Three rules hold for every backend, and the contract suite checks them:
//! - **Idempotent.** What already holds succeeds: pausing the paused, deleting the deleted.
//! - **Cancelled by drop.** The caller may drop the future of any call. What it leaves behind is ended by `delete`, which
//!   waits for whatever still runs in the background, and which is called on every path.
//! - **Every end is reported once**, by [`Instance::exited`], as soon as it is known and whoever caused it: at the
//!   latest before `stop` with [`Urgency::Now`] or `delete` returns. It may come before `start` returns.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Exit, Life};
use crate::spec::SandboxSpec;

#[cfg(feature = "testing")]
pub mod contract;
mod exec;
#[cfg(feature = "linux")]
pub mod linux;
mod log;
pub mod memory;

pub use exec::{Exec, ExecRequest};
pub use log::{LogChunk, LogPage, LogStream};

/// Makes and ends sandboxes of one kind.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What it can do, found out once. Cheap.
    fn capabilities(&self) -> Capabilities;

    /// What it runs on.
    fn platform(&self) -> Platform {
        Platform::default()
    }

    /// Refuses a spec that could never start here, such as a limit this machine cannot enforce. Makes nothing.
    fn check(&self, spec: &SandboxSpec) -> Result<(), Error>;

    /// Prepares a life: reserves and lays out what `start` will need.
    async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error>;

    /// Starts what was created. Returns when the leader runs: for a process, when it has been executed.
    async fn start(&self, instance: &Arc<Instance>) -> Result<Started, Error>;

    /// Freezes it. Returns when the source of truth says frozen, and not when the request is made.
    async fn pause(&self, instance: &Arc<Instance>) -> Result<(), Error>;

    /// Thaws it, whatever an earlier `pause` came to. Returns when the source of truth says so.
    async fn resume(&self, instance: &Arc<Instance>) -> Result<(), Error>;

    /// Ends it: asks ([`Urgency::Ask`], and returns when asked), or ends every process of it ([`Urgency::Now`], and
    /// returns when none is left). What was never started has nothing to end.
    async fn stop(&self, instance: &Arc<Instance>, urgency: Urgency) -> Result<(), Error>;

    /// Ends what is left of this life and gives everything back. Returns when nothing of it exists any more. Works on a
    /// life at any stage, one that never came to be included.
    async fn delete(&self, instance: &Arc<Instance>) -> Result<(), Error>;

    /// Asks the sandbox itself how it is.
    async fn probe(&self, instance: &Arc<Instance>) -> Result<Report, Error>;

    /// Finds out what exists of this life, after its owner lost track of it: a life of this backend, or one that an earlier
    /// backend on the same state has begun. From then on its end is reported like any other.
    async fn reattach(&self, instance: &Arc<Instance>) -> Result<Reality, Error>;

    /// What keeps this life from ending, such as a process that the kernel cannot kill: shown to whoever waits for it.
    /// Does not wait.
    async fn holdup(&self, _instance: &Arc<Instance>) -> Option<String> {
        None
    }

    /// Whether an earlier backend on the same state has left anything that nobody has asked for yet. Cheap.
    fn has_survivors(&self) -> bool {
        false
    }

    /// What an earlier backend on the same state has left, and whose key and life are not `known`: nobody has a record of it.
    /// Whoever knows a life of a key knows all before it: asked of the last one there can be, `known` answers for all of a key.
    async fn survivors(
        &self,
        _known: &(dyn for<'a> Fn(&'a SandboxKey, Life) -> bool + Send + Sync),
    ) -> Result<Vec<Survivor>, Error> {
        Ok(Vec::new())
    }

    /// Ends and removes a survivor that nobody has a record of. Returns when nothing of it exists any more.
    async fn end_survivor(&self, _survivor: &Survivor) -> Result<(), Error> {
        Ok(())
    }

    /// Removes what outlives a sandbox on purpose, such as its log, of every one whose key is not `known` and of which nothing
    /// runs. How many there were. For recovery, once all records have been read.
    async fn remove_remains(
        &self,
        _known: &(dyn for<'a> Fn(&'a SandboxKey) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        Ok(0)
    }

    /// Runs a program inside it. Returns when that has been executed.
    async fn exec(&self, instance: &Arc<Instance>, _request: &ExecRequest) -> Result<Exec, Error> {
        Err(unimplemented("run a program in", instance))
    }

    /// Reads what its main process has written, from a position on, about so many bytes at most. Works for as long as the
    /// life's remains exist, also when it has ended.
    async fn logs(&self, instance: &Arc<Instance>, _from: u64, _most_bytes: usize) -> Result<LogPage, Error> {
        Err(unimplemented("read the log of", instance))
    }

    /// What it uses.
    async fn metrics(&self, instance: &Arc<Instance>) -> Result<prost_types::Any, Error> {
        Err(unimplemented("read metrics of", instance))
    }

    /// Changes what it may use.
    async fn update(&self, instance: &Arc<Instance>, _resources: &prost_types::Any) -> Result<(), Error> {
        Err(unimplemented("update", instance))
    }
}

fn unimplemented(tried: &'static str, instance: &Instance) -> Error {
    Error::new(ErrorKind::Unimplemented, tried, "its runtime cannot").on(&instance.key)
}

/// One life of one sandbox, as a backend sees it.
pub struct Instance {
    /// Whose life.
    pub key: SandboxKey,
    /// Which.
    pub life: Life,
    /// What it is to be.
    pub spec: Arc<SandboxSpec>,
    /// Who hears of its end. Weak: a backend that remembers a life does not keep its owner.
    observer: Weak<dyn Observer>,
}

impl Instance {
    /// A life whose end `observer` is told, for as long as somebody else keeps it.
    pub fn new(
        key: SandboxKey,
        life: Life,
        spec: Arc<SandboxSpec>,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let observer = Arc::downgrade(&observer);
        Arc::new(Self { key, life, spec, observer })
    }

    /// The same life by another spec.
    #[cfg(feature = "linux")]
    pub(crate) fn with_spec(&self, spec: SandboxSpec) -> Arc<Self> {
        let Self { key, life, ref observer, .. } = *self;
        Arc::new(Self { key, life, spec: Arc::new(spec), observer: Weak::clone(observer) })
    }

    /// Reports the end of this life. Callable from any thread; does not block. A second report changes nothing.
    ///
    /// `all_ended` says that no process of the instance is left; else its owner ends the rest.
    pub fn exited(&self, exit: Exit, all_ended: bool) {
        if let Some(observer) = self.observer.upgrade() {
            observer.exited(self.life, exit, all_ended);
        }
    }
}

impl Instance {
    /// What its owner wants to find with it, should the owner's own records be lost; empty if the owner is gone.
    pub fn keepsake(&self) -> Vec<u8> {
        self.observer.upgrade().map_or_else(Vec::new, |observer| observer.keepsake())
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} life {}", self.key, self.life)
    }
}

/// Hears of the ends of lives.
pub trait Observer: Send + Sync {
    /// See [`Instance::exited`].
    fn exited(&self, life: Life, exit: Exit, all_ended: bool);

    /// See [`Instance::keepsake`].
    fn keepsake(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Something that an earlier backend on the same state has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// Its name.
    pub key: SandboxKey,
    /// Its life.
    pub life: Life,
    /// What its owner gave along ([`Instance::keepsake`]); empty if there was nothing, or it is unreadable.
    pub keepsake: Vec<u8>,
    /// What it is and where, for people: a cgroup's path, and the processes in it.
    pub description: String,
}

/// How a life is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// Politely: it may take its time, and may refuse.
    Ask,
    /// At once, with everything in it.
    Now,
}

/// What a start came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Started {
    /// The leader: PID 1 of the sandbox, by its number on the host.
    pub pid: u32,
    /// Where its Task service listens, for backends that have one.
    pub endpoint: Option<Endpoint>,
    /// The isolation in force, an item each, such as `user-namespace` or `seccomp:default`.
    pub isolation: Arc<[String]>,
}

/// Where a sandbox's Task service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address, such as `unix:///run/…`.
    pub address: String,
    /// The version of the protocol spoken there.
    pub version: u32,
}

/// What a sandbox says about itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Whether it runs at all.
    pub alive: bool,
    /// Whether the source of truth says it is frozen.
    pub frozen: bool,
    /// Whatever the backend wants to add; passed on unchanged.
    pub extra: Option<prost_types::Any>,
}

/// What exists of a life whose owner lost track of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reality {
    /// Nothing.
    Absent,
    /// It was prepared and never started.
    Created,
    /// It runs.
    Running {
        /// As `start` would have said it.
        started: Started,
        /// Whether it is frozen.
        frozen: bool,
    },
    /// It has ended, and its remains are there.
    Ended(Exit),
}

/// What a backend can do on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Whether Pause and Resume work; else they are Unimplemented.
    pub pause: bool,
    /// Whether sandboxes outlive this program, and are found again by the next one on the same state.
    pub adopt: bool,
    /// Whether memory can be limited.
    pub limit_memory: bool,
    /// Whether swap can be limited.
    pub limit_swap: bool,
    /// Whether CPU time can be limited.
    pub limit_cpu: bool,
    /// Whether processes can be counted and limited.
    pub limit_pids: bool,
    /// What was found out besides, for people: name and finding.
    pub findings: Vec<(String, String)>,
}

/// The time of day, in nanoseconds since the Unix epoch, as an [`Exit`] carries it.
pub fn unix_nanos() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        // A clock set before 1970 tells no time.
        Err(_) => 0,
    }
}

/// What a backend runs on, in OCI's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, `linux`.
    pub os: String,
    /// The architecture, `amd64`.
    pub architecture: String,
}

impl Default for Platform {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned() }
    }
}
