//! What does it cost to go on with the sandboxes of a keeper that is gone? See docs/benchmarks.md.

mod house;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sandkeeper::journal::Journal;
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::spec::Network;
use sandkeeper::{Keeper, SandboxSpec};
use tokio::task::JoinSet;

const SANDBOXES: u64 = 1_000;

/// The next keeper and backend on a state directory.
fn open(state_dir: &Path) -> (Keeper, Arc<LinuxRuntime>) {
    let journal = Journal::open(state_dir).expect("nobody else has it");
    let config = LinuxConfig { state_dir: Some(state_dir.to_owned()), ..LinuxConfig::default() };
    let linux = LinuxRuntime::new(config).expect("root, and cgroup v2");
    let builder = Keeper::builder().runtime("linux", Arc::clone(&linux) as _).journal(journal);
    (builder.build().expect("a keeper"), linux)
}

/// Lets go of everything; gives it back when the journal is free for the next.
async fn leave(keeper: Keeper, linux: Arc<LinuxRuntime>, state_dir: &Path) {
    keeper.leave().await;
    linux.leave().await;
    drop((keeper, linux));
    // Tasks that are on their way to their end hold on to it for a moment.
    while Journal::open(state_dir).is_err() {}
}

/// From the opening of the journal until nothing is recovering any more.
fn adopt(criterion: &mut Criterion) {
    let tokio = house::tokio_runtime();
    let dir = tempfile::Builder::new().prefix("sandkeeper-bench-").tempdir_in("/dev/shm").expect("tmpfs");
    let state_dir = dir.path().join("state");
    tokio.block_on(async {
        let (keeper, linux) = open(&state_dir);
        let mut calls = JoinSet::new();
        for number in 0..SANDBOXES {
            let keeper = keeper.clone();
            let spec = SandboxSpec { network: Network::None, ..SandboxSpec::default() };
            calls.spawn(async move { keeper.run(&house::key(number), spec).await.map(drop) });
        }
        assert!(calls.join_all().await.iter().all(Result::is_ok));
        leave(keeper, linux, &state_dir).await;
    });
    let mut group = criterion.benchmark_group("recover");
    group.sample_size(10).throughput(Throughput::Elements(SANDBOXES));
    group.bench_function(BenchmarkId::new("adopt_linux", SANDBOXES), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut took = Duration::ZERO;
            for _ in 0..iterations {
                took += tokio.block_on(async {
                    let begun = Instant::now();
                    let (keeper, linux) = open(&state_dir);
                    while keeper.recovering() > 0 {
                        tokio::task::yield_now().await;
                    }
                    let took = begun.elapsed();
                    assert_eq!(keeper.sweep().count(sandkeeper::model::Phase::Running), SANDBOXES);
                    leave(keeper, linux, &state_dir).await;
                    took
                });
            }
            took
        });
    });
    group.finish();
    tokio.block_on(async {
        let (keeper, linux) = open(&state_dir);
        assert_eq!(keeper.close(Some(Duration::ZERO)).await.len(), 0);
        linux.close().await;
        assert_eq!(linux.left_behind(), Vec::<String>::new());
    });
}

criterion_group!(benches, adopt);
criterion_main!(benches);
