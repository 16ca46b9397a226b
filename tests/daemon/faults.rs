//! State that is damaged, and places that will not do.

use std::fs;

use sandkeeper::ErrorKind;

use crate::support::{
    Daemon, LONG, block_on, directory, has_ended, key, program, refused, run, size, sleeper,
};

/// What is done to the file of records.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Cut(usize),
    Flip(usize),
    Removed,
}

fn damages(length: usize) -> Vec<Damage> {
    let step = size(length / 5, length / 60).max(1);
    let mut damages =
        vec![Damage::Cut(0), Damage::Cut(1), Damage::Cut(length - 1), Damage::Flip(0), Damage::Removed];
    damages.extend((step..length).step_by(step).flat_map(|at| [Damage::Cut(at), Damage::Flip(at)]));
    damages
}

impl Damage {
    fn apply(self, daemon: &Daemon) {
        let path = daemon.journal();
        let mut bytes = fs::read(&path).unwrap();
        match self {
            // The file may have become shorter than it was when the damages were thought out.
            Damage::Cut(length) => bytes.truncate(length),
            Damage::Flip(at) => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 0x10;
            }
            Damage::Removed => return fs::remove_file(&path).unwrap(),
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// C19: it always comes up, and whatever ran still runs and is known, or is listed and ended on demand.
#[test]
fn no_damage_to_the_records_keeps_the_daemon_from_coming_up_or_ends_a_sandbox() {
    const COUNT: usize = 5;
    block_on(async {
        let mut daemon = Daemon::start(&[]).await;
        let mut client = daemon.client().await;
        let mut pids = Vec::new();
        for number in 0..COUNT {
            pids.push(run(&mut client, &format!("s{number}"), sleeper()).await);
        }
        pids.sort_unstable();
        let length = fs::metadata(daemon.journal()).unwrap().len() as usize;
        for damage in damages(length) {
            daemon.kill9();
            damage.apply(&daemon);
            daemon.start_again().await;
            let mut client = daemon.client().await;
            // Records are made anew in a task of the daemon's.
            let begun = std::time::Instant::now();
            let all = loop {
                let all = daemon.settled().await;
                let orphans = client.orphans().await.unwrap().total as usize;
                let running =
                    all.iter().filter(|status| status.phase == "running" && status.marks.is_empty()).count();
                assert!(running + orphans <= COUNT, "{damage:?}: {all:?}");
                if running + orphans == COUNT {
                    break all;
                }
                assert!(begun.elapsed() < LONG, "{damage:?}: {running} run, {orphans} orphans: {all:?}");
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            };
            assert_eq!(daemon.groups().len(), COUNT, "{damage:?}");
            let mut found: Vec<u32> = all.iter().map(|status| status.pid).collect();
            found.sort_unstable();
            assert!(found.iter().all(|pid| pids.contains(pid)), "{damage:?}: {found:?} of {pids:?}");
        }
        let orphans = daemon.client().await.orphans().await.unwrap().total;
        let ended = daemon.client().await.end_orphans().await.unwrap();
        assert_eq!((ended.ended, ended.total_left), (orphans, 0), "{ended:?}");
        assert_eq!(daemon.groups().len(), COUNT - orphans as usize);
    });
}

/// Goal: what runs with too large a spec to be kept on its cgroup is left alone when its record is damaged, and keeps its name.
#[test]
fn what_is_too_large_to_be_kept_beside_it_is_listed_and_not_ended() {
    const STATES: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("states");
    block_on(async {
        let mut daemon = Daemon::start(&[]).await;
        let mut large = sleeper();
        large.labels.extend([("large".to_owned(), "x".repeat(40 * 1024))]);
        let mut client = daemon.client().await;
        let pid = run(&mut client, "large", large.clone()).await;
        let small = run(&mut client, "small", sleeper()).await;
        daemon.kill9();
        let database = redb::Database::create(daemon.journal()).unwrap();
        let txn = database.begin_write().unwrap();
        for key in ["default/large", "default/small"] {
            txn.open_table(STATES).unwrap().insert(key, [7].as_slice()).unwrap();
        }
        txn.commit().unwrap();
        drop(database);
        daemon.start_again().await;
        let all = daemon.settled().await;
        assert_eq!(all.iter().map(|status| status.pid).collect::<Vec<_>>(), [small], "{all:?}");
        let mut client = daemon.client().await;
        let orphans = client.orphans().await.unwrap();
        assert_eq!((orphans.total, orphans.orphans[0].life), (1, 1), "{orphans:?}");
        for error in [
            refused(client.start(&key("large"), Some(&large)).await),
            refused(client.shutdown(&key("large"), None).await),
        ] {
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
            assert!(error.to_string().contains(&format!("pid {pid}")), "{error}");
        }
        assert!(!has_ended(pid));
        assert_eq!(client.end_orphans().await.unwrap().ended, 1);
        assert!(has_ended(pid));
        client.start(&key("large"), Some(&large)).await.unwrap();
    });
}

/// Goal: without any file of the journal's, what runs is still somebody's.
#[test]
fn what_runs_outlives_the_loss_of_all_records() {
    block_on(async {
        let mut daemon = Daemon::start(&[]).await;
        let pid = run(&mut daemon.client().await, "a", sleeper()).await;
        daemon.kill9();
        for name in ["journal.redb", "ballast", "lock"] {
            fs::remove_file(daemon.state_dir.join(name)).unwrap();
        }
        daemon.start_again().await;
        let all = daemon.settled().await;
        assert_eq!(all.iter().map(|status| status.pid).collect::<Vec<_>>(), [pid], "{all:?}");
        let next = run(&mut daemon.client().await, "b", sleeper()).await;
        assert!(!has_ended(pid) && !has_ended(next));
    });
}

/// C16: the budget of paths is checked when the daemon starts.
#[test]
fn a_state_directory_that_is_too_deep_is_refused_before_anything_is_made() {
    let above = directory();
    let deep = above.path().join("d".repeat(100));
    let said = program().args(["serve", "--state-dir"]).arg(&deep).output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(2), "{text}");
    assert!(text.contains("the limit is 107") && text.contains("socket"), "{text}");
    assert!(!deep.exists());
}
