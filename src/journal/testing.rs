//! Drives a journal alone, for benches.

use std::sync::{Arc, mpsc};

use super::{Change, Journal, SandboxRecord};
use crate::id::SandboxKey;
use crate::model::{Life, Phase, Record};

/// Defines these sandboxes, with a spec of so many bytes, and returns when all are durable.
///
/// # Panics
/// If one cannot be written.
pub fn define(journal: &Journal, keys: &[SandboxKey], spec_bytes: usize) {
    let spec: Arc<[u8]> = vec![7; spec_bytes].into();
    all(journal, keys, |number| Change::Define(Arc::clone(&spec), running(number)));
}

/// Writes a change of state of each of these sandboxes, and returns when all are durable.
///
/// # Panics
/// If one cannot be written.
pub fn append(journal: &Journal, keys: &[SandboxKey], life: u64) {
    all(journal, keys, |_| Change::State(running(life)));
}

/// How many sandboxes it held when it was opened, and the next life; once.
pub fn held(journal: &Journal) -> (usize, u64) {
    let recovered = journal.take_recovered().expect("nobody has asked before");
    (recovered.sandboxes.len(), recovered.next_life)
}

fn all(journal: &Journal, keys: &[SandboxKey], change: impl Fn(u64) -> Change) {
    let (done, outcomes) = mpsc::channel();
    for (number, key) in (1..).zip(keys) {
        let done = done.clone();
        let then = move |result| drop(done.send(result));
        journal.write(*key, change(number), Some(Box::new(then)));
    }
    drop(done);
    let written = outcomes.iter().map(|result| result.expect("it can be written")).count();
    assert_eq!(written, keys.len());
}

fn running(life: u64) -> SandboxRecord {
    let (ran, kept, shutdown) = (true, true, false);
    let record =
        Record { phase: Phase::Running, life: Life(life), ran, kept, shutdown, exit: None, until: None };
    SandboxRecord { record, created_at_unix_nanos: 1 << 60, started_at_unix_nanos: 1 << 60 }
}
