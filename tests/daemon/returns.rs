//! What the next daemon makes of what the one before has left.

use std::time::Duration;

use rustix::process::Signal;
use sandkeeper::wire::SandboxStatus;

use crate::support::{
    Daemon, block_on, has_ended, in_host, key, minds_sigterm, phase, program, run, send, sleeper, until,
};

/// What must be the same of a sandbox before and after.
fn facts(sandboxes: &[SandboxStatus]) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
    let facts = sandboxes.iter().map(|status| {
        (
            status.id.clone(),
            status.pid,
            status.life,
            status.created_at,
            status.started_at,
            status.phase.clone(),
        )
    });
    facts.collect()
}

/// C04, C05: a hard kill, an orderly end, and another hard kill.
#[test]
fn sandboxes_go_on_undisturbed_whichever_way_the_daemon_ends() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        for number in 0..20 {
            run(&mut client, &format!("s{number}"), sleeper()).await;
        }
        let before = facts(&daemon.settled().await);
        assert_eq!(before.len(), 20);
        daemon.kill9();
        daemon.start_again();
        assert_eq!(facts(&daemon.settled().await), before);
        assert_eq!(daemon.terminate(), Some(0));
        daemon.start_again();
        assert_eq!(facts(&daemon.settled().await), before);
        assert_eq!(daemon.groups().len(), 20);
        // They are as much its own as they were the first's.
        let mut client = daemon.client().await;
        for number in 0..20 {
            client.shutdown(&key(&format!("s{number}")), Some(Duration::ZERO)).await.unwrap();
        }
        assert_eq!(daemon.groups(), Vec::<String>::new());
    });
}

/// C05: nobody was there to hear of it.
#[test]
fn exits_while_no_daemon_runs_are_told_with_their_statuses() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let trap = in_host(&["/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.01; done"]);
        let seven = run(&mut client, "seven", trap).await;
        let killed = run(&mut client, "killed", sleeper()).await;
        run(&mut client, "stays", sleeper()).await;
        minds_sigterm(seven, "SigCgt:");
        daemon.kill9();
        send(seven, Signal::TERM);
        send(killed, Signal::KILL);
        until("both have ended", || (has_ended(seven) && has_ended(killed)).then_some(()));
        daemon.start_again();
        let mut client = daemon.client().await;
        for (id, status, reason) in [("seven", 7, "exited"), ("killed", 137, "signalled")] {
            let exit = client.wait(&key(id)).await.unwrap();
            assert_eq!((exit.status, exit.reason.as_str()), (status, reason), "{id}: {exit:?}");
            let started = client.status(&key(id)).await.unwrap().started_at.expect("it ran");
            if let Some(exited) = exit.exited_at {
                assert!((exited.seconds, exited.nanos) >= (started.seconds, started.nanos), "{id}: {exit:?}");
            }
        }
        phase(&mut client, "stays", "running").await;
    });
}

#[test]
fn what_was_paused_stays_paused() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let pid = run(&mut client, "web", sleeper()).await;
        client.pause(&key("web")).await.unwrap();
        daemon.kill9();
        daemon.start_again();
        daemon.settled().await;
        let mut client = daemon.client().await;
        let status = client.status(&key("web")).await.unwrap();
        assert_eq!((status.phase.as_str(), status.pid), ("paused", pid), "{status:?}");
        assert!(client.probe(&key("web")).await.unwrap().frozen);
        client.resume(&key("web")).await.unwrap();
        phase(&mut client, "web", "running").await;
        assert!(!client.probe(&key("web")).await.unwrap().frozen);
    });
}

#[test]
fn a_stop_under_way_goes_on_to_its_end() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let deaf = in_host(&["/bin/sh", "-c", "trap 'trap \"\" TERM' TERM; while :; do sleep 0.01; done"]);
        let pid = run(&mut client, "deaf", deaf).await;
        minds_sigterm(pid, "SigCgt:");
        let mut asked = client.clone();
        let stop = tokio::spawn(async move { asked.stop(&key("deaf"), Some(Duration::from_secs(2))).await });
        phase(&mut client, "deaf", "stopping").await;
        // That phase is told before it is written; the signal is sent after. It ignores the next ones.
        minds_sigterm(pid, "SigIgn:");
        daemon.kill9();
        assert!(stop.await.unwrap().is_err(), "nobody is there to answer");
        daemon.start_again();
        let mut client = daemon.client().await;
        let exit = client.wait(&key("deaf")).await.unwrap();
        assert_eq!((exit.status, exit.reason.as_str()), (137, "signalled"), "{exit:?}");
        phase(&mut client, "deaf", "stopped").await;
        assert!(has_ended(pid));
    });
}

/// C19: the lock is the kernel's.
#[test]
fn a_second_daemon_is_refused_and_one_after_a_kill_is_not() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let second = program().args(["serve", "--state-dir"]).arg(&daemon.state_dir).output().unwrap();
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(5), "{said}");
        for part in [format!("process {}", daemon.pid()), format!("{}/lock", daemon.state_dir.display())] {
            assert!(said.contains(&part), "{said} does not say {part:?}");
        }
        run(&mut daemon.client().await, "web", sleeper()).await;
        daemon.kill9();
        daemon.start_again();
        assert_eq!(daemon.settled().await.len(), 1);
    });
}
