//! The embedded Linux backend on the real kernel, through the public trait. Needs root.
//!
//! Every test has a backend of its own and ends by checking that nothing is left of it. `SANDKEEPER_FULL=1` runs the full
//! sizes.

#![allow(clippy::print_stderr)] // The figures of a test are for whoever runs it alone.

mod adoption;
mod descriptors;
mod exec;
mod exits;
mod freeze;
mod leftovers;
mod logs;
mod off_limits;
mod outlive;
mod support;
