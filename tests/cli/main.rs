//! The program itself: a real daemon on the linux runtime, driven by its own command line. Needs root.
#![cfg(target_os = "linux")]
#![expect(clippy::print_stderr, reason = "a test that fails shows the daemon's log")]

mod daemon;
#[path = "../names/hostile.rs"]
mod hostile;
mod json;
mod names;
mod readme;
mod shells;
mod specs;
mod verbs;
