//! Measures what it costs to ask whether a sandbox is there.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sandkeeper::model::Phase;
use sandkeeper::{Controller, SandboxHandle, SandboxKey};

use crate::Failure;
use crate::agent::{Agent, Member};
use crate::figures::Sorted;

/// Each measurement takes about this long.
const MEASURING: Duration = Duration::from_millis(200);

/// Nanoseconds for each question.
pub(crate) struct Pings {
    pub(crate) by_id: f64,
    pub(crate) by_handle: f64,
    /// For each sandbox that a sweep covers.
    pub(crate) sweep: f64,
}

/// Asks all of them, again and again. All must be running.
pub(crate) fn measure(agent: &Agent, fleet: &[Member]) -> Result<Pings, Failure> {
    let keeper = &agent.keeper;
    let keys: Vec<SandboxKey> = fleet.iter().map(|member| member.key).collect();
    let handles: Vec<SandboxHandle> = keys.iter().map(|key| keeper.handle(key)).collect::<Result<_, _>>()?;

    let sweep = keeper.sweep();
    let running = sweep.count(Phase::Running);
    if running != keys.len() as u64 {
        return Err(format!("{running} of {} are running: {:?}", keys.len(), sweep.marked).into());
    }
    let all = keys.len();
    Ok(Pings {
        by_id: nanoseconds_each(all, || keys.iter().all(|key| keeper.ping(black_box(key)).is_ok()))?,
        by_handle: nanoseconds_each(all, || handles.iter().all(|handle| black_box(handle).ping().is_ok()))?,
        sweep: nanoseconds_each(all, || keeper.sweep().total() == all as u64)?,
    })
}

/// The median of many rounds, each of which asks `count` times and says whether the answers were right.
fn nanoseconds_each(count: usize, mut round: impl FnMut() -> bool) -> Result<f64, Failure> {
    // Short rounds are timed in batches, so that reading the clock does not count.
    let batch = 10_000_usize.div_ceil(count);
    let mut rounds = Vec::new();
    let mut right = true;
    let began = Instant::now();
    while began.elapsed() < MEASURING {
        let start = Instant::now();
        for _ in 0..batch {
            right &= round();
        }
        rounds.push(start.elapsed());
    }
    if !right {
        return Err("a sandbox that runs did not answer a ping".into());
    }
    Ok(Sorted::from(rounds).percentile(50).as_secs_f64() * 1e9 / (batch * count) as f64)
}
