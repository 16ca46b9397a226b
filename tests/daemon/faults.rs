//! State that is damaged, and places that will not do.

use std::collections::BTreeMap;
use std::fs;

use redb::TableDefinition;
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
        let mut daemon = Daemon::start(&[]);
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
            daemon.start_again();
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
    block_on(async {
        let mut daemon = Daemon::start(&[]);
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
        daemon.start_again();
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
        let mut daemon = Daemon::start(&[]);
        let pid = run(&mut daemon.client().await, "a", sleeper()).await;
        daemon.kill9();
        for name in ["journal.redb", "ballast", "lock"] {
            fs::remove_file(daemon.state_dir.join(name)).unwrap();
        }
        daemon.start_again();
        let all = daemon.settled().await;
        assert_eq!(all.iter().map(|status| status.pid).collect::<Vec<_>>(), [pid], "{all:?}");
        let next = run(&mut daemon.client().await, "b", sleeper()).await;
        assert!(!has_ended(pid) && !has_ended(next));
    });
}

const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("states");

/// Changes what is written of a sandbox in one table, behind the journal's back; nothing is the end of the record.
fn tamper(
    daemon: &Daemon,
    (table, shelf): (TableDefinition<'_, &str, &[u8]>, u8),
    id: &str,
    change: impl FnOnce(Vec<u8>, &dyn Fn(&mut Vec<u8>)) -> Option<Vec<u8>>,
) {
    let name = key(id).to_string();
    // Source: docs/journal.md. With a right checksum, whatever else is in the record is believed.
    let seal = |record: &mut Vec<u8>| {
        let mut sum = crc32fast::Hasher::new();
        [&[record[0], shelf], name.as_bytes(), &[0], &record[5..]].iter().for_each(|part| sum.update(part));
        record[1..5].copy_from_slice(&sum.finalize().to_le_bytes());
    };
    let database = redb::Database::open(daemon.journal()).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(table).unwrap();
        let before = table.remove(name.as_str()).unwrap().expect("it has a record").value().to_owned();
        let mut sealed = before.clone();
        seal(&mut sealed);
        assert_eq!(sealed, before, "the format is as it is thought to be");
        if let Some(after) = change(before, &seal) {
            table.insert(name.as_str(), after.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
}

/// C19: a damaged record costs nobody else anything, and its sandbox is found by what runs. Method: twenty run; the last record
/// is cut, a byte of one in the middle is flipped, one is emptied, one is without the other half, one is of a version that
/// nobody knows yet, and the whole file is empty; each in a copy of what a killed daemon has left.
#[test]
fn a_damaged_record_disturbs_no_sandbox() {
    const COUNT: usize = 20;
    let (specs, states) = ((SPECS, 1), (STATES, 2));
    type Damage = Box<dyn Fn(&Daemon)>;
    let mut damages: Vec<(String, Damage)> = Vec::new();
    for (table, name) in [(specs, "spec"), (states, "state")] {
        // In full, every length that there may be.
        for length in (0..150).step_by(size(29, 1)) {
            let cut = move |daemon: &Daemon| {
                tamper(daemon, table, "s19", |mut record, _| {
                    record.truncate(length.min(record.len() - 1));
                    Some(record)
                });
            };
            damages.push((format!("the last {name} cut to {length}"), Box::new(cut)));
        }
        let flip = move |daemon: &Daemon| {
            tamper(daemon, table, "s10", |mut record, _| {
                let middle = record.len() / 2;
                record[middle] ^= 1;
                Some(record)
            });
        };
        damages.push((format!("a flipped byte in a {name}"), Box::new(flip)));
        let empty = move |daemon: &Daemon| tamper(daemon, table, "s05", |_, _| Some(Vec::new()));
        damages.push((format!("an empty {name}"), Box::new(empty)));
        let remove = move |daemon: &Daemon| tamper(daemon, table, "s00", |_, _| None);
        damages.push((format!("a missing {name}"), Box::new(remove)));
        let newer = move |daemon: &Daemon| {
            tamper(daemon, table, "s07", |mut record, seal| {
                record[0] += 1;
                seal(&mut record);
                Some(record)
            });
        };
        damages.push((format!("a {name} of a newer version"), Box::new(newer)));
    }
    damages.push(("an empty file".to_owned(), Box::new(|daemon| fs::write(daemon.journal(), "").unwrap())));
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client().await;
        let mut running = BTreeMap::new();
        for number in 0..COUNT {
            let id = format!("s{number:02}");
            running.insert(id.clone(), run(&mut client, &id, sleeper()).await);
        }
        daemon.kill9();
        let whole = fs::read(daemon.journal()).unwrap();
        for (what, damage) in damages {
            fs::write(daemon.journal(), &whole).unwrap();
            damage(&daemon);
            daemon.start_again();
            let all = daemon.settled().await;
            let orphans = daemon.client().await.orphans().await.unwrap();
            let found: BTreeMap<String, u32> = all
                .iter()
                .filter(|status| status.phase == "running")
                .map(|status| (status.id.clone(), status.pid))
                .collect();
            let missing: Vec<&String> = running.keys().filter(|id| !found.contains_key(*id)).collect();
            let listed = orphans.orphans.iter().filter_map(|orphan| orphan.sandbox.as_ref());
            let listed: Vec<&String> = listed.map(|sandbox| &sandbox.id).collect();
            assert_eq!(missing, listed, "{what}: whoever is not served is listed");
            assert!(found.iter().all(|(id, pid)| running[id] == *pid), "{what}: {found:?} of {running:?}");
            assert!(running.values().all(|pid| !has_ended(*pid)), "{what}: all of them go on");
            assert_eq!(daemon.groups().len(), COUNT, "{what}");
            let told = orphans.damaged_records > 0 || daemon.log().contains("the journal is damaged");
            assert!(told, "{what}: it is said");
            daemon.kill9();
        }
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
