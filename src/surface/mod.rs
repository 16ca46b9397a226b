//! How the outside reaches a keeper.

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
mod daemon;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "cli")]
mod places;
#[cfg(feature = "cli")]
mod quantity;
#[cfg(feature = "cli")]
mod rfc3339;
#[cfg(feature = "cli")]
pub mod spec_file;
