//! Keepers full of sandboxes, for the benches.
#![allow(dead_code)]

use std::sync::Arc;

use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::{Controller, Keeper, SandboxKey, SandboxSpec};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// A number from a number, well mixed (splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The key of a number: an ID of 64 hex digits, as container engines make them.
pub(crate) fn key(number: u64) -> SandboxKey {
    let id: String = (0..4).map(|part| format!("{:016x}", mix(number * 4 + part))).collect();
    SandboxKey::new("default", &id).expect("a valid name")
}

/// These keys in random order.
pub(crate) fn shuffled(count: usize) -> Vec<SandboxKey> {
    let mut keys: Vec<_> = (0..count as u64).map(key).collect();
    for at in (1..keys.len()).rev() {
        keys.swap(at, mix(at as u64) as usize % (at + 1));
    }
    keys
}

/// A tokio runtime with a worker a core.
pub(crate) fn tokio_runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// A keeper on the memory backend, with this many running.
pub(crate) fn running(tokio: &Runtime, count: usize) -> Keeper {
    filled(tokio, count, true)
}

/// A keeper on the memory backend, with this many defined and none started.
pub(crate) fn defined(tokio: &Runtime, count: usize) -> Keeper {
    filled(tokio, count, false)
}

fn filled(tokio: &Runtime, count: usize, start: bool) -> Keeper {
    tokio.block_on(async {
        let keeper = Keeper::builder()
            .runtime("memory", MemoryRuntime::new() as Arc<_>)
            .expected_sandboxes(count)
            .concurrent_starts(256)
            .build()
            .expect("a keeper");
        let mut tasks = JoinSet::new();
        for first in (0..count as u64).step_by(1_000) {
            let keeper = keeper.clone();
            tasks.spawn(async move {
                for number in first..(first + 1_000).min(count as u64) {
                    keeper.define(&key(number), SandboxSpec::default()).await.expect("defined");
                    if start {
                        keeper.start(&key(number)).await.expect("started");
                    }
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(keeper.len(), count);
        keeper
    })
}
