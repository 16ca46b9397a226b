//! The cases. Each is a plain function that panics when its claim does not hold.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::place::{CONTROLLERS, cgroup, move_to_leaf, read};

/// A case: its name and what it does.
pub(crate) type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

/// All of them, in the order they run.
pub(crate) const CASES: &[Case] = cases! {
    the_machine_is_pure_v2_with_memory_pids_and_cpu,
    a_process_over_memory_max_is_killed_and_counted,
};

/// Goal: the other cases test what they claim to test. Method: no v1 hierarchy exists, and the place of this case has
/// the controllers.
fn the_machine_is_pure_v2_with_memory_pids_and_cpu() {
    let mounts = read(Path::new("/proc/self/mounts"));
    let v1: Vec<_> = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup")).collect();
    assert!(v1.is_empty(), "v1 hierarchies are mounted: {v1:?}");

    let available = read(&cgroup().join("cgroup.controllers"));
    for controller in CONTROLLERS {
        assert!(
            available.split_whitespace().any(|name| name == controller),
            "no {controller} among {available:?}"
        );
    }
    let own = read(Path::new("/proc/self/cgroup"));
    assert_eq!(own.lines().count(), 1, "this process is in more than one hierarchy: {own}");
}

/// Goal: limits are enforced here, so that a case about a limit can fail. Method: one process stays below 16 MiB and
/// lives, another reads without end into memory and is killed by the kernel, which counts one OOM kill.
fn a_process_over_memory_max_is_killed_and_counted() {
    move_to_leaf();
    fs::write(cgroup().join("cgroup.subtree_control"), "+memory").expect("memory can be handed on");
    let limited = cgroup().join("limited");
    fs::create_dir(&limited).expect("a cgroup can be made");
    fs::write(limited.join("memory.max"), "16M").expect("memory can be limited");

    let below = run_in(&limited, "exec dd if=/dev/zero of=/dev/null bs=4M count=1");
    assert!(below.success(), "4 MiB of 16 did not fit: {below}");
    assert_eq!(oom_kills(&limited), "0");

    let above = run_in(&limited, "exec tail /dev/zero"); // no line ever ends there
    assert_eq!(above.signal(), Some(9), "what takes more than its limit must be killed, and it {above}");
    assert_eq!(oom_kills(&limited), "1");

    fs::remove_dir(&limited).expect("an empty cgroup can be removed");
}

/// Runs a shell command line in a cgroup.
fn run_in(cgroup: &Path, line: &str) -> ExitStatus {
    let script = format!("echo 0 >{}/cgroup.procs && {line}", cgroup.display());
    Command::new("/bin/sh").args(["-c", &script]).status().expect("there is a shell")
}

fn oom_kills(cgroup: &Path) -> String {
    let events = read(&cgroup.join("memory.events"));
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.unwrap_or_else(|| panic!("no oom_kill in {events:?}")).to_owned()
}
