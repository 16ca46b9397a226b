//! Field cases that need a daemon, its successor and real sandboxes.

use std::time::Duration;

use rustix::process::Signal;
use sandkeeper::spec::Network;
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::{ErrorKind, SandboxSpec};
use tokio::task::JoinSet;

use crate::support::{Daemon, block_on, has_ended, key, refused, run, send, size, sleeper};

fn pause() -> SandboxSpec {
    SandboxSpec { network: Network::None, ..SandboxSpec::default() }
}

/// C18: most sandboxes are dead when the next daemon comes up. From its first answer on it knows of each, the living are found and
/// do not wait behind the dead, whose ends are told truthfully; killed in the middle of that, nothing is lost or doubled.
#[test]
fn many_dead_sandboxes_hold_up_nobody_and_none_is_lost() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let (dead, healthy) = (size(200, 1_950), 50);
        let mut pids = Vec::new();
        for number in 0..dead {
            pids.push(run(&mut client, &format!("dead-{number:04}"), pause()).await);
        }
        let mut alive = Vec::new();
        for number in 0..healthy {
            alive.push(run(&mut client, &format!("healthy-{number:04}"), pause()).await);
        }
        daemon.kill9();
        pids.iter().for_each(|pid| send(*pid, Signal::KILL));
        // In the middle of finding out about them, and again.
        for _ in 0..2 {
            daemon.start_again();
            let known = daemon.client().await.list(ListRequest::default()).await.unwrap();
            assert_eq!(known.len(), dead + healthy, "none is missing, from the first answer on");
            daemon.kill9();
        }
        daemon.start_again();
        let all = daemon.settled().await;
        assert_eq!(all.len(), dead + healthy);
        for status in &all[..dead] {
            let exit = status.exit.as_ref().expect("how it ended is told");
            assert_eq!(status.phase, "stopped", "{status:?}");
            assert!(
                matches!((exit.reason.as_str(), exit.status), ("signalled", 137) | ("lost", 255)),
                "{exit:?}"
            );
        }
        for (status, pid) in all[dead..].iter().zip(&alive) {
            assert_eq!((status.phase.as_str(), status.pid), ("running", *pid));
        }
        let mut client = daemon.client().await;
        client.ping(&key("healthy-0000")).await.unwrap();
        assert_eq!(refused(client.ping(&key("dead-0000")).await).kind(), ErrorKind::FailedPrecondition);
    });
}

/// C25: a herd of starts. Each ends well or in an error that says why; one whose caller gave up while it waited for its turn is
/// not begun later; and cheap calls do not wait behind them.
#[test]
fn a_herd_of_starts_is_taken_in_turn() {
    block_on(async {
        let daemon = Daemon::start(&["--concurrent-starts", "2"]);
        let mut client = daemon.client().await;
        run(&mut client, "before", pause()).await;
        let mut herd = JoinSet::new();
        let count = size(300, 1_000);
        for number in 0..count {
            let patient = number % 3 > 0;
            let limit = if patient { Duration::from_secs(60) } else { Duration::from_millis(40) };
            let mut client = client.within(limit);
            herd.spawn(async move {
                let id = format!("herd-{number:04}");
                (id.clone(), patient, client.start(&key(&id), Some(&pause())).await)
            });
        }
        for _ in 0..50 {
            client.ping(&key("before")).await.unwrap();
            assert_eq!(client.status(&key("before")).await.unwrap().phase, "running");
        }
        let ended = herd.join_all().await;
        for (id, patient, answer) in &ended {
            match answer {
                Ok(_) => {}
                Err(error) if !patient => {
                    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{id}: {error}")
                }
                Err(error) => panic!("{id} had time enough: {error}"),
            }
        }
        // Whoever was begun in time may have come up after its caller had gone; nobody is begun any more.
        let running = || async { daemon.settled().await.len() };
        let now = running().await;
        let started = ended.iter().filter(|(_, _, answer)| answer.is_ok()).count() + 1;
        assert!((started..=started + 8).contains(&now), "{started} were answered, and {now} run");
        assert_eq!(running().await, now);
    });
}

/// C24: a daemon that starts and ends sandboxes for a long time uses no more descriptors than before.
#[test]
fn descriptors_do_not_grow_with_the_number_of_starts() {
    block_on(async {
        let daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let round = |number: usize| format!("round-{number}");
        for number in 0..20 {
            run(&mut client, &round(number), sleeper()).await;
            client.shutdown(&key(&round(number)), Some(Duration::ZERO)).await.unwrap();
        }
        let before = daemon.descriptors();
        for number in 0..size(150, 2_000) {
            run(&mut client, &round(number), sleeper()).await;
            client.shutdown(&key(&round(number)), Some(Duration::ZERO)).await.unwrap();
        }
        let after = daemon.descriptors();
        assert!(after.abs_diff(before) <= 5, "{before} before, {after} after");
        assert_eq!(daemon.groups().len(), 0);
    });
}

/// C22: options of an unknown type are kept byte for byte across a kill: the same again is the same, one byte more is another.
#[test]
fn unknown_options_outlive_their_daemon_byte_for_byte() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let options = prost_types::Any { type_url: "example.test/Unknown.v9".to_owned(), value };
        let spec = SandboxSpec { options, ..pause() };
        let mut client = daemon.client().await;
        let pid = run(&mut client, "opaque", spec.clone()).await;
        daemon.kill9();
        daemon.start_again();
        daemon.settled().await;
        let mut client = daemon.client().await;
        assert_eq!(client.start(&key("opaque"), Some(&spec)).await.unwrap().pid, pid);
        let mut other = spec;
        other.options.value.push(0);
        let error = refused(client.start(&key("opaque"), Some(&other)).await);
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    });
}

/// C05 (A): whoever waits for one that was adopted hears of its end, which is not in the future.
#[test]
fn the_end_of_an_adopted_sandbox_is_heard() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let pid = run(&mut daemon.client().await, "adopted", pause()).await;
        daemon.kill9();
        daemon.start_again();
        daemon.settled().await;
        let mut client = daemon.client().await;
        let mut waiting = client.clone();
        let wait = tokio::spawn(async move { waiting.wait(&key("adopted")).await });
        send(pid, Signal::KILL);
        let exit = wait.await.unwrap().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!((exit.reason.as_str(), exit.status), ("signalled", 137));
        assert!(exit.exited_at.is_none_or(|at| at.seconds as u64 <= now.as_secs() + 1), "{exit:?}");
        assert!(has_ended(pid));
        client.shutdown(&key("adopted"), None).await.unwrap();
        assert_eq!(daemon.groups().len(), 0);
    });
}
