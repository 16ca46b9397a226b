//! What does one sandbox cost? Starts many real ones, and prints what each takes of memory, descriptors and processor.
//!
//! `cargo bench --bench density`; `-- --sandboxes N` for another number than 1,000; with `-- --test` in a form that takes
//! some seconds. See docs/benchmarks.md.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "density/counting.rs"]
mod counting;
#[path = "density/deaths.rs"]
mod deaths;
mod house;
#[path = "density/kernel.rs"]
mod kernel;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use sandkeeper::runtime::Runtime;
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::spec::Network;
use sandkeeper::{Controller, KEPT_EVENTS, Keeper, SandboxKey, SandboxSpec, WatchItem};
use tokio::task::JoinSet;

use deaths::Victim;
use kernel::Moment;

#[global_allocator]
static HEAP: counting::Counting = counting::Counting;

/// Without a kernel there is room for so many times as many.
const MEMORY_TIMES: u64 = 10;

/// Starts before the first look, so that what is made once is there: threads, and what the allocator keeps.
const WARM_UP: u64 = 64;

/// How many are killed one at a time, of those there are at most half.
const SINGLE_DEATHS: usize = 100;

/// What does one sandbox cost?
#[derive(Parser)]
struct Options {
    /// How many; ten times as many without a kernel.
    #[arg(long)]
    sandboxes: Option<u64>,
    /// A short form, of some seconds.
    #[arg(long)]
    test: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// One round only, in this process.
    #[arg(long, hide = true, value_enum)]
    round: Option<Round>,
}

/// Each round has a process of its own, so that none finds memory which an earlier one left to the allocator.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Round {
    New,
    None,
    Memory,
}

impl Round {
    fn title(self) -> &'static str {
        match self {
            Self::New => "real, each with a network namespace (Network::New)",
            Self::None => "real, without a network (Network::None)",
            Self::Memory => "without a kernel (the memory backend)",
        }
    }
}

/// What one round is to do.
struct Plan {
    round: Round,
    count: u64,
    short: bool,
    /// How long it watches nothing happen.
    idle: Duration,
    /// How long memory is given to settle at most.
    settling: Duration,
    /// The most network namespaces kept ready. They go slowly, which the short form does not wait for.
    ready_networks: usize,
}

fn main() {
    let options = Options::parse();
    let count = options.sandboxes.unwrap_or(if options.test { 100 } else { 1_000 });
    assert!(count >= 2, "too few to say anything");
    if let Some(round) = options.round {
        let times = if round == Round::Memory { MEMORY_TIMES } else { 1 };
        return play(&Plan {
            round,
            count: count * times,
            short: options.test,
            idle: Duration::from_secs(if options.test { 1 } else { 5 }),
            settling: Duration::from_secs(if options.test { 4 } else { 25 }),
            ready_networks: if options.test { 4 } else { LinuxConfig::default().ready_networks },
        });
    }
    for round in [Round::New, Round::None, Round::Memory] {
        let mut command = Command::new(std::env::current_exe().expect("ourselves"));
        let name = round.to_possible_value().expect("none is hidden");
        command.args(["--round", name.get_name(), "--sandboxes", &count.to_string()]);
        command.args(options.test.then_some("--test"));
        let status = command.status().expect("another of ourselves");
        assert!(status.success(), "round {}: {status}", name.get_name());
    }
}

fn play(plan: &Plan) {
    println!("\n{} sandboxes, {}", plan.count, plan.round.title());
    let tokio = house::tokio_runtime();
    tokio.block_on(async {
        if plan.round == Round::Memory {
            return without_kernel(plan).await;
        }
        let config = LinuxConfig { ready_networks: plan.ready_networks, ..LinuxConfig::default() };
        let linux = LinuxRuntime::new(config).expect("root, and cgroup v2");
        real(plan, &linux).await;
        let root = linux.cgroup_root().to_owned();
        linux.close().await;
        assert!(!root.exists(), "its cgroups are left behind");
    });
}

/// Real sandboxes.
async fn real(plan: &Plan, linux: &Arc<LinuxRuntime>) {
    let network = if plan.round == Round::New { Network::New } else { Network::None };
    let spec = SandboxSpec { network, ..SandboxSpec::default() };
    let runtime = Arc::clone(linux) as Arc<dyn Runtime>;
    warm_up(&runtime, &spec).await;
    let before = Moment::at_rest(plan.settling).await;
    let keeper = keeper(&runtime, plan.count);
    let victims = start(&keeper, &spec, plan.count).await;
    let busy_heap = counting::live() / 1_024.0;
    let after = Moment::at_rest(plan.settling).await;
    assert_eq!(keeper.len() as u64, plan.count);
    let leaders: Vec<_> = victims.iter().map(|(_, pid)| (*pid, kernel::started_at(*pid))).collect();
    assert!(leaders.iter().all(|(_, started)| started.is_some()), "some have ended by themselves");

    supervisor(plan, &before, busy_heap, &after);
    of_kernel(plan, &before, &after);
    inits(&victims);
    let descriptors = after.descriptors - before.descriptors;
    println!(
        "  descriptors     {:>9.2}      each; {before} before",
        descriptors as f64 / plan.count as f64,
        before = before.descriptors
    );
    assert_eq!(descriptors as u64, plan.count, "one descriptor for each");
    println!("  threads         {:>9}      of this process, {} before", after.threads, before.threads);

    idle(plan.idle).await;
    let (singly, at_once) = victims.split_at(SINGLE_DEATHS.min(victims.len() / 2));
    deaths_seen("one at a time", deaths::one_at_a_time(&keeper, singly).await);
    deaths_seen("all at once", deaths::burst(&keeper, at_once.to_vec()).await);
    leave(&keeper, linux).await;
    let there = leaders.iter().filter(|(pid, started)| kernel::started_at(*pid) == *started).count();
    assert_eq!(there, 0, "processes are left behind");
    let left = Moment::at_rest(plan.settling).await;
    assert_eq!(left.descriptors, before.descriptors, "descriptors are left behind");
}

/// The same without a kernel, for what the keeper itself holds.
async fn without_kernel(plan: &Plan) {
    let runtime = MemoryRuntime::new() as Arc<dyn Runtime>;
    let spec = SandboxSpec::default();
    warm_up(&runtime, &spec).await;
    if !plan.short {
        event_log(&runtime, &spec).await;
    }
    let before = Moment::at_rest(plan.settling).await;
    let keeper = keeper(&runtime, plan.count);
    start(&keeper, &spec, plan.count).await;
    let busy_heap = counting::live() / 1_024.0;
    let after = Moment::at_rest(plan.settling).await;
    supervisor(plan, &before, busy_heap, &after);
    idle(plan.idle).await;
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty(), "all go");
    assert!(keeper.is_empty());
}

fn keeper(runtime: &Arc<dyn Runtime>, count: u64) -> Keeper {
    let builder = Keeper::builder().runtime("one", Arc::clone(runtime));
    let builder = builder.expected_sandboxes(count as usize).stopped_records(count as usize);
    builder.build().expect("a keeper")
}

async fn warm_up(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    let keeper = keeper(runtime, WARM_UP);
    let mut calls = JoinSet::new();
    for number in 0..WARM_UP {
        let (keeper, spec) = (keeper.clone(), spec.clone());
        calls.spawn(async move { keeper.run(&house::key(number), spec).await });
    }
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty());
}

/// Starts all, two callers a core; gives each with its leader.
async fn start(keeper: &Keeper, spec: &SandboxSpec, count: u64) -> Vec<Victim> {
    let callers = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (keeper, spec, next) = (keeper.clone(), spec.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut started: Vec<(SandboxKey, u32, Duration)> = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return started;
                }
                let (key, spec, asked) = (house::key(number), spec.clone(), Instant::now());
                let sandbox = keeper.run(&key, spec).await.unwrap_or_else(|error| panic!("{error}"));
                started.push((key, sandbox.started.pid, asked.elapsed()));
            }
        });
    }
    let started: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    assert_eq!(started.len() as u64, count);
    println!("  started         {rate:>9.0} /s   by {callers} callers");
    spread("    each", started.iter().map(|(_, _, took)| *took).collect());
    started.into_iter().map(|(key, pid, _)| (key, pid)).collect()
}

/// What the supervisor holds: as its pages, and as what it asked the allocator for.
fn supervisor(plan: &Plan, before: &Moment, busy_heap: f64, after: &Moment) {
    let each = |kib: f64| kib / plan.count as f64;
    println!("  own pages       {:>9.2} KiB  each, once at rest", each(after.own - before.own));
    println!("  own heap        {:>9.2} KiB  each, once at rest", each(after.heap - before.heap));
    println!("    just started  {:>9.2} KiB  each", each(busy_heap - before.heap));
}

/// What the log of events holds when it is full, which it is after some 10,000 lives, however few sandboxes there are.
async fn event_log(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    let keeper = keeper(runtime, 1);
    live_and_die(&keeper, spec).await;
    let before = counting::live();
    loop {
        let Some(WatchItem::Snapshot { next_sequence, .. }) = keeper.watch().next().await else {
            panic!("a watch begins with what there is")
        };
        if next_sequence >= KEPT_EVENTS as u64 {
            break;
        }
        for _ in 0..100 {
            live_and_die(&keeper, spec).await;
        }
    }
    // Until the registry has forgotten the last of them.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let full = (counting::live() - before) / 1_024.0;
    println!("  event log       {full:>9.0} KiB  in all, when it is full");
}

async fn live_and_die(keeper: &Keeper, spec: &SandboxSpec) {
    let key = house::key(0);
    keeper.run(&key, spec.clone()).await.expect("it starts");
    keeper.shutdown(&key, Some(Duration::ZERO)).await.expect("it goes");
}

/// What the machine has less of, without what is our own.
fn of_kernel(plan: &Plan, before: &Moment, after: &Moment) {
    let each = |kib: f64| kib / plan.count as f64;
    let own = after.own - before.own;
    println!("  kernel memory   {:>9.1} KiB  each", each(before.available - after.available - own));
    for (kind, (_, name)) in kernel::KINDS.iter().enumerate() {
        println!("    {name:<18}{:>5.1} KiB", each(after.kinds[kind] - before.kinds[kind]));
    }
}

fn inits(victims: &[Victim]) {
    let mut shares: Vec<f64> =
        victims.iter().take(20).map(|(_, pid)| kernel::proportional_set(*pid)).collect();
    shares.sort_unstable_by(f64::total_cmp);
    println!("  PSS of an init  {:>9.1} KiB  median of {}", shares[shares.len() / 2], shares.len());
}

/// What it costs that they are there.
async fn idle(span: Duration) {
    let (cpu, sleeps, begun) = (kernel::cpu_time(), kernel::sleeps(), Instant::now());
    tokio::time::sleep(span).await;
    let (cpu, lasted) = (kernel::cpu_time() - cpu, begun.elapsed());
    let woken: u64 = kernel::sleeps()
        .into_iter()
        .map(|(thread, count)| count - sleeps.get(&thread).copied().unwrap_or(0))
        .sum();
    println!(
        "  idle            {:>9.3} %    of a core, for {} s; voluntary context switches: {woken}",
        100.0 * cpu.as_secs_f64() / lasted.as_secs_f64(),
        lasted.as_secs()
    );
}

fn deaths_seen(how: &str, took: Vec<Duration>) {
    println!("  deaths seen     {:>9}      {how}", took.len());
    spread("    after", took);
}

fn spread(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |per_cent: usize| took[(took.len() - 1) * per_cent / 100].as_secs_f64() * 1e3;
    println!("{name:<18}{:>9.3} ms   p50; p99 {:.3} ms, longest {:.3} ms", at(50), at(99), at(100));
}

/// Shuts all down, and looks whether anything is left.
async fn leave(keeper: &Keeper, linux: &LinuxRuntime) {
    let begun = Instant::now();
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty(), "all go");
    println!("  shut down       {:>9.1} ms   all of them", begun.elapsed().as_secs_f64() * 1e3);
    assert!(keeper.is_empty());
    assert_eq!(linux.left_behind(), Vec::<String>::new());
    let usage = linux.usage();
    assert_eq!((usage.sandboxes, usage.id_blocks), (0, 0), "the backend remembers some");
}
