//! Few descriptors, and many starts that fail.

use std::path::Path;
use std::time::Duration;

use sandkeeper::ErrorKind;
use sandkeeper::spec::{Resource, Rlimit, RootFs, SandboxSpec};

use crate::support::{Daemon, Plan, block_on, in_host, key, refused, run, size, sleeper};

/// C24: starts are refused before descriptors are used up, and everything else goes on.
#[test]
fn with_512_descriptors_starts_are_refused_cleanly_and_all_else_is_served() {
    block_on(async {
        let plan = Plan { descriptors: Some(512), ..Plan::default() };
        let daemon = Daemon::start_as(plan);
        let mut client = daemon.client().await;
        let capacity = client.version().await.unwrap().capacity as usize;
        assert!((64..512).contains(&capacity), "{capacity}");
        for number in 0..capacity {
            run(&mut client, &format!("s{number}"), SandboxSpec::default()).await;
        }
        assert!(daemon.descriptors() < 512, "{}", daemon.descriptors());
        let error = refused(client.start(&key("one-more"), Some(&sleeper())).await);
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        let mut another = daemon.client().await;
        for client in [&mut client, &mut another] {
            assert_eq!(client.status(&key("s0")).await.unwrap().phase, "running");
            assert_eq!(client.ping(&key("s1")).await.unwrap().phase, "running");
            assert_eq!(client.sweep().await.unwrap().total as usize, capacity);
        }
        for number in 0..10 {
            client.shutdown(&key(&format!("s{number}")), Some(Duration::ZERO)).await.unwrap();
        }
        for number in 0..10 {
            run(&mut client, &format!("again{number}"), SandboxSpec::default()).await;
        }
        assert_eq!(daemon.groups().len(), capacity);
        assert!(!daemon.log().contains("os error 24"), "{}", daemon.log());
    });
}

fn files_below(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| 1 + files_below(&entry.path())).sum()
}

/// More descriptors than the machine has numbers for, whoever asks: only the kernel knows.
fn refused_by_the_kernel() -> SandboxSpec {
    let mut spec = sleeper();
    let limit = Rlimit { resource: Resource::OpenFiles, soft: 1 << 40, hard: 1 << 40 };
    spec.process.as_mut().unwrap().rlimits.push(limit);
    spec
}

/// C17: whatever fails undoes what it made.
#[test]
fn starts_that_fail_leave_nothing() {
    block_on(async {
        let daemon = Daemon::start(&["--stopped-records", "0"]);
        let mut client = daemon.client().await;
        let failing = [
            in_host(&["/nonexistent/program"]),
            SandboxSpec {
                root: RootFs::Directory { path: "/nonexistent/root".into(), writable: false },
                ..sleeper()
            },
            in_host(&["not a path"]),
            refused_by_the_kernel(),
            SandboxSpec { runtime: "no-such".to_owned(), ..sleeper() },
        ];
        let fail = async |client: &mut sandkeeper::surface::grpc::Client, number: usize| {
            let id = format!("f{number}");
            refused(client.start(&key(&id), Some(&failing[number % failing.len()])).await);
            // Its record may stay until it is told to go.
            match client.shutdown(&key(&id), Some(Duration::ZERO)).await {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        };
        let error = refused(client.start(&key("limit"), Some(&refused_by_the_kernel())).await);
        assert!(error.to_string().contains("Operation not permitted"), "the kernel says so: {error}");
        // What is made once and kept is made now.
        for number in 0..20 {
            fail(&mut client, number).await;
        }
        let before = (daemon.descriptors(), files_below(&daemon.state_dir));
        for number in 0..size(400, 5_000) {
            fail(&mut client, number).await;
        }
        assert_eq!(daemon.groups(), Vec::<String>::new());
        assert_eq!((daemon.descriptors(), files_below(&daemon.state_dir)), before);
        assert_eq!(client.sweep().await.unwrap().total, 0);
        for number in 0..20 {
            run(&mut client, &format!("good{number}"), sleeper()).await;
        }
    });
}
