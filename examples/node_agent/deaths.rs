//! Kills sandboxes behind the keeper's back, and measures how soon it knows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandkeeper::model::Life;
use sandkeeper::{Controller, ErrorKind, Keeper, SandboxKey, Watch, WatchItem};

use crate::Failure;
use crate::agent::Agent;
use crate::figures::Sorted;

/// Between two kills: each death is to be heard of by itself, not in a storm.
const BETWEEN_KILLS: Duration = Duration::from_millis(5);

/// After so long, a death counts as unseen.
const PATIENCE: Duration = Duration::from_secs(10);

/// What killing came to.
#[derive(Default)]
pub(crate) struct Deaths {
    pub(crate) killed: usize,
    /// From just before the signal to the arrival of the event at a watcher, for each death that was seen.
    pub(crate) seen_after: Sorted,
    /// The others.
    pub(crate) unseen: Vec<String>,
}

/// Kills the leader of each, and listens for the events that say so.
pub(crate) async fn kill_and_hear(agent: &Agent, victims: &[SandboxKey]) -> Result<Deaths, Failure> {
    let hearing = tokio::spawn(hear(agent.keeper.watch(), victims.len()));
    let mut killed = Vec::new();
    for key in victims {
        killed.push((*key, kill_leader(&agent.keeper, key)?));
        tokio::time::sleep(BETWEEN_KILLS).await;
    }
    let heard = hearing.await?;
    let mut deaths = Deaths { killed: killed.len(), ..Deaths::default() };
    let mut seen_after = Vec::new();
    for (key, (life, at)) in killed {
        // Whoever has heard of it is not told otherwise by a ping.
        let answers = !agent.keeper.ping(&key).is_err_and(|e| e.kind() == ErrorKind::FailedPrecondition);
        match heard.get(&life) {
            Some(heard) if !answers => seen_after.push(heard.duration_since(at)),
            Some(_) => deaths.unseen.push(format!("{key} was killed, and still answers a ping")),
            None => deaths.unseen.push(format!("{key} was killed, and nobody told")),
        }
    }
    deaths.seen_after = seen_after.into();
    Ok(deaths)
}

/// Ends a leader as the kernel or an operator could. Which life that was, and when.
fn kill_leader(keeper: &Keeper, key: &SandboxKey) -> Result<(Life, Instant), Failure> {
    let status = keeper.inspect(key)?;
    let pid = Pid::from_raw(i32::try_from(status.pid)?).ok_or_else(|| format!("{key} has no leader"))?;
    let leader = pidfd_open(pid, PidfdFlags::empty())?;
    // The number may have become another process's before it was opened: its cgroup tells. What is read here is of the
    // process held, or else the signal below fails, since a number is not used again while its process is there.
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", status.pid))?;
    let name = key.file_name(255);
    if !groups.lines().any(|group| group.starts_with("0::") && group.ends_with(&name)) {
        return Err(format!("process {} is not the leader of {key}", status.pid).into());
    }
    let at = Instant::now();
    pidfd_send_signal(leader, Signal::KILL)?;
    Ok((Life(status.life), at))
}

/// When each life ended, as a watcher learns it: until so many have, or for as long as there is patience.
async fn hear(mut watch: Watch, deaths: usize) -> HashMap<Life, Instant> {
    let mut heard = HashMap::new();
    while heard.len() < deaths {
        match tokio::time::timeout(PATIENCE, watch.next()).await {
            Ok(Some(WatchItem::Event(event))) if event.exit.is_some() => {
                heard.entry(event.life).or_insert_with(Instant::now);
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    heard
}
