//! The embedded Linux backend on the real kernel, through the public trait. Needs root.
//!
//! Every test has a backend of its own and ends by checking that nothing is left of it. `SANDKEEPER_FULL=1` runs the full
//! sizes.

mod exits;
mod freeze;
mod leftovers;
mod support;
