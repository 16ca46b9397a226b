//! A daemon, and what these tests do with it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::SandboxStatus;
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::{Error, SandboxKey};

pub(crate) use crate::daemon::{Daemon, LONG, Plan, directory, program, until};

/// The size of a test: scaled down, or full on request.
pub(crate) fn size(scaled: usize, full: usize) -> usize {
    if std::env::var_os("SANDKEEPER_FULL").is_some_and(|value| value == "1") { full } else { scaled }
}

/// Runs a test on a tokio runtime with two threads.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(10 * LONG, test).await.expect("it does not stick") })
}

pub(crate) fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

impl Daemon {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket()).await.expect("it is served").within(LONG)
    }

    /// All sandboxes, once none is being found out about any more.
    pub(crate) async fn settled(&self) -> Vec<SandboxStatus> {
        let mut client = self.client().await;
        let begun = Instant::now();
        while client.version().await.unwrap().recovering > 0 {
            assert!(begun.elapsed() < LONG, "still recovering\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        client.list(ListRequest::default()).await.unwrap()
    }
}

/// A sandbox in the host's root that runs a program.
pub(crate) fn in_host(argv: &[&str]) -> SandboxSpec {
    let mut process = ProcessSpec::new(argv.iter().copied());
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() }
}

pub(crate) fn sleeper() -> SandboxSpec {
    in_host(&["/bin/sleep", "1000000"])
}

/// Starts a sandbox; gives its PID 1.
pub(crate) async fn run(client: &mut Client, id: &str, spec: SandboxSpec) -> u32 {
    client.start(&key(id), Some(&spec)).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    client.status(&key(id)).await.unwrap().pid
}

/// A phase that a sandbox is going to be in.
pub(crate) async fn phase(client: &mut Client, id: &str, expected: &str) {
    let begun = Instant::now();
    loop {
        let phase = client.status(&key(id)).await.unwrap().phase;
        if phase == expected {
            return;
        }
        assert!(begun.elapsed() < LONG, "{id} is {phase}, and not {expected}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A file of a process in /proc; nothing if the process is gone.
pub(crate) fn of_process(pid: u32, file: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// Whether it has ended, reaped or not.
pub(crate) fn has_ended(pid: u32) -> bool {
    of_process(pid, "status").is_none_or(|status| status.contains("State:\tZ"))
}

/// Waits until the only child of a sandbox's PID 1 catches SIGTERM, or ignores it, as `mask` of its status says.
pub(crate) fn minds_sigterm(pid: u32, mask: &str) {
    until("the program has set its trap", || {
        let children = of_process(pid, &format!("task/{pid}/children"))?;
        let child: u32 = children.split_whitespace().next()?.parse().ok()?;
        let status = of_process(child, "status")?;
        let signals = status.lines().find_map(|line| line.strip_prefix(mask))?;
        let signals = u64::from_str_radix(signals.trim(), 16).ok()?;
        (signals & 1 << (Signal::TERM.as_raw() - 1) != 0).then_some(())
    });
}

/// A signal to a process of a sandbox of this test's own making.
pub(crate) fn send(pid: u32, signal: Signal) {
    assert!(pid > 1, "never to be sent to {pid}");
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// What an error is of.
#[track_caller]
pub(crate) fn refused<T>(answer: Result<T, Error>) -> Error {
    match answer {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error,
    }
}
