use std::fs;
use std::time::{Duration, Instant};

use super::super::rig::{Rig, instance, plan, run_shell, shell};
use super::*;
use crate::spec::SandboxSpec;

/// Goal: a sandbox is cut off from the host in every namespace. Method: compare the links of its leader with our own.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_leader_runs_in_namespaces_of_its_own() {
    let rig = Rig::new(1);
    let spawned = rig.spawn(SandboxSpec::default()).await.unwrap_or_else(|error| panic!("{error}"));
    for kind in ["mnt", "pid_for_children", "ipc", "uts", "cgroup", "user", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&spawned.pid.to_string()), of("self"), "{kind}");
    }
    rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::TERM).unwrap();
    let end = rig.end_of(spawned).await;
    assert_eq!((end.told, end.own), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_ends_with_its_status() {
    let rig = Rig::new(1);
    let (end, output) = run_shell(&rig, "id; cat /proc/self/status; ls -la /; exit 7", |_| {})
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    println!("{output}");
    assert_eq!((end.told, end.own), (Some(7 << 8), 7 << 8));
}
