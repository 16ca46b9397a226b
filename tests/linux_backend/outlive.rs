//! Programs and logs when their supervisor is killed: what was tied to it ends, what was not goes on, and output is kept.
//!
//! The supervisor that is killed is this executable, run again.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sandkeeper::SandboxKey;
use sandkeeper::model::{ExitReason, Life};
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::{ExecRequest, Instance, Observer, Reality, Runtime};
use sandkeeper::spec::ProcessSpec;

use crate::support::*;

/// Tells the executable to be a host, and where.
const HOST: &str = "SANDKEEPER_TEST_EXEC_HOST";
const SOON: Duration = Duration::from_secs(20);

fn runtime(dir: &Path) -> Arc<LinuxRuntime> {
    LinuxRuntime::new(LinuxConfig {
        state_dir: Some(dir.join("state")),
        log_dir: Some(dir.join("logs")),
        linger: Duration::from_millis(300),
        zygotes: 1,
        ready_networks: 0,
        ..LinuxConfig::default()
    })
    .unwrap()
}

fn counting(recorder: &Arc<Recorder>) -> Arc<Instance> {
    let mut spec = shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done");
    spec.process.as_mut().unwrap().stdio.log_bytes = Some(1 << 20);
    let key = SandboxKey::new("default", "x").unwrap();
    Instance::new(key, Life(1), Arc::new(spec), Arc::clone(recorder) as Arc<dyn Observer>)
}

fn script(text: &str, detached: bool) -> ExecRequest {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", text]);
    process.env = vec!["PATH=/usr/bin:/bin".to_owned()];
    ExecRequest { process, stdin: false, detached }
}

/// Not a test of its own: the supervisor that is killed.
#[test]
fn host_to_kill() {
    let Some(dir) = std::env::var_os(HOST) else { return };
    block_on(async {
        let runtime = runtime(Path::new(&dir));
        let recorder = Arc::new(Recorder::default());
        let instance = counting(&recorder);
        runtime.create(&instance).await.unwrap();
        runtime.start(&instance).await.unwrap();
        let attached = script("sleep 1001 & sleep 1002 & exec sleep 1003", false);
        let attached = runtime.exec(&instance, &attached).await.unwrap();
        drop(runtime.exec(&instance, &script("exec sleep 1004", true)).await.unwrap());
        let group = runtime.cgroup_root().join("default@x");
        eventually("all sleep", SOON, || sleepers(&group) == [1001, 1002, 1003, 1004]);
        eprintln!("ready {}", group.display());
        std::future::pending::<()>().await;
        drop(attached);
    });
}

/// For how long each process of a group sleeps that sleeps long.
fn sleepers(group: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let seconds = |pid: &str| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        std::str::from_utf8(words.strip_prefix(b"sleep\0")?).ok()?.trim_end_matches('\0').parse().ok()
    };
    let mut all: Vec<u32> = text.lines().filter_map(seconds).collect();
    all.sort_unstable();
    all
}

fn children(runtime: &LinuxRuntime) -> usize {
    let of = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    runtime.usage().zygotes.iter().map(|pid| of(pid).map_or(0, |text| text.split_whitespace().count())).sum()
}

/// The numbers that were logged from a position on, and where the log ends.
async fn logged(runtime: &LinuxRuntime, instance: &Arc<Instance>, from: u64) -> (Vec<u64>, u64) {
    let (mut text, mut at) = (Vec::new(), from);
    loop {
        let page = runtime.logs(instance, at, 1 << 20).await.unwrap();
        assert_eq!(page.dropped, 0);
        if page.next == at {
            let text = String::from_utf8(text).unwrap();
            return (text.lines().map(|line| line.parse().unwrap()).collect(), at);
        }
        at = page.next;
        page.chunks.iter().for_each(|chunk| text.extend(&chunk.bytes));
    }
}

/// What a failed test has left goes with its cgroup root.
struct Leftovers(PathBuf);

impl Drop for Leftovers {
    fn drop(&mut self) {
        let root = self.0.parent().unwrap();
        if root.exists() {
            std::fs::write(root.join("cgroup.kill"), "1").unwrap();
            eventually("what a failed test has left goes", SOON, || {
                for group in std::fs::read_dir(root).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_dir(group.path());
                }
                std::fs::remove_dir(root).is_ok()
            });
        }
    }
}

#[test]
fn a_killed_supervisor_takes_its_programs_along_but_not_detached_ones_nor_output() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["outlive::host_to_kill", "--exact", "--nocapture"])
        .env(HOST, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stderr.take().unwrap()).lines().map(Result::unwrap);
    let group = lines.find_map(|line| line.strip_prefix("ready ").map(PathBuf::from));
    let group = group.expect("a host");
    let _leftovers = Leftovers(group.clone());
    host.kill().unwrap();
    host.wait().unwrap();
    eventually("what was tied to it is gone, all of it", SOON, || sleepers(&group) == [1004]);
    block_on(async {
        let recorder = Arc::new(Recorder::default());
        let (runtime, instance) = (runtime(dir.path()), counting(&recorder));
        // Before anybody has asked for the sandbox itself.
        let (numbers, at) = logged(&runtime, &instance, 0).await;
        assert!(matches!(runtime.reattach(&instance).await.unwrap(), Reality::Running { frozen: false, .. }));
        let exec = runtime.exec(&instance, &script("exit 5", false)).await.unwrap();
        assert_eq!(exec.exit.await, ExitReason::Exited(5));
        let (mut more, _) = logged(&runtime, &instance, at).await;
        while more.len() < 20 {
            more = logged(&runtime, &instance, at).await.0;
        }
        let all: Vec<u64> = numbers.into_iter().chain(more).collect();
        assert!(all[0] == 1 && all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");
        // The detached one goes on, and when it has ended its remains do not stay.
        assert_eq!(sleepers(&group), [1004]);
        let exec = runtime.exec(&instance, &script("pkill -f '[s]leep 1004'", false)).await.unwrap();
        assert_eq!(exec.exit.await, ExitReason::Exited(0));
        eventually("it is gone", SOON, || sleepers(&group).is_empty());
        while children(&runtime) > 1 {
            let exec = runtime.exec(&instance, &script("true", false)).await.unwrap();
            assert_eq!(exec.exit.await, ExitReason::Exited(0));
        }
        let known = runtime.remove_logs_except(&|_| false).unwrap();
        assert_eq!(known, 0, "where there is a group there is a log to keep");
        runtime.delete(&instance).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("logs")).unwrap().count(), 0);
        runtime.close().await;
        assert!(!group.exists());
    });
}
