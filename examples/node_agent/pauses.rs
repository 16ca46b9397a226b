//! Pauses sandboxes, and proves by what they write that they stood still.

use std::time::{Duration, Instant};

use sandkeeper::Controller;
use sandkeeper::model::Phase;

use crate::Failure;
use crate::agent::{Agent, Counter};
use crate::figures::Sorted;

/// How long a counter must stand still: six times what it takes to count by one.
const STILL: Duration = Duration::from_millis(300);

/// How long a counter that runs may take to count on, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What pausing came to.
#[derive(Default)]
pub(crate) struct Pauses {
    /// How long each call took.
    pub(crate) pause: Sorted,
    pub(crate) resume: Sorted,
    /// What was wrong with those that did not stand still, or moved neither before nor after.
    pub(crate) wrong: Vec<String>,
}

/// Pauses and resumes each of them. They must count before, stand still while paused, and count on afterwards.
pub(crate) async fn prove(agent: &Agent, counters: &[Counter]) -> Result<Pauses, Failure> {
    let mut wrong = Vec::new();
    let begun = vec![0; counters.len()];
    wrong.extend(who_does_not_count(counters, &begun, "before the pause").await?);

    let mut pause = Vec::new();
    for counter in counters {
        let called = Instant::now();
        agent.keeper.pause(&counter.key).await?;
        pause.push(called.elapsed());
    }
    let paused = sizes(counters)?;
    tokio::time::sleep(STILL).await;
    let still = sizes(counters)?;
    for (at, counter) in counters.iter().enumerate() {
        if paused[at] != still[at] {
            wrong.push(format!("{} counted from {} to {} while paused", counter.key, paused[at], still[at]));
        }
        // Frozen is not dead: a ping says so.
        let pong = agent.keeper.ping(&counter.key)?;
        if pong.phase() != Phase::Paused {
            wrong.push(format!("{} is {} instead of paused", counter.key, pong.phase()));
        }
    }

    let mut resume = Vec::new();
    for counter in counters {
        let called = Instant::now();
        agent.keeper.resume(&counter.key).await?;
        resume.push(called.elapsed());
    }
    wrong.extend(who_does_not_count(counters, &still, "after the pause").await?);
    Ok(Pauses { pause: pause.into(), resume: resume.into(), wrong })
}

/// How much each has written.
fn sizes(counters: &[Counter]) -> std::io::Result<Vec<u64>> {
    counters.iter().map(|counter| Ok(std::fs::metadata(&counter.file)?.len())).collect()
}

/// Waits until each has written more than it had; names those that do not.
async fn who_does_not_count(counters: &[Counter], had: &[u64], when: &str) -> std::io::Result<Vec<String>> {
    let began = Instant::now();
    loop {
        let now = sizes(counters)?;
        let idle: Vec<String> = (counters.iter().enumerate())
            .filter(|(at, _)| now[*at] <= had[*at])
            .map(|(_, counter)| format!("{} did not count {when}", counter.key))
            .collect();
        if idle.is_empty() || began.elapsed() > PATIENCE {
            return Ok(idle);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
