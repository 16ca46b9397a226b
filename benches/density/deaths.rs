//! Kills leaders from outside, and takes the time until a watcher of the keeper's events hears of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandkeeper::{Keeper, SandboxKey, Watch, WatchItem};

/// After so long without a word, a death counts as unseen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sandbox, and its leader.
pub(crate) type Victim = (SandboxKey, u32);

/// Kills one after another, each when the one before was heard of.
pub(crate) async fn one_at_a_time(keeper: &Keeper, victims: &[Victim]) -> Vec<Duration> {
    let mut watch = watch(keeper).await;
    let mut took = Vec::new();
    for victim in victims {
        let killed = kill(victim);
        let (key, heard) = next_end(&mut watch).await.unwrap_or_else(|| panic!("{} died unseen", victim.0));
        assert_eq!(key, victim.0, "another one's end");
        took.push(heard - killed);
    }
    took
}

/// Kills all, as fast as it goes.
pub(crate) async fn burst(keeper: &Keeper, victims: Vec<Victim>) -> Vec<Duration> {
    let mut watch = watch(keeper).await;
    let count = victims.len();
    let hearing = tokio::spawn(async move {
        let mut heard = HashMap::new();
        while heard.len() < count {
            let Some((key, at)) = next_end(&mut watch).await else { break };
            assert!(heard.insert(key, at).is_none(), "{key} died twice");
        }
        heard
    });
    let killing = tokio::task::spawn_blocking(move || {
        victims.iter().map(|victim| (victim.0, kill(victim))).collect::<Vec<_>>()
    });
    let killed = killing.await.expect("all killed");
    let heard = hearing.await.expect("no death twice");
    let took = |(key, at): (SandboxKey, Instant)| {
        *heard.get(&key).unwrap_or_else(|| panic!("{key} died unseen")) - at
    };
    killed.into_iter().map(took).collect()
}

async fn watch(keeper: &Keeper) -> Watch {
    let mut watch = keeper.watch();
    let first = watch.next().await;
    assert!(matches!(first, Some(WatchItem::Snapshot { .. })), "a watch begins with what there is");
    watch
}

/// The next life that ended, and when we heard; nothing if nobody tells in time.
async fn next_end(watch: &mut Watch) -> Option<(SandboxKey, Instant)> {
    loop {
        match tokio::time::timeout(PATIENCE, watch.next()).await.ok()?? {
            WatchItem::Event(event) if event.exit.is_some() => return Some((event.key, Instant::now())),
            WatchItem::Event(_) => {}
            WatchItem::Snapshot { .. } => panic!("the watch missed events"),
        }
    }
}

/// Sends the signal; says just before when. The leader was alive a moment ago and nobody else ends it, so that its number
/// is its own.
fn kill((key, pid): &Victim) -> Instant {
    let pid = Pid::from_raw(*pid as i32).unwrap_or_else(|| panic!("{key} has no leader"));
    let leader = pidfd_open(pid, PidfdFlags::empty()).unwrap_or_else(|error| panic!("{key}: {error}"));
    let at = Instant::now();
    pidfd_send_signal(leader, Signal::KILL).unwrap_or_else(|error| panic!("{key}: {error}"));
    at
}
