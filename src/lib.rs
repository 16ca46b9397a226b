//! A fast, dense and trustworthy supervisor of sandboxes on one Linux node.
//!
//! A [`Keeper`] supervises sandboxes. Each is named by a [`SandboxKey`] (namespace and ID), described by a
//! [`SandboxSpec`], and run by a backend ([`runtime::Runtime`]). Fronts are written against [`Controller`].
//!
//! ```no_run
//! use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
//! use sandkeeper::spec::{ProcessSpec, RootFs};
//! use sandkeeper::{Controller, Keeper, SandboxKey, SandboxSpec};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = LinuxRuntime::new(LinuxConfig::default())?;
//! let keeper = Keeper::builder().runtime("linux", runtime.clone()).build()?;
//!
//! let key = SandboxKey::new("default", "web-7")?;
//! let spec = SandboxSpec {
//!     root: RootFs::HostReadOnly,
//!     process: Some(ProcessSpec::new(["/bin/sleep", "60"])),
//!     ..SandboxSpec::default()
//! };
//! let sandbox = keeper.run(&key, spec).await?;
//! println!("{key} runs with leader {}", sandbox.started.pid);
//!
//! assert!(keeper.ping(&key)?.is_alive()); // no lock, no message, no system call
//! keeper.pause(&key).await?;
//! keeper.resume(&key).await?;
//! keeper.shutdown(&key, None).await?;
//! keeper.close(None).await;
//! runtime.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # The calls
//!
//! | call | what it does |
//! | --- | --- |
//! | [`Keeper::define`], [`Keeper::prepare`], [`Keeper::run`] | records a spec; records and prepares; records and starts |
//! | [`Controller::create`], [`start`](Controller::start) | prepares, starts what is defined |
//! | [`Controller::pause`], [`resume`](Controller::resume) | freezes, thaws |
//! | [`Controller::stop`], [`shutdown`](Controller::shutdown) | ends and keeps the record; ends and forgets |
//! | [`Controller::ping`], [`Keeper::handle`], [`Keeper::sweep`] | what was last observed: of one, of one again and again, of all |
//! | [`Controller::status`], [`Keeper::probe`] | asks the sandbox itself |
//! | [`Controller::wait`], [`Keeper::watch`] | hears of an end; of every change |
//! | [`Keeper::list`], [`Keeper::inspect`] | what is published |
//! | [`Controller::platform`], [`metrics`](Controller::metrics), [`update`](Controller::update) | what its backend says and does |
//! | [`Keeper::close`], [`Keeper::shutdown_all`] | the end |
//!
//! What may happen to a sandbox, and when, is decided by one pure machine, [`model::Lifecycle`]; `docs/lifecycle.md` has
//! its table. `docs/architecture.md` shows the house.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `linux` | yes | `runtime::linux`: namespaces, cgroup v2, pidfd. Needs a C linker to build, root and Linux 5.14 to run |
//! | `grpc` | with `cli` | `surface::grpc`: the daemon's service over a unix socket, and a client for it |
//! | `cli` | yes | the program `sandkeeper`: the daemon and the command line |
//! | `testing` | no | fault scripts of [`runtime::memory`], the contract suite `runtime::contract`, faults on demand |
//!
//! Without any, there is everything from the model to the keeper, and the memory backend.

mod actor;
pub mod controller;
pub mod error;
mod events;
pub mod failpoint;
pub mod id;
pub mod journal;
mod keeper;
pub mod model;
mod registry;
pub mod runtime;
pub mod spec;
#[cfg(feature = "grpc")]
pub mod surface;
pub mod telemetry;
pub mod wire;

pub use controller::{Controller, StartedSandbox};
pub use error::{Error, ErrorKind};
pub use events::{Event, KEPT_EVENTS};
pub use id::{InvalidIdentifier, Namespace, SandboxId, SandboxKey};
pub use keeper::{
    Filter, Keeper, KeeperBuilder, OperationDeadlines, SandboxHandle, SpecSource, Sweep, Watch, WatchItem,
};
pub use model::{Marks, Pong};
pub use spec::SandboxSpec;
