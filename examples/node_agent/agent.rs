//! The agent itself: a keeper on the linux backend, what it runs, and how it closes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandkeeper::runtime::Runtime;
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::spec::{Network, ProcessSpec, RootFs};
use sandkeeper::{Filter, Keeper, SandboxKey, SandboxSpec};
use tempfile::TempDir;

use crate::Failure;
use crate::process::Process;

/// Counts as long as it runs, a line each time.
const COUNTER: &str = "while :; do echo tick; sleep 0.05; done";

/// How long a process that was told to end has to be gone.
const GOING: Duration = Duration::from_secs(5);

/// What embeds the keeper.
pub(crate) struct Agent {
    pub(crate) keeper: Keeper,
    runtime: Arc<LinuxRuntime>,
    /// Where the counters write.
    output: TempDir,
    /// Every leader there was, to see at the end that none is left.
    leaders: BTreeSet<Process>,
}

/// One sandbox to run.
pub(crate) struct Member {
    pub(crate) key: SandboxKey,
    pub(crate) spec: SandboxSpec,
    /// Set if it counts.
    pub(crate) counter: Option<Counter>,
}

/// A sandbox that counts, and where.
#[derive(Clone)]
pub(crate) struct Counter {
    pub(crate) key: SandboxKey,
    pub(crate) file: PathBuf,
}

/// What closing came to.
pub(crate) struct Closed {
    /// How many were shut down, and in what time.
    pub(crate) sandboxes: usize,
    pub(crate) took: Duration,
    /// What is left; nothing, if all went well.
    pub(crate) left: Vec<String>,
}

impl Agent {
    /// Sets the backend and the keeper up. What the machine lacks is in the error, with how to get it.
    pub(crate) fn open(concurrency: usize) -> Result<Self, Failure> {
        allow_a_descriptor_each()?;
        let runtime = LinuxRuntime::new(LinuxConfig::default())?;
        let keeper = Keeper::builder()
            .runtime("linux", Arc::clone(&runtime) as Arc<dyn Runtime>)
            .concurrent_starts(concurrency)
            .build()?;
        let output = tempfile::Builder::new().prefix("sandkeeper-node-agent-").tempdir()?;
        Ok(Self { keeper, runtime, output, leaders: BTreeSet::new() })
    }

    /// What the backend found out about this machine.
    pub(crate) fn findings(&self) -> Vec<(String, String)> {
        self.runtime.capabilities().findings
    }

    pub(crate) fn output_directory(&self) -> PathBuf {
        self.output.path().to_owned()
    }

    /// Who is to run: mostly sandboxes that do nothing, and at the end some that count, 4 to 8 where there are as many.
    pub(crate) fn fleet(&self, sandboxes: u32, no_network: bool) -> Result<Vec<Member>, Failure> {
        let counters = (sandboxes / 50).clamp(4, 8).min(sandboxes);
        let network = if no_network { Network::None } else { Network::New };
        let member = |number: u32| -> Result<Member, Failure> {
            let key = SandboxKey::new("node-agent", &format!("sandbox-{number}"))?;
            let file = self.output.path().join(number.to_string());
            let counts = number >= sandboxes - counters;
            let mut spec = if counts { counter(&file) } else { SandboxSpec::default() };
            spec.network = network.clone();
            Ok(Member { key, spec, counter: counts.then_some(Counter { key, file }) })
        };
        (0..sandboxes).map(member).collect()
    }

    /// Notes who leads the sandboxes that run now.
    pub(crate) fn remember_leaders(&mut self) {
        let running = self.keeper.list(&Filter::default());
        self.leaders.extend(running.iter().filter_map(|status| Process::identify(status.pid)));
    }

    /// Shuts everything down, and looks whether anything is left.
    pub(crate) async fn close(mut self) -> Closed {
        self.remember_leaders();
        let sandboxes = self.keeper.len();
        let began = Instant::now();
        let mut left = self.shut_down().await;
        let took = began.elapsed();

        left.extend(self.runtime.left_behind().into_iter().map(|group| format!("cgroup {group}")));
        let root = self.runtime.cgroup_root().to_owned();
        let zygotes = self.runtime.usage().zygotes;
        let mut processes = std::mem::take(&mut self.leaders);
        processes.extend(zygotes.into_iter().filter_map(Process::identify));

        self.runtime.close().await;
        drop((self.keeper, self.runtime));
        let output = self.output.path().to_owned();
        left.extend(self.output.close().err().map(|error| format!("{}: {error}", output.display())));
        if root.exists() {
            left.push(format!("cgroup {}", root.display()));
        }
        let alive = still_there(processes).await;
        left.extend(alive.iter().map(|process| format!("process {}", process.pid())));
        Closed { sandboxes, took, left }
    }

    /// Ends every sandbox; gives what would not go.
    async fn shut_down(&self) -> Vec<String> {
        let left = self.keeper.close(None).await;
        left.into_iter().map(|(_, error)| error.to_string()).collect()
    }
}

/// A sandbox in the host's root, read-only, whose shell counts into `file`.
fn counter(file: &Path) -> SandboxSpec {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", COUNTER]);
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    process.stdio.stdout = Some(file.to_owned());
    SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() }
}

/// A sandbox costs one descriptor, and many systems begin with a limit of 1,024.
fn allow_a_descriptor_each() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}

/// Which of these processes are not gone in time.
async fn still_there(mut processes: BTreeSet<Process>) -> BTreeSet<Process> {
    let began = Instant::now();
    loop {
        processes.retain(Process::is_alive);
        if processes.is_empty() || began.elapsed() > GOING {
            return processes;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
