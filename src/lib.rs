//! A fast, dense and trustworthy supervisor of sandboxes on one Linux node.

pub mod error;
pub mod id;
pub mod model;
pub mod runtime;
pub mod spec;

pub use error::{Error, ErrorKind};
pub use id::{InvalidIdentifier, Namespace, SandboxId, SandboxKey};
pub use spec::SandboxSpec;
