//! How the outside reaches a keeper.

#[cfg(feature = "grpc")]
pub mod grpc;
