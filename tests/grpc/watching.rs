//! Watches: order, resumption, and slow readers.

use std::collections::BTreeMap;

use sandkeeper::spec::SandboxSpec;
use sandkeeper::surface::grpc::Watching;
use sandkeeper::wire::generated::watch_response::Item;
use sandkeeper::wire::generated::{Event, Snapshot, WatchResponse};
use sandkeeper::{Controller, KEPT_EVENTS};
use tokio::task::JoinSet;

use crate::house::{House, key, on_one_core_and_on_two};

async fn next(watch: &mut Watching<WatchResponse>) -> Item {
    watch.next().await.expect("it goes on").expect("it does not end").item.expect("it says something")
}

async fn event(watch: &mut Watching<WatchResponse>) -> Event {
    match next(watch).await {
        Item::Event(event) => event,
        Item::Snapshot(snapshot) => panic!("a snapshot from {}", snapshot.next_sequence),
    }
}

async fn snapshot(watch: &mut Watching<WatchResponse>) -> Snapshot {
    match next(watch).await {
        Item::Snapshot(snapshot) => snapshot,
        Item::Event(event) => panic!("{event:?}"),
    }
}

/// Goal: once each, in order, the start before the exit, numbered without a gap.
#[test]
fn every_change_is_told_once_and_in_order() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        house.keeper.define(&key("there"), SandboxSpec::default()).await.unwrap();
        let mut watch = client.watch(0, 0).await.unwrap();
        let begun = snapshot(&mut watch).await;
        assert!(begun.last && begun.epoch == house.keeper.epoch());
        assert_eq!(begun.sandboxes[0].id, "there");
        let mut starts = JoinSet::new();
        for number in 0..20 {
            let mut client = client.clone();
            starts.spawn(async move {
                let key = key(&format!("s{number}"));
                client.start(&key, Some(&SandboxSpec::default())).await.unwrap();
                client.stop(&key, None).await.unwrap();
                client.shutdown(&key, None).await.unwrap();
            });
        }
        starts.join_all().await;
        let mut phases: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (mut gone, mut sequence) = (0, begun.next_sequence);
        while gone < 20 {
            let event = event(&mut watch).await;
            assert_eq!((event.epoch, event.sequence), (begun.epoch, sequence));
            sequence += 1;
            gone += usize::from(event.phase == "gone");
            assert_eq!(
                event.exit.is_some(),
                ["stopped", "deleting", "gone"].contains(&event.phase.as_str()),
                "{event:?}"
            );
            phases.entry(event.sandbox.unwrap().id).or_default().push(event.phase);
        }
        for (id, phases) in phases {
            let expected = [
                "defined", "creating", "created", "starting", "running", "stopping", "stopped", "deleting",
                "gone",
            ];
            let expected: Vec<_> =
                expected.iter().filter(|phase| phases.iter().any(|told| told == *phase)).collect();
            assert!(phases.iter().eq(expected) && phases.contains(&"running".to_owned()), "{id}: {phases:?}");
        }
        house.close().await;
    });
}

#[test]
fn a_watch_goes_on_where_another_left_off() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let mut watch = client.watch(0, 0).await.unwrap();
        let begun = snapshot(&mut watch).await;
        client.start(&key("a"), Some(&SandboxSpec::default())).await.unwrap();
        let first = event(&mut watch).await;
        drop(watch);
        client.shutdown(&key("a"), None).await.unwrap();
        let mut again = client.watch(begun.epoch, first.sequence + 1).await.unwrap();
        let second = event(&mut again).await;
        assert_eq!(second.sequence, first.sequence + 1);
        let mut elsewhere = client.watch(begun.epoch + 7, first.sequence + 1).await.unwrap();
        assert!(
            snapshot(&mut elsewhere).await.next_sequence > first.sequence,
            "another epoch's number means nothing"
        );
        house.close().await;
    });
}

/// Goal: a watcher that does not read loses events and is told what there is; a quick one beside it misses nothing.
#[test]
fn a_slow_watcher_gets_a_snapshot_and_slows_nobody() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let keys: Vec<_> = (0..32).map(|number| key(&format!("s{number}"))).collect();
        for key in &keys {
            house.keeper.run(key, SandboxSpec::default()).await.unwrap();
        }
        let mut slow = client.watch(0, 0).await.unwrap();
        let mut sequence = snapshot(&mut slow).await.next_sequence;
        let mut quick = house.client().await.watch(0, 0).await.unwrap();
        let mut seen = snapshot(&mut quick).await.next_sequence;
        // What is kept, and what the transport holds for a reader that does not read: some 2.5 MB of small messages.
        let enough = seen + KEPT_EVENTS as u64 + 60_000;
        while seen < enough {
            let mut rounds = JoinSet::new();
            for key in keys.clone() {
                let keeper = house.keeper.clone();
                rounds.spawn(async move {
                    for _ in 0..10 {
                        keeper.pause(&key).await.unwrap();
                        keeper.resume(&key).await.unwrap();
                    }
                });
            }
            rounds.join_all().await;
            for _ in 0..keys.len() * 10 * 4 {
                assert_eq!(event(&mut quick).await.sequence, seen, "the quick one misses nothing");
                seen += 1;
            }
        }
        let caught_up = loop {
            match next(&mut slow).await {
                Item::Event(event) => {
                    assert_eq!(event.sequence, sequence, "without a gap until it is told of one");
                    sequence += 1;
                }
                Item::Snapshot(snapshot) => break snapshot,
            }
        };
        assert!(caught_up.next_sequence > sequence && caught_up.sandboxes.len() == keys.len());
        house.keeper.pause(&keys[0]).await.unwrap();
        assert_eq!(event(&mut slow).await.sequence, caught_up.next_sequence);
        client.ping(&keys[1]).await.unwrap();
        house.close().await;
    });
}
