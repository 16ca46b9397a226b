//! What does it cost to ask the daemon? See docs/benchmarks.md.

mod house;

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sandkeeper::surface::grpc::{About, Client, Settings, Socket, serve};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A ping over the socket, with the daemon in the same process: one at a time, and 64 in flight.
fn ping(criterion: &mut Criterion) {
    const IN_FLIGHT: u64 = 64;
    let tokio = house::tokio_runtime();
    let keeper = house::running(&tokio, 1_000);
    let keys = Arc::new(house::shuffled(1_000));
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("keeper.sock");
    let (end, ended) = oneshot::channel::<()>();
    let (served, client) = tokio.block_on(async {
        let socket = Socket::bind(&path, None).await.expect("a socket");
        let serving = serve(socket, keeper.clone(), About::default(), Settings::default(), async {
            let _told_or_dropped = ended.await;
        });
        let served = tokio::spawn(serving);
        (served, Client::connect(&path).await.expect("it is served"))
    });
    let mut group = criterion.benchmark_group("ping/grpc");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one", |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            at += 1;
            let mut client = client.clone();
            let pong = tokio.block_on(client.ping(&keys[at % keys.len()])).expect("it runs");
            assert_eq!(pong.phase, "running");
        });
    });
    group.throughput(Throughput::Elements(IN_FLIGHT));
    group.bench_function("64_in_flight", |bencher| {
        bencher.iter_custom(|iterations| {
            let (client, keys) = (client.clone(), Arc::clone(&keys));
            tokio.block_on(async move {
                let begun = std::time::Instant::now();
                let mut callers = JoinSet::new();
                for caller in 0..IN_FLIGHT {
                    let (mut client, keys) = (client.clone(), Arc::clone(&keys));
                    callers.spawn(async move {
                        for call in 0..iterations {
                            let key = &keys[(caller * 31 + call) as usize % keys.len()];
                            assert_eq!(client.ping(key).await.expect("it runs").phase, "running");
                        }
                    });
                }
                callers.join_all().await;
                begun.elapsed()
            })
        });
    });
    group.finish();
    drop(end);
    tokio.block_on(served).expect("no panic");
}

criterion_group!(benches, ping);
criterion_main!(benches);
