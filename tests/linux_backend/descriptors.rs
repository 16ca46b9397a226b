//! Field case C24: a program that has used up its descriptors loses no exit, and leaves nothing half-made.
//!
//! The limit is set in a process of its own: this executable, run again.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::linux::LinuxConfig;
use sandkeeper::runtime::{ExecRequest, Instance, Runtime};
use sandkeeper::spec::ProcessSpec;

use crate::support::*;

const ALONE: &str = "SANDKEEPER_TEST_ALONE";

/// Runs a test in a process of its own. Whether this is that process.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let test = std::env::current_exe().unwrap();
    let status = Command::new(test).args([name, "--exact", "--nocapture"]).env(ALONE, "1").status().unwrap();
    assert!(status.success());
    false
}

/// Every descriptor that is left.
fn take_all() -> Vec<File> {
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken
}

/// The children of all zygotes, dead or alive.
fn children(bed: &Bed) -> Vec<u32> {
    let mut children = Vec::new();
    for pid in bed.runtime.usage().zygotes {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.extend(list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    children.sort();
    children
}

fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}

/// Goal: without a free descriptor an exit is told as it was, also that of a program, and a start is refused and leaves nothing.
/// Method: use all up; let a program end, and kill a sandbox; then start others with a few more descriptors each time, so that every step of a start is the one that lacks one.
#[test]
fn without_descriptors_no_exit_is_lost_and_nothing_is_half_made() {
    if !is_alone("descriptors::without_descriptors_no_exit_is_lost_and_nothing_is_half_made") {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let place = tempfile::tempdir().unwrap();
    for state_dir in [None, Some(place.path().to_owned())] {
        block_on(async {
            let bed = Bed::with(LinuxConfig { ready_networks: 0, state_dir, ..LinuxConfig::default() });
            let victims: Vec<Arc<Instance>> =
                (0..3).map(|i| bed.instance(&format!("victim-{i}"), sleeper())).collect();
            let mut pids = Vec::new();
            for victim in &victims {
                pids.push(bed.run(victim).await.pid);
            }
            let ready = bed.file("ready");
            let mut spec = shell("trap 'exit 7' TERM; sleep 1000 & echo ready; wait");
            spec.process.as_mut().unwrap().stdio.stdout = Some(ready.clone());
            let with_status = bed.instance("seven", spec);
            pids.push(bed.run(&with_status).await.pid);
            eventually("it traps the signal", Duration::from_secs(10), || beats(&ready) > 0);
            let others: Vec<Arc<Instance>> =
                (0..10).map(|i| bed.instance(&format!("other-{i}"), sleeper())).collect();
            for other in &others {
                bed.runtime.create(other).await.unwrap();
            }
            let with_program = bed.instance("with-program", shell("exec sleep 1000"));
            let mut running = vec![bed.run(&with_program).await.pid];
            let process = ProcessSpec::new(["/bin/sh", "-c", "kill -STOP $$; exit 3"]);
            let request = ExecRequest { process, stdin: false, detached: false };
            let program = bed.runtime.exec(&with_program, &request).await.unwrap();
            eventually("it has stopped", Duration::from_secs(10), || is_stopped(program.pid));
            let mut taken = take_all();
            let stopped = rustix::process::Pid::from_raw(program.pid as i32).unwrap();
            rustix::process::kill_process(stopped, rustix::process::Signal::CONT).unwrap();
            assert_eq!(program.exit.await, ExitReason::Exited(3));
            pids[..3].iter().for_each(|pid| kill(*pid));
            let term = rustix::process::Pid::from_raw(pids[3] as i32).unwrap();
            rustix::process::kill_process(term, rustix::process::Signal::TERM).unwrap();
            for victim in &victims {
                assert_eq!(bed.exit(victim).await.reason, ExitReason::Signalled(9));
            }
            assert_eq!(bed.exit(&with_status).await.reason, ExitReason::Exited(7));
            for (free, other) in others.iter().enumerate() {
                let mut kept = take_all();
                taken.append(&mut kept);
                taken.truncate(taken.len() - free);
                match tokio::time::timeout(Duration::from_secs(10), bed.runtime.start(other)).await.unwrap() {
                    Ok(started) => running.push(started.pid),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{free} free: {error}")
                    }
                }
            }
            drop(taken);
            let started = running.len() - 1;
            assert!(started > 0 && started < others.len(), "{started} started");
            running.sort();
            eventually("no other child is left", Duration::from_secs(10), || children(&bed) == running);
            for instance in others.iter().chain(&victims).chain([&with_status, &with_program]) {
                bed.delete(instance).await;
            }
            bed.close().await;
        });
    }
}
