//! How the daemon ends, and what does not end it.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sandkeeper::ErrorKind;

use crate::support::{Daemon, LONG, Plan, block_on, has_ended, key, phase, refused, run, sleeper, until};

#[test]
fn open_waits_and_watches_end_with_the_daemon_and_hold_it_up_no_more_than_a_second_signal_needs() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        run(&mut client, "web", sleeper()).await;
        let mut waiting = client.clone();
        let wait = tokio::spawn(async move { waiting.wait(&key("web")).await });
        let mut watch = client.watch(0, 0).await.unwrap();
        watch.next().await.unwrap().expect("a snapshot");
        assert_eq!(daemon.terminate(), Some(0), "{}", daemon.log());
        assert_eq!(refused(wait.await.unwrap()).kind(), ErrorKind::Unavailable);
        assert!(!daemon.socket().exists());
        daemon.start_again();
        phase(&mut daemon.client().await, "web", "running").await;
    });
}

#[test]
fn signals_that_are_no_request_to_end_do_not_end_it() {
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        for signal in [Signal::HUP, Signal::PIPE] {
            daemon.signal(signal);
        }
        until("it says so", || daemon.log().contains("SIGHUP does nothing").then_some(()));
        daemon.client().await.version().await.unwrap();
        daemon.signal(Signal::INT);
        assert_eq!(daemon.ended().code(), Some(0));
    });
}

#[test]
fn with_shutdown_sandboxes_it_ends_all_and_leaves_nothing() {
    block_on(async {
        let mut daemon = Daemon::start(&["--shutdown-sandboxes", "--shutdown-grace", "100ms"]);
        let mut client = daemon.client().await;
        let mut pids = Vec::new();
        for id in ["a", "b", "c"] {
            pids.push(run(&mut client, id, sleeper()).await);
        }
        client.pause(&key("b")).await.unwrap();
        let root = daemon.cgroup_root().unwrap();
        assert_eq!(daemon.terminate(), Some(0));
        assert!(pids.into_iter().all(has_ended));
        assert!(!root.exists(), "{} is left", root.display());
        daemon.start_again();
        assert!(daemon.settled().await.is_empty());
    });
}

#[test]
fn the_service_manager_hears_when_it_is_up_and_when_it_ends() {
    block_on(async {
        let directory = crate::support::directory();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let environment = vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())];
        // On a machine with cgroup v2 alone it would take this test along into the leaf.
        let options = vec!["--move-host-to-leaf".to_owned(), "false".to_owned()];
        let mut daemon = Daemon::start_as(Plan { options, environment, ..Plan::default() });
        let heard = || {
            let mut text = vec![0; 4_096];
            let length = socket.recv(&mut text).expect("it is told");
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let up = heard();
        assert!(up.contains("READY=1") && up.contains("STATUS=up"), "{up}");
        assert_eq!(daemon.terminate(), Some(0));
        assert!(heard().contains("STOPPING=1"));
    });
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    block_on(async {
        let mut daemon = Daemon::start(&["--log-level", "trace"]);
        assert_eq!(daemon.terminate(), Some(0));
        // One whose reader is gone, and one that is full.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        daemon.start_again_with_log(Stdio::from(writer));
        run(&mut daemon.client().await, "gone", sleeper()).await;
        assert_eq!(daemon.terminate(), Some(0));
        let (reader, writer) = std::io::pipe().unwrap();
        daemon.start_again_with_log(Stdio::from(writer));
        let mut client = daemon.client().await;
        phase(&mut client, "gone", "running").await;
        for number in 0..40 {
            run(&mut client, &format!("s{number}"), sleeper()).await;
            client.shutdown(&key(&format!("s{number}")), Some(Duration::ZERO)).await.unwrap();
        }
        assert_eq!(daemon.terminate(), Some(0));
        drop(reader);
    });
}
