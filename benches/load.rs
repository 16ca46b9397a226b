//! How does a keeper do under a mixed load, from every core? See docs/benchmarks.md.

mod house;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sandkeeper::{Controller, SandboxSpec};

/// 10,000 sandboxes; 95 % Ping, 4 % Status, 1 % run and Shutdown of another. Time for each call, over all threads.
fn mixed(criterion: &mut Criterion) {
    const COUNT: usize = 10_000;
    let mut group = criterion.benchmark_group("load");
    group.throughput(Throughput::Elements(1));
    let tokio = house::tokio_runtime();
    let keeper = house::running(&tokio, COUNT);
    let keys = std::sync::Arc::new(house::shuffled(COUNT));
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    group.bench_function(BenchmarkId::new("mixed", COUNT), |bencher| {
        bencher.iter_custom(|iterations| {
            let each = iterations.div_ceil(cores);
            tokio.block_on(async {
                let begun = Instant::now();
                let mut tasks = tokio::task::JoinSet::new();
                for core in 0..cores {
                    let (keeper, keys) = (keeper.clone(), keys.clone());
                    tasks.spawn(async move {
                        for call in 0..each {
                            let random = house::mix(core << 48 | call);
                            let key = &keys[(random >> 32) as usize % COUNT];
                            match random % 100 {
                                0 => {
                                    let key = house::key(1 << 40 | core << 32 | call & 0xff);
                                    keeper.run(&key, SandboxSpec::default()).await.expect("it starts");
                                    keeper.shutdown(&key, Some(Duration::ZERO)).await.expect("it goes");
                                }
                                1..=4 => drop(keeper.status(key).await.expect("it is there")),
                                _ => assert!(keeper.ping(key).is_ok()),
                            }
                            if call % 64 == 0 {
                                tokio::task::yield_now().await;
                            }
                        }
                    });
                }
                tasks.join_all().await;
                begun.elapsed()
            })
        });
    });
    assert_eq!(keeper.len(), COUNT, "what was started is gone again");
    group.finish();
}

criterion_group!(benches, mixed);
criterion_main!(benches);
