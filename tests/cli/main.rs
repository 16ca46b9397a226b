//! The program itself: a real daemon on the linux runtime, driven by its own command line. Needs root.
#![cfg(target_os = "linux")]

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../names/hostile.rs"]
mod hostile;
mod json;
mod names;
mod readme;
mod shells;
mod specs;
mod support;
mod verbs;
