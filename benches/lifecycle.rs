//! What does it cost to start a sandbox, and to end it? See docs/benchmarks.md.

mod house;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sandkeeper::journal::Journal;
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::{Controller, Keeper, SandboxSpec};
use tokio::runtime::Runtime;

/// Our own cost: the backend does nothing. Without a journal, and with one on tmpfs.
fn memory(criterion: &mut Criterion) {
    on_memory(criterion, "memory", None);
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    on_memory(criterion, "memory_journal", Some(Journal::open(dir.path()).expect("a journal")));
}

fn on_memory(criterion: &mut Criterion, name: &str, journal: Option<Journal>) {
    let mut group = criterion.benchmark_group("lifecycle");
    let tokio = house::tokio_runtime();
    let keeper = tokio.block_on(async {
        let builder = Keeper::builder().runtime("memory", MemoryRuntime::new() as Arc<_>);
        let builder = builder.concurrent_starts(1_000);
        match journal {
            Some(journal) => builder.journal(journal),
            None => builder,
        }
        .build()
        .expect("a keeper")
    });
    group.bench_function(format!("start_shutdown_{name}"), |bencher| {
        bencher.iter_custom(|iterations| one_after_another(&tokio, &keeper, iterations, true));
    });
    group.bench_function(format!("start_{name}"), |bencher| {
        bencher.iter_custom(|iterations| one_after_another(&tokio, &keeper, iterations, false));
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function(BenchmarkId::new(format!("start_storm_{name}"), 1_000), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut took = Duration::ZERO;
            for _ in 0..iterations {
                took += storm(&tokio, &keeper, 1_000);
                assert!(tokio.block_on(keeper.shutdown_all(Some(Duration::ZERO))).is_empty());
            }
            took
        });
    });
    assert!(keeper.is_empty(), "what was started is gone again");
    group.finish();
}

/// Starts and shuts down, one at a time; the shutdown counts if `whole`.
fn one_after_another(tokio: &Runtime, keeper: &Keeper, iterations: u64, whole: bool) -> Duration {
    // In a task, where an embedder's calls come from.
    let keeper = keeper.clone();
    let calls = async move {
        let mut took = Duration::ZERO;
        for number in 0..iterations {
            let key = house::key(number);
            let begun = Instant::now();
            let sandbox = keeper.run(&key, SandboxSpec::default()).await.expect("it starts");
            let started = begun.elapsed();
            assert!(sandbox.started.pid > 1);
            keeper.shutdown(&key, Some(Duration::ZERO)).await.expect("it goes");
            took += if whole { begun.elapsed() } else { started };
        }
        took
    };
    tokio.block_on(tokio.spawn(calls)).expect("no panic")
}

/// Starts many at once; gives how long it took until all ran.
fn storm(tokio: &Runtime, keeper: &Keeper, count: u64) -> Duration {
    tokio.block_on(async {
        let begun = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..count {
            let keeper = keeper.clone();
            calls.spawn(async move { keeper.run(&house::key(number), SandboxSpec::default()).await });
        }
        let started = calls.join_all().await;
        let took = begun.elapsed();
        assert!(started.iter().all(Result::is_ok));
        took
    })
}

#[cfg(feature = "linux")]
mod linux {
    use super::*;
    use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};

    /// How much of a host's memory is touched where that is the question.
    const BIG_HOST_BYTES: usize = 2 << 30;

    fn keeper(tokio: &Runtime) -> (Keeper, Arc<LinuxRuntime>) {
        tokio.block_on(async {
            let runtime = LinuxRuntime::new(LinuxConfig::default()).expect("root, and cgroup v2");
            let keeper =
                Keeper::builder().runtime("linux", Arc::clone(&runtime) as _).build().expect("a keeper");
            (keeper, runtime)
        })
    }

    /// Real sandboxes, fully isolated, from a small host and from one with 2 GiB of touched memory; and the floor.
    pub(crate) fn real(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("lifecycle");
        let tokio = house::tokio_runtime();
        let (keeper, runtime) = keeper(&tokio);
        group.bench_function("floor_linux", |bencher| {
            let mut floor = crate::floor::Floor::new(runtime.cgroup_root());
            bencher.iter_custom(|iterations| floor.starts(iterations));
        });
        group.bench_function("start_linux", |bencher| {
            bencher.iter_custom(|iterations| one_after_another(&tokio, &keeper, iterations, false));
        });
        group.bench_function("start_shutdown_linux", |bencher| {
            bencher.iter_custom(|iterations| one_after_another(&tokio, &keeper, iterations, true));
        });
        let touched = vec![1_u8; BIG_HOST_BYTES];
        group.bench_function("start_linux_big_host", |bencher| {
            bencher.iter_custom(|iterations| one_after_another(&tokio, &keeper, iterations, false));
        });
        assert_eq!(std::hint::black_box(&touched).len(), BIG_HOST_BYTES);
        drop(touched);
        group.sample_size(10);
        group.throughput(Throughput::Elements(1_000));
        group.bench_function(BenchmarkId::new("start_storm_linux", 1_000), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    took += storm(&tokio, &keeper, 1_000);
                    assert!(tokio.block_on(keeper.shutdown_all(Some(Duration::ZERO))).is_empty());
                }
                took
            });
        });
        assert_eq!(runtime.left_behind(), Vec::<String>::new());
        group.finish();
    }
}

#[cfg(feature = "linux")]
mod floor;

#[cfg(feature = "linux")]
criterion_group!(benches, memory, linux::real);
#[cfg(not(feature = "linux"))]
criterion_group!(benches, memory);
criterion_main!(benches);
