//! A start during which the daemon is killed has either happened or left nothing.

#[path = "torture/daemon.rs"]
#[allow(dead_code)]
mod daemon;
#[path = "torture/dice.rs"]
#[allow(dead_code)]
mod dice;
#[path = "torture/world.rs"]
#[allow(dead_code)]
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::SandboxStatus;
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::{SandboxKey, SandboxSpec};

use daemon::{Daemon, Ended, Place};
use dice::Dice;
use world::{Sight, World};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// The size of a test: scaled down, or full on request.
fn size(scaled: usize, full: usize) -> usize {
    if std::env::var_os("SANDKEEPER_FULL").is_some_and(|value| value == "1") { full } else { scaled }
}

/// What the daemon lists, once nothing is under way.
async fn at_rest(client: &mut Client) -> Vec<SandboxStatus> {
    let begun = Instant::now();
    loop {
        let all = client.list(ListRequest::default()).await.unwrap();
        let is_under_way = |status: &SandboxStatus| {
            !["defined", "running", "stopped"].contains(&status.phase.as_str())
                || status.marks.iter().any(|mark| mark == "recovering")
        };
        if !all.iter().any(is_under_way) {
            return all;
        }
        assert!(begun.elapsed() < LONG, "it does not come to rest: {all:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Looks until there is nothing but what is listed.
async fn agrees(sight: &Sight, listed: &[SandboxStatus], mounts: &BTreeSet<String>, round: &str) -> World {
    let name =
        |status: &SandboxStatus| SandboxKey::new(&status.namespace, &status.id).unwrap().file_name(255);
    let names: BTreeSet<String> = listed.iter().map(name).collect();
    let begun = Instant::now();
    loop {
        let world = sight.look(sight.root().as_deref());
        let groups: BTreeSet<String> = world.groups.keys().chain(world.inside.keys()).cloned().collect();
        let others = (&world.astray, &world.dead_doors, world.mounts.difference(mounts).collect::<Vec<_>>());
        if groups == names && others.0.is_empty() && others.1.is_empty() && others.2.is_empty() {
            return world;
        }
        assert!(
            begun.elapsed() < LONG,
            "{round}: listed are {names:?}; there are {groups:?}, and {others:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn leaders(world: &World, key: &SandboxKey) -> Vec<u32> {
    let inside = world.inside.get(&key.file_name(255)).map(Vec::as_slice).unwrap_or_default();
    inside.iter().filter(|process| process.is_leader && !process.zombie).map(|process| process.pid).collect()
}

async fn start(place: &Place) -> (Daemon, Client) {
    let mut daemon = place.start(None, &[]).unwrap();
    let client = daemon.client(place).await.unwrap();
    (daemon, client)
}

/// Field case C04. Goal: whatever moment of a start the daemon is killed at, the sandbox runs, with one leader, or there is
/// nothing of it. Method: fresh names, and a moment up to twice as late as a start takes.
#[tokio::test]
async fn a_start_that_is_cut_short_has_happened_or_left_nothing() {
    // What a failing run was told can be told again.
    let seed = std::env::var("SANDKEEPER_SEED").ok().map_or(4, |seed| seed.parse().expect("a number"));
    let mut dice = Dice::new(seed);
    let memory = PathBuf::from("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let place = Place::new(env!("CARGO_BIN_EXE_sandkeeper").into(), dir.path());
    let sight =
        Sight { state: place.state.clone(), dir: dir.path().to_owned(), token: "no heart".to_owned() };
    let mounts = sight.look(None).mounts;
    let spec = SandboxSpec::default();
    let (mut daemon, mut client) = start(&place).await;
    let mut takes = Duration::ZERO;
    for number in 0..5 {
        let key = SandboxKey::new("crash", &format!("measured-{number}")).unwrap();
        let begun = Instant::now();
        client.start(&key, Some(&spec)).await.unwrap();
        takes = begun.elapsed();
        client.shutdown(&key, Some(Duration::ZERO)).await.unwrap();
    }
    let (mut adopted, mut answered, mut undone) = (0, 0, 0);
    for round in 0..size(12, 100) {
        let key = SandboxKey::new("crash", &format!("round-{round}")).unwrap();
        let moment = dice.time(2 * takes);
        let told = format!("round {round} of seed {seed}, killed after {moment:?}");
        let killed = async {
            tokio::time::sleep(moment).await;
            daemon.kill();
        };
        let (answer, ()) = tokio::join!(client.start(&key, Some(&spec)), killed);
        (daemon, client) = start(&place).await;
        let listed = at_rest(&mut client).await;
        let world = agrees(&sight, &listed, &mounts, &told).await;
        let found = listed.iter().find(|status| status.id == key.id().as_str());
        let pid = match found {
            Some(status) => {
                adopted += 1;
                assert_eq!(status.phase, "running", "{told}");
                assert_eq!(leaders(&world, &key), [status.pid], "{told}");
                client.ping(&key).await.expect("it is alive");
                Some(status.pid)
            }
            None => {
                undone += 1;
                assert!(answer.is_err(), "{told}: it was acknowledged, and is lost");
                None
            }
        };
        if let (Ok(answer), Some(pid)) = (answer, pid) {
            answered += 1;
            assert_eq!(answer.pid, pid, "{told}");
        }
        let again = client.start(&key, Some(&spec)).await.unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(pid.is_none_or(|pid| pid == again.pid), "{told}: one that runs is not started again");
        let listed = at_rest(&mut client).await;
        let world = agrees(&sight, &listed, &mounts, &told).await;
        assert_eq!(leaders(&world, &key), [again.pid], "{told}");
        client.shutdown(&key, Some(Duration::ZERO)).await.unwrap();
        agrees(&sight, &[], &mounts, &told).await;
    }
    println!("{adopted} adopted ({answered} of them answered), {undone} undone; a start takes {takes:?}");
    let root = sight.root().expect("it was made");
    daemon.terminate();
    assert_eq!(daemon.ends_within(LONG).await, Some(Ended::InOrder));
    let mut last = place.start(None, &["--shutdown-sandboxes"]).unwrap();
    last.client(&place).await.unwrap();
    last.terminate();
    assert_eq!(last.ends_within(LONG).await, Some(Ended::InOrder));
    assert!(!root.exists(), "{} is left", root.display());
}
