//! What does it cost until a record is durable? In memory (`/dev/shm`), where running state belongs. See docs/benchmarks.md.

mod house;

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sandkeeper::SandboxKey;
use sandkeeper::journal::{Journal, testing};

/// As many as a node has.
const COUNT: usize = 10_000;

/// A spec of usual size.
const SPEC_BYTES: usize = 256;

fn filled(dir: &Path) -> (Journal, Vec<SandboxKey>) {
    let journal = Journal::open(dir).expect("a directory of our own");
    let keys = house::shuffled(COUNT);
    testing::define(&journal, &keys, SPEC_BYTES);
    (journal, keys)
}

/// One caller, and as many as arrive together: each waits until its record is durable. Among 10,000 other records.
fn append(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let (journal, keys) = filled(dir.path());
    let mut life = COUNT as u64;
    let mut group = criterion.benchmark_group("journal");
    for (name, together) in [("append_one", 1), ("append_grouped_64", 64), ("append_grouped_1000", 1_000)] {
        let mut next = keys.chunks_exact(together).cycle();
        group.throughput(Throughput::Elements(together as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                life += 1;
                testing::append(&journal, next.next().expect("endless"), life);
            });
        });
    }
    group.finish();
    drop(journal);
    let journal = Journal::open(dir.path()).expect("it is free again");
    assert_eq!(
        testing::held(&journal),
        (COUNT, life + 1),
        "every record is there, and the last life was noted"
    );
}

/// Opening, every page and every record checked: after an orderly end, and after a kill.
fn open(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let (journal, _) = filled(dir.path());
    let file = dir.path().join("journal.redb");
    let killed = std::fs::read(&file).expect("a file");
    drop(journal);
    let ended = std::fs::read(&file).expect("a file");
    let mut group = criterion.benchmark_group("journal");
    group.sample_size(20);
    for (name, image) in [("open", ended), ("open_after_kill", killed)] {
        group.bench_function(BenchmarkId::new(name, COUNT), |bencher| {
            bencher.iter_batched(
                || std::fs::write(&file, &image).expect("it can be written"),
                |()| {
                    let journal = Journal::open(dir.path()).expect("it opens");
                    assert_eq!(testing::held(&journal).0, COUNT);
                    journal
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, append, open);
criterion_main!(benches);
