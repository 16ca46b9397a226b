//! A fast, dense and trustworthy supervisor of sandboxes on one Linux node.

mod actor;
pub mod controller;
pub mod error;
mod events;
pub mod id;
mod keeper;
pub mod model;
mod registry;
pub mod runtime;
pub mod spec;
pub mod telemetry;
pub mod wire;

pub use actor::OperationDeadlines;
pub use controller::{Controller, StartedSandbox};
pub use error::{Error, ErrorKind};
pub use events::{Event, KEPT_EVENTS};
pub use id::{InvalidIdentifier, Namespace, SandboxId, SandboxKey};
pub use keeper::{Filter, Keeper, KeeperBuilder, SandboxHandle, SpecSource, Sweep, Watch, WatchItem};
pub use model::{Marks, Pong};
pub use spec::SandboxSpec;
