//! The daemon as a process: killed, ended, started again, and with what it needs taken away. Needs root.

mod bystanders;
mod cases;
#[path = "../support/daemon.rs"]
mod daemon;
mod ends;
mod faults;
mod limits;
mod returns;
mod support;
mod unprivileged;
