//! The embedded Linux backend on the real kernel, through the public trait. Needs root.
//!
//! Every test has a backend of its own and ends by checking that nothing is left of it. `SANDKEEPER_FULL=1` runs the full
//! sizes.

#![allow(clippy::print_stderr)] // The figures of a test are for whoever runs it alone.

mod exits;
mod freeze;
mod leftovers;
mod support;

#[path = "../pure_v2/limits.rs"]
mod limits;

/// Goal: limits hold. Runs where the machine has them; elsewhere the guest that boots with cgroup v2 alone runs the cases.
#[test]
#[ignore = "needs a machine with cgroup v2 alone, and --test-threads=1"]
fn limits_hold_on_a_machine_with_cgroup_v2_alone() {
    for (name, case) in limits::CASES {
        eprintln!("{name}");
        case();
    }
}
