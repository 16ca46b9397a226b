//! Starts the sandboxes, some at a time.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;
use crate::agent::{Agent, Member};
use crate::figures::Sorted;

/// What starting came to.
pub(crate) struct Starts {
    /// From the first call to the last return.
    pub(crate) took: Duration,
    /// How long each call of `run` took.
    pub(crate) each: Sorted,
}

/// Defines and starts all of them, `concurrency` at a time.
pub(crate) async fn start_all(
    agent: &Agent,
    fleet: &[Member],
    concurrency: usize,
) -> Result<Starts, Failure> {
    let keeper = &agent.keeper;
    // Shows nothing where stderr is no terminal.
    let bar = ProgressBar::new(fleet.len() as u64).with_style(ProgressStyle::with_template(
        "starting [{bar:40}] {pos} of {len}, {per_sec}, {eta} left",
    )?);
    let run = |member: &Member| {
        let (key, spec) = (member.key, member.spec.clone());
        async move {
            let called = Instant::now();
            keeper.run(&key, spec).await.map(|_started| called.elapsed())
        }
    };
    let began = Instant::now();
    let mut starts = stream::iter(fleet).map(run).buffer_unordered(concurrency);
    let mut each = Vec::with_capacity(fleet.len());
    while let Some(took) = starts.next().await {
        each.push(took?);
        bar.inc(1);
    }
    let took = began.elapsed();
    bar.finish_and_clear();
    Ok(Starts { took, each: each.into() })
}
