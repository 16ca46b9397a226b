//! The interface for managing sandboxes: six original verbs, and what became of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::id::SandboxKey;
use crate::model::Pong;
use crate::model::{Exit, Life};
use crate::runtime::{Platform, Started};

/// How long each verb takes at most, if its caller does not say.
pub mod default_deadline {
    use std::time::Duration;

    /// For Create, and for define and run.
    pub const CREATE: Duration = Duration::from_secs(30);
    /// For Start: waiting for its turn, preparing and starting.
    pub const START: Duration = Duration::from_secs(60);
    /// For Pause.
    pub const PAUSE: Duration = Duration::from_secs(5);
    /// For Resume.
    pub const RESUME: Duration = Duration::from_secs(5);
    /// For Stop and Shutdown, beyond the grace.
    pub const END_BEYOND_GRACE: Duration = Duration::from_secs(5);
    /// For Status: how long the sandbox is given before the published facts are the answer.
    pub const STATUS: Duration = Duration::from_millis(400);
    /// For Probe, Metrics and Update.
    pub const PROBE: Duration = Duration::from_secs(2);
}

/// A sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedSandbox {
    /// The number of its life.
    pub life: Life,
    /// Its leader, where its Task service listens, and the isolation in force.
    pub started: Arc<Started>,
}

/// Manages sandboxes. [`Keeper`](crate::Keeper) is one; fronts are written against this.
///
/// Each call ends by its deadline with an answer or with
/// [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded); [`default_deadline`] says which deadline holds if the caller
/// sets none. A caller that gives up changes nothing but its own wait: what it began completes or is undone. The one
/// exception is a start that still waits for its turn: it is dropped unexecuted when the deadlines of all who asked for it
/// have passed.
///
/// An ID that nobody knows is [`NotFound`](crate::ErrorKind::NotFound) to every verb but Shutdown, whose goal is absence.
#[async_trait]
pub trait Controller: Send + Sync {
    /// Prepares a defined sandbox. Returns when it is ready to be started.
    ///
    /// Creating the created succeeds and changes nothing; one that is being created is joined. After a stop it prepares
    /// the next life.
    ///
    /// # Errors
    /// - `NotFound`: it was never defined.
    /// - `FailedPrecondition`: it runs, or is on its way to or from that; the message names its phase.
    /// - what its backend says; then it is Defined again.
    async fn create(&self, key: &SandboxKey) -> Result<(), Error>;

    /// Starts a defined sandbox, preparing it first if need be. Returns when its leader runs.
    ///
    /// Starting the running succeeds with the pid it has; a start under way is joined, so that any number of callers
    /// cause one. After a stop it begins the next life.
    ///
    /// # Errors
    /// - `NotFound`: it was never defined. Define it first, or use `run` with a spec.
    /// - `Aborted`: a Stop or Shutdown ended the start.
    /// - `DeadlineExceeded`: its turn did not come, or it did not start in time; what was made is removed.
    /// - what its backend says; everything made is removed before this returns. The ID is then Defined.
    async fn start(&self, key: &SandboxKey) -> Result<StartedSandbox, Error>;

    /// Ends the instance and keeps its record. Returns when nothing of the instance runs any more.
    ///
    /// A running one is asked first (SIGTERM) and has `grace` (nothing for its spec's own) before it is ended with
    /// SIGKILL. A paused one is ended at once, since a frozen process cannot act on a request: its status is 137. A start
    /// under way is dropped. Stopping what does not run succeeds; of several graces the one that ends first holds.
    ///
    /// # Errors
    /// `DeadlineExceeded`: it would not end; the message says what keeps it. The work goes on by itself.
    async fn stop(&self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error>;

    /// Ends the instance and forgets it. Returns when nothing of it is left and its name is free.
    ///
    /// Legal in every phase; it outranks whatever is under way, whose callers are told `Aborted`. Ends like `stop` does,
    /// with `grace` or its spec's own. Shutting down what nobody knows succeeds.
    ///
    /// # Errors
    /// - `DeadlineExceeded`: something would not end or be removed; the message says what. The name stays taken, and the
    ///   work goes on by itself.
    /// - `FailedPrecondition`: something of this name exists that no record leads to; what had one is gone.
    async fn shutdown(&self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error>;

    /// Freezes every process of the sandbox. Returns when the backend's source of truth says frozen.
    ///
    /// Pausing the paused succeeds and changes nothing. A freeze that fails or takes too long is withdrawn, so that
    /// nothing stays half frozen.
    ///
    /// # Errors
    /// - `Unimplemented`: its backend cannot freeze.
    /// - `FailedPrecondition`: it is not running; the message names its phase.
    /// - `DeadlineExceeded`: not frozen in time, and withdrawn.
    async fn pause(&self, key: &SandboxKey) -> Result<(), Error>;

    /// Thaws a paused sandbox. Returns when the backend's source of truth says so. Resuming the running succeeds.
    ///
    /// # Errors
    /// - `Unimplemented`: its backend cannot freeze.
    /// - `FailedPrecondition`: it is not paused; the message names its phase.
    async fn resume(&self, key: &SandboxKey) -> Result<(), Error>;

    /// Says at once whether an instance is there: one look-up and one atomic load, no message, no system call, no log.
    ///
    /// The answer is what was last *observed*. Ends are pushed by the kernel as they happen; freezes are what was
    /// confirmed. A paused sandbox is alive. To ask the sandbox itself, use `probe`.
    ///
    /// # Errors
    /// - `NotFound`: nobody has this name.
    /// - `FailedPrecondition`: it does not run; the message names its phase.
    /// - `Unavailable`: it is known not to answer.
    fn ping(&self, key: &SandboxKey) -> Result<Pong, Error>;

    /// Asks the sandbox how it is, and says everything that is known of it, as a
    /// [`SandboxStatus`](crate::wire::SandboxStatus).
    ///
    /// Never waits behind an operation. If the sandbox does not answer in time, the answer is what was last published,
    /// marked stale.
    ///
    /// # Errors
    /// `NotFound`: nobody has this name.
    async fn status(&self, key: &SandboxKey) -> Result<prost_types::Any, Error>;

    /// Waits for the end of the current life, and says how it ended. Has no deadline unless the caller sets one.
    ///
    /// A life that has ended is told at once, for as long as its record is kept. A wait that is dropped leaves nothing
    /// behind.
    ///
    /// # Errors
    /// - `NotFound`: nobody has this name.
    /// - `FailedPrecondition`: it was never started.
    async fn wait(&self, key: &SandboxKey) -> Result<Exit, Error>;

    /// Says what the sandbox's backend runs on.
    ///
    /// # Errors
    /// `NotFound`: nobody has this name.
    async fn platform(&self, key: &SandboxKey) -> Result<Platform, Error>;

    /// Says what the sandbox uses.
    ///
    /// # Errors
    /// `Unimplemented`: its backend cannot say.
    async fn metrics(&self, key: &SandboxKey) -> Result<prost_types::Any, Error>;

    /// Changes what the sandbox may use.
    ///
    /// # Errors
    /// `Unimplemented`: its backend cannot.
    async fn update(&self, key: &SandboxKey, resources: &prost_types::Any) -> Result<(), Error>;
}
