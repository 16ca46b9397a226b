//! Does a ping take longer while sandboxes come and go? Prints percentiles of batches of 64 pings, idle and churning.
//!
//! `cargo bench --bench churn`; with `-- --test` in a form that takes a second. See docs/benchmarks.md.

mod house;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandkeeper::{Controller, Keeper, SandboxKey, SandboxSpec};

const BATCH: usize = 64;

/// Nanoseconds for each batch, in ascending order.
fn batches(keeper: &Keeper, keys: &[SandboxKey], count: usize) -> Vec<u64> {
    let mut keys = keys.iter().cycle();
    let mut took: Vec<u64> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            for key in keys.by_ref().take(BATCH) {
                assert!(black_box(keeper.ping(key)).is_ok());
            }
            begun.elapsed().as_nanos() as u64
        })
        .collect();
    took.sort_unstable();
    took
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn print(name: &str, took: &[u64]) -> u64 {
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1_000] / BATCH as u64;
    println!(
        "{name:<10} p50 {:>6} ns   p90 {:>6} ns   p99 {:>6} ns   p99.9 {:>6} ns   max {:>8} ns   per ping",
        at(500),
        at(900),
        at(990),
        at(999),
        at(1_000)
    );
    at(990)
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() {
    let short = std::env::args().any(|argument| argument == "--test");
    let (sandboxes, count) = if short { (1_000, 2_000) } else { (10_000, 200_000) };
    let tokio = house::tokio_runtime();
    let keeper = house::running(&tokio, sandboxes);
    let keys = house::shuffled(sandboxes);
    batches(&keeper, &keys, count / 10);
    let idle = print("idle", &batches(&keeper, &keys, count));

    // One churning task a core, on the runtime's own workers; the pinging thread competes with them for the cores.
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    for core in 0..cores {
        let (keeper, stop, rounds) = (keeper.clone(), Arc::clone(&stop), Arc::clone(&rounds));
        tokio.spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let key = house::key(1 << 40 | core << 32 | number & 0xff);
                keeper.run(&key, SandboxSpec::default()).await.expect("it starts");
                keeper.shutdown(&key, Some(Duration::ZERO)).await.expect("it goes");
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let begun = Instant::now();
    let churning = print("churning", &batches(&keeper, &keys, count));
    let rounds = rounds.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    assert!(rounds > 0, "nothing churned");
    println!(
        "{rounds} starts and shutdowns meanwhile ({:.0}/s); p99 churning / idle = {:.2}",
        rounds as f64 / begun.elapsed().as_secs_f64(),
        churning as f64 / idle.max(1) as f64
    );
}
