//! What does it cost to ask whether a sandbox is there? See docs/benchmarks.md.

mod house;

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashMap;
use sandkeeper::model::Phase;
use sandkeeper::{Controller, ErrorKind, SandboxKey};

/// By ID, beside the floor: the same keys in the same order in a single-threaded map with the word inline.
fn by_id(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ping");
    group.throughput(Throughput::Elements(1));
    let tokio = house::tokio_runtime();
    for count in [1_000, 10_000, 100_000] {
        let keeper = house::running(&tokio, count);
        let keys = house::shuffled(count);
        group.bench_function(BenchmarkId::new("by_id", count), |bencher| {
            let mut keys = keys.iter().cycle();
            bencher.iter(|| keeper.ping(keys.next().expect("endless")).is_ok() || panic!("it runs"));
        });
        let hasher = foldhash::fast::RandomState::default();
        let mut map: HashMap<SandboxKey, AtomicU64, _> = HashMap::with_capacity_and_hasher(count, hasher);
        for key in &keys {
            map.insert(*key, AtomicU64::new(Phase::Running as u64));
        }
        group.bench_function(BenchmarkId::new("floor", count), |bencher| {
            let mut keys = keys.iter().cycle();
            bencher.iter(|| {
                let word = map.get(keys.next().expect("endless")).map(|word| word.load(Ordering::Acquire));
                word == Some(Phase::Running as u64) || panic!("it runs")
            });
        });
        if count == 10_000 {
            let unknown: Vec<SandboxKey> = (0..10_000).map(|number| house::key(1 << 40 | number)).collect();
            group.bench_function("unknown_id", |bencher| {
                let mut keys = unknown.iter().cycle();
                bencher.iter(|| {
                    let error = keeper.ping(keys.next().expect("endless")).expect_err("nobody has this name");
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                });
            });
        }
    }
    group.finish();
}

/// By handle, beside bare atomic loads, both over the same 1,024 shuffled sandboxes.
fn by_handle(criterion: &mut Criterion) {
    const COUNT: usize = 1_024;
    let mut group = criterion.benchmark_group("ping");
    let tokio = house::tokio_runtime();
    let keeper = house::running(&tokio, COUNT);
    let handles: Vec<_> =
        house::shuffled(COUNT).iter().map(|key| keeper.handle(key).expect("it is there")).collect();
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("handle", |bencher| {
        bencher.iter(|| {
            let alive = handles.iter().filter(|handle| handle.ping().is_ok()).count();
            assert_eq!(black_box(alive), COUNT);
        });
    });
    // The same words in the same order: a slot's place is the order in which its sandbox was made.
    let words: Vec<AtomicU64> = (0..COUNT).map(|_| AtomicU64::new(Phase::Running as u64)).collect();
    let mut order: Vec<usize> = (0..COUNT).collect();
    for at in (1..COUNT).rev() {
        order.swap(at, house::mix(at as u64) as usize % (at + 1));
    }
    let shuffled: Vec<&AtomicU64> = order.iter().map(|at| &words[*at]).collect();
    group.bench_function("atomic_load", |bencher| {
        bencher.iter(|| {
            let running = |word: &&&AtomicU64| word.load(Ordering::Acquire) == Phase::Running as u64;
            assert_eq!(black_box(shuffled.iter().filter(running).count()), COUNT);
        });
    });

    // Does a sandbox that everybody asks about slow them down? Time for each ping, over all threads.
    group.throughput(Throughput::Elements(1));
    for (name, threads) in [("one_thread_one_handle", 1), ("two_threads_one_handle", 2)] {
        let handle = &handles[0];
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let each = iterations.div_ceil(threads);
                let barrier = Barrier::new(threads as usize + 1);
                std::thread::scope(|scope| {
                    let asking: Vec<_> = (0..threads)
                        .map(|_| {
                            let handle = handle.clone();
                            let barrier = &barrier;
                            scope.spawn(move || {
                                barrier.wait();
                                (0..each).filter(|_| black_box(&handle).ping().is_ok()).count() as u64
                            })
                        })
                        .collect();
                    barrier.wait();
                    let begun = Instant::now();
                    let answered: u64 =
                        asking.into_iter().map(|thread| thread.join().expect("no panic")).sum();
                    assert_eq!(answered, each * threads);
                    begun.elapsed()
                })
            });
        });
    }

    // The same question asked of the sandbox's actor, by way of the registry: Start of what runs.
    let key = house::key(7);
    group.bench_function("mailbox", |bencher| {
        bencher.iter(|| tokio.block_on(keeper.start(&key)).expect("it runs").started.pid);
    });
    group.finish();
}

/// A look over a million sandboxes.
fn sweep(criterion: &mut Criterion) {
    const COUNT: usize = 1_000_000;
    let mut group = criterion.benchmark_group("ping/sweep");
    let tokio = house::tokio_runtime();
    let keeper = house::defined(&tokio, COUNT);
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function(COUNT.to_string(), |bencher| {
        bencher.iter(|| {
            let sweep = keeper.sweep();
            assert_eq!(sweep.count(Phase::Defined), COUNT as u64);
            assert!(sweep.marked.is_empty());
        });
    });
    group.finish();
}

criterion_group!(benches, by_id, by_handle, sweep);
criterion_main!(benches);
