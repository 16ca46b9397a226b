//! What runs and has lost its record: it is gone on with, or listed, and nobody is told that it is gone, nor gets its name.

use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};

use super::*;

const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("states");

/// Changes the rows of a journal behind its back, once its keeper has let go of it.
async fn tamper(dir: &Path, change: impl FnOnce(&WriteTransaction)) {
    until("its lock is free", || Journal::open(dir).is_ok()).await;
    let database = Database::create(dir.join("journal.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

fn damage(txn: &WriteTransaction, key: &SandboxKey) {
    txn.open_table(STATES).unwrap().insert(key.as_str(), [7].as_slice()).unwrap();
}

/// Damages the file itself, so that nobody can say whose records are missing; of those in it most can be read all the same.
async fn damage_file(dir: &Path) {
    until("its lock is free", || Journal::open(dir).is_ok()).await;
    let mut bytes = std::fs::read(dir.join("journal.redb")).unwrap();
    bytes[0] ^= 1;
    std::fs::write(dir.join("journal.redb"), bytes).unwrap();
}

fn orphans(keeper: &Keeper) -> Vec<(SandboxKey, u64)> {
    let orphans = keeper.orphans().into_iter().map(|orphan| (orphan.key, orphan.life.0));
    orphans.collect()
}

/// Goal: nobody gets the name of what runs without a record, and nobody is told that it is gone.
async fn assert_taken(keeper: &Keeper, key: &SandboxKey, why: &str) {
    let refused = [
        keeper.define(key, spec("another")).await.err(),
        keeper.run(key, spec("another")).await.err(),
        keeper.prepare(key, spec("another")).await.err(),
        keeper.shutdown(key, None).await.err(),
    ];
    for error in refused {
        let error = error.expect("its name is taken");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// Goal: where it is known whose records are damaged, they are gone on with if they can be made anew, and listed if not; what is
/// nobody's is ended as ever. It stays so until that is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_gone_on_with_is_listed_where_its_record_is_damaged() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let [bare, whole, nobodys] = ["bare", "whole", "nobodys"].map(key);
    for key in [bare, whole, nobodys] {
        keeper.run(&key, spec("a")).await.unwrap();
    }
    let life = keeper.inspect(&bare).unwrap().life;
    drop(keeper);
    tamper(dir.path(), |txn| {
        damage(txn, &bare);
        damage(txn, &whole);
        txn.open_table(SPECS).unwrap().remove(nobodys.as_str()).unwrap();
        txn.open_table(STATES).unwrap().remove(nobodys.as_str()).unwrap();
    })
    .await;
    runtime.lose_keepsake(&bare);
    for round in 0..2 {
        let keeper = open(dir.path(), &runtime).await;
        settled(&keeper).await;
        assert_eq!(orphans(&keeper), [(bare, life)], "round {round}");
        keeper.ping(&whole).unwrap();
        assert!(keeper.ping(&bare).is_err());
        assert_eq!(runtime.running().len(), 2, "round {round}");
        assert_taken(&keeper, &bare, "fsck --end-orphans").await;
        assert_eq!(orphans(&keeper), [(bare, life)]);
        assert_eq!(runtime.running().len(), 2);
    }
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.end_orphans().await.0, 1);
    assert_eq!(keeper.unread_records().0, 0);
    keeper.run(&bare, spec("another")).await.unwrap();
    drop(keeper);
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    assert!(keeper.ping(&bare).is_ok() && keeper.orphans().is_empty() && keeper.unread_records().0 == 0);
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
}

/// Goal: a record of an earlier life does not hide the later one that runs. Method: put an earlier row back, and damage the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_earlier_life_does_not_hide_a_later_one() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let key = key("a");
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&key, spec("a")).await.unwrap();
    drop(keeper);
    let mut earlier = Vec::new();
    tamper(dir.path(), |txn| {
        let states = txn.open_table(STATES).unwrap();
        earlier = states.get(key.as_str()).unwrap().unwrap().value().to_owned();
    })
    .await;
    let keeper = open(dir.path(), &runtime).await;
    keeper.stop(&key, None).await.unwrap();
    let life = keeper.start(&key).await.unwrap().life.0;
    drop(keeper);
    tamper(dir.path(), |txn| {
        txn.open_table(STATES).unwrap().insert(key.as_str(), earlier.as_slice()).unwrap();
    })
    .await;
    damage_file(dir.path()).await;
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    assert_eq!(orphans(&keeper), [(key, life)]);
    let refused = keeper.start(&key).await.expect_err("it would be the second");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    assert_taken(&keeper, &key, "without a record").await;
    assert_eq!((keeper.len(), runtime.running().len()), (0, 1), "its record is gone, and it runs");
    assert_eq!(keeper.end_orphans().await.0, 1);
    keeper.shutdown(&key, None).await.unwrap();
    assert_eq!(runtime.existing(), []);
}

/// Goal: a sandbox does not hide another of its name that a backend has left which was not there for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_namesake_on_another_backend_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, other, key) = (MemoryRuntime::new(), MemoryRuntime::new(), key("a"));
    let both = || {
        let builder = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _);
        builder.runtime("other", Arc::clone(&other) as _).journal(Journal::open(dir.path()).unwrap())
    };
    let keeper = both().build().unwrap();
    keeper.run(&key, SandboxSpec { runtime: "other".to_owned(), ..spec("a") }).await.unwrap();
    drop(keeper);
    tamper(dir.path(), |txn| {
        txn.open_table(SPECS).unwrap().remove(key.as_str()).unwrap();
        txn.open_table(STATES).unwrap().remove(key.as_str()).unwrap();
    })
    .await;
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&key, spec("a")).await.unwrap();
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    let keeper = both().build().unwrap();
    settled(&keeper).await;
    assert_eq!((other.existing(), keeper.orphans()), (Vec::new(), Vec::new()), "it was nobody's");
    keeper.ping(&key).unwrap();
    assert_eq!(keeper.close(None).await.len(), 0);
}

/// Goal: a journal that never knew of a sandbox does not make those that are there nobody's. Method: a journal elsewhere, as if
/// the directory had been emptied; a keeper that comes after the one that noticed; and one that is killed right away.
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_journal_beside_sandboxes_has_lost_their_records() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (runtime, bare, whole) = (MemoryRuntime::new(), key("bare"), key("whole"));
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&bare, spec("a")).await.unwrap();
    keeper.run(&whole, spec("a")).await.unwrap();
    let life = keeper.inspect(&bare).unwrap().life;
    runtime.lose_keepsake(&bare);
    drop(keeper);
    drop(Journal::open(elsewhere.path()).unwrap());
    for _ in 0..2 {
        let keeper = open(elsewhere.path(), &runtime).await;
        settled(&keeper).await;
        assert_eq!(orphans(&keeper), [(bare, life)]);
        keeper.ping(&whole).unwrap();
        let new = keeper.run(&key("new"), spec("new")).await.unwrap().life;
        assert!(new.0 > 1_000_000, "a number is never used again: {new}");
    }
    let keeper = open(elsewhere.path(), &runtime).await;
    assert_eq!(keeper.end_orphans().await.0, 1);
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
}

/// Goal: where records were lost, a name that nobody has waits until it is known what exists.
#[tokio::test(flavor = "multi_thread")]
async fn names_wait_until_it_is_known_what_exists() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let (survives, new) = (key("survives"), key("new"));
    let keeper = open(dir.path(), &runtime).await;
    let pid = keeper.run(&survives, spec("a")).await.unwrap().started.pid;
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    std::fs::write(dir.path().join("journal.redb"), "").unwrap();
    runtime.script_listing(hang());
    let keeper = open(dir.path(), &runtime).await;
    let soon = keeper.within(MS(20));
    let refused = [
        soon.run(&survives, spec("another")).await.err(),
        soon.define(&new, spec("new")).await.err(),
        soon.shutdown(&survives, None).await.err(),
    ];
    for error in refused {
        assert_eq!(error.expect("it is not known yet").kind(), ErrorKind::DeadlineExceeded);
    }
    drop((keeper, soon));
    runtime.script_listing(Step { delay: MS(100), instead: None });
    let keeper = open(dir.path(), &runtime).await;
    let taken = keeper.run(&survives, spec("another")).await.expect_err("it is gone on with");
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    settled(&keeper).await;
    assert_eq!(keeper.run(&survives, spec("a")).await.unwrap().started.pid, pid);
    keeper.run(&new, spec("new")).await.unwrap();
    keeper.shutdown(&survives, None).await.unwrap();
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
}

/// Goal: while it is not known what exists, nobody is told that something does not. Method: verbs that come during the listing are
/// answered as after it.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_light_is_not_called_gone_before() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let keys = ["stopped", "shut-down", "waited-for", "asked"].map(key);
    for key in &keys {
        keeper.run(key, spec("a")).await.unwrap();
    }
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    std::fs::write(dir.path().join("journal.redb"), "").unwrap();
    runtime.script_listing(Step { delay: MS(300), instead: None });
    let keeper = open(dir.path(), &runtime).await;
    let [stopped, shut_down, waited_for, asked] = keys;
    let wait = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.wait(&waited_for).await }
    });
    let (stop, shutdown, status) =
        tokio::join!(keeper.stop(&stopped, None), keeper.shutdown(&shut_down, None), keeper.status(&asked));
    stop.unwrap();
    shutdown.unwrap();
    status.unwrap();
    settled(&keeper).await;
    assert_eq!(phase(&keeper, &stopped), "stopped");
    let left: Vec<_> = runtime.running().into_iter().map(|(key, _)| key).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&waited_for) && left.contains(&asked));
    runtime.exit(&waited_for, ExitReason::Exited(4));
    assert_eq!(wait.await.unwrap().unwrap().reason, ExitReason::Exited(4));
}

/// Goal: a backend that cannot say what it has left does not lead to that being accepted as lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_listed_is_not_accepted_as_lost() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&key("a"), spec("a")).await.unwrap();
    drop(keeper);
    tamper(dir.path(), |txn| damage(txn, &key("a"))).await;
    runtime.lose_keepsake(&key("a"));
    runtime.script_listing(Step { delay: Duration::ZERO, instead: Some(Instead::Fail(ErrorKind::Internal)) });
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.end_orphans().await.0, 0);
    assert_taken(&keeper, &key("a"), "cannot be told").await;
    assert_eq!(runtime.running().len(), 1, "nobody took its name, and its place");
    drop(keeper);
    runtime.script_listing(Step::default());
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    assert_eq!(keeper.orphans().len(), 1);
    assert_eq!(keeper.end_orphans().await.0, 1);
    assert_eq!(runtime.existing(), []);
}

/// Goal: the name of a record that waits for its runtime is taken, and the record outlives a file that is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_waits_keeps_its_name_and_its_place() {
    let (dir, runtime, disk) = (tempfile::tempdir().unwrap(), MemoryRuntime::new(), Disk::default());
    let other = MemoryRuntime::new();
    let both = || {
        let builder = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _);
        builder.runtime("other", Arc::clone(&other) as _).journal(Journal::open(dir.path()).unwrap())
    };
    let (waits, here) = (key("waits"), key("here"));
    let keeper = both().build().unwrap();
    keeper.run(&waits, SandboxSpec { runtime: "other".to_owned(), ..spec("a") }).await.unwrap();
    keeper.run(&here, spec("a")).await.unwrap();
    drop(keeper);
    let keeper = open_with(|| open_on(dir.path(), &disk), &runtime).await;
    settled(&keeper).await;
    assert_eq!(keeper.unread_records(), (0, vec![waits]));
    assert_taken(&keeper, &waits, "its runtime").await;
    // The file is found damaged when it is opened again after a refusal.
    std::fs::write(dir.path().join("journal.redb"), "damage").unwrap();
    disk.refuse(true);
    keeper.stop(&here, None).await.unwrap();
    until("it is refused", || keeper.journal_trouble().is_some()).await;
    disk.refuse(false);
    until("it is made anew", || keeper.journal_trouble().is_none()).await;
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    let keeper = both().build().unwrap();
    settled(&keeper).await;
    assert!(keeper.unread_records() == (0, Vec::new()) && keeper.orphans().is_empty());
    keeper.ping(&waits).unwrap();
    assert_eq!(phase(&keeper, &here), "stopped");
    assert_eq!(keeper.close(None).await.len(), 0);
}

/// Goal: what was not ended stays listed, whether it would not go or nobody waited for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_ended_stays_listed() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let keys = ["a", "b", "c"].map(key);
    for key in keys {
        keeper.run(&key, spec("a")).await.unwrap();
    }
    drop(keeper);
    tamper(dir.path(), |txn| keys.iter().for_each(|key| damage(txn, key))).await;
    for key in &keys {
        runtime.lose_keepsake(key);
        runtime.script(key, Script { delete: hang(), ..Script::default() });
    }
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    assert!(tokio::time::timeout(MS(20), keeper.end_orphans()).await.is_err(), "it hangs");
    assert_eq!(keeper.orphans().len(), 3);
    let fails = Step { delay: Duration::ZERO, instead: Some(Instead::Fail(ErrorKind::Internal)) };
    runtime.script(&keys[0], Script { delete: fails, ..Script::default() });
    keys[1..].iter().for_each(|key| runtime.script(key, Script::default()));
    let (ended, left) = keeper.end_orphans().await;
    assert_eq!((ended, left.len(), left[0].0.key), (2, 1, keys[0]));
    assert_eq!(orphans(&keeper).len(), 1);
    drop(keeper);
    runtime.script(&keys[0], Script::default());
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    assert_eq!(keeper.orphans().len(), 1, "it is not accepted as lost as long as one is left");
    assert_eq!(keeper.end_orphans().await.0, 1);
    assert!(keeper.orphans().is_empty() && runtime.existing().is_empty());
}

/// Goal: what is made known anew outlives the registry that was told of it. Method: on one thread, the listing and the failure
/// fall due while it is held up; so the registry finds its failure first, and the records behind it.
#[tokio::test]
async fn a_registry_that_fails_with_records_made_anew_in_its_mailbox_is_told_again() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let keys = ["a", "b", "c"].map(key);
    for key in &keys {
        keeper.run(key, spec("a")).await.unwrap();
    }
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    std::fs::write(dir.path().join("journal.redb"), "").unwrap();
    runtime.script_listing(Step { delay: MS(50), instead: None });
    let keeper = open(dir.path(), &runtime).await;
    tokio::spawn(async {
        #[expect(clippy::disallowed_methods, reason = "this is what holds the thread up")]
        std::thread::sleep(MS(150));
    });
    tokio::time::sleep(MS(60)).await;
    assert_eq!(keeper.len(), 0);
    keeper.fail_registry();
    settled(&keeper).await;
    for key in &keys {
        assert_eq!(phase(&keeper, key), "running");
    }
}
