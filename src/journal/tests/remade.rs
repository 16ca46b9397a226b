//! What must not be lost on the way: when the file is made anew, when there is no room for beginnings, when we fail ourselves.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::damage::tamper;
use super::faults::{Plan, until};
use super::*;

fn recorded(number: u64) -> Recorded {
    let Change::Define(spec, state) = define(number) else { unreachable!("it is one") };
    Recorded { key: key(number), spec, state }
}

/// Makes the running journal find its file damaged at its next change.
fn damage(dir: &Path, plan: &Plan) {
    std::fs::write(dir.join("journal.redb"), b"damage").unwrap();
    plan.fail(0, 1, Errno::IO);
}

/// Its owner knows nothing of a record in quarantine; who runs under its name must not be forgotten for that.
#[test]
fn what_lies_in_quarantine_is_in_the_file_that_is_made_anew() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    filled(dir.path(), 3);
    tamper(dir.path(), |txn| {
        txn.open_table(store::STATES).unwrap().insert(key(1).as_str(), [7].as_slice()).unwrap();
    });
    for (round, accepts) in [false, true].into_iter().enumerate() {
        let plan = Plan::sound();
        let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
        let before = journal.take_recovered().unwrap();
        assert!(!before.damaged.is_empty(), "round {round}");
        if accepts {
            journal.accept_losses().unwrap();
        }
        journal.set_source(Arc::new(|| vec![recorded(0), recorded(2)]));
        damage(dir.path(), &plan);
        write(&journal, key(0), Change::State(state(Phase::Paused, 9))).unwrap();
        drop(journal);
        let (_journal, after) = open(dir.path());
        assert_eq!((after.sandboxes.len(), after.incomplete), (2, false), "round {round}");
        assert_eq!(after.damaged, if accepts { Vec::new() } else { before.damaged }, "round {round}");
    }
}

/// The file is made anew, and the filling of it fails: it is filled before anything else is written to it.
#[test]
fn a_file_that_was_only_begun_is_completed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    filled(dir.path(), 3);
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    let (failing, once) = (Arc::clone(&plan), AtomicBool::new(true));
    journal.set_source(Arc::new(move || {
        if once.swap(false, Ordering::SeqCst) {
            failing.fail(0, 1, Errno::IO);
        }
        (0..3).map(recorded).collect()
    }));
    damage(dir.path(), &plan);
    write(&journal, key(1), Change::Remove).unwrap();
    drop(journal);
    for _ in 0..2 {
        let recovered = open(dir.path()).1;
        let keys: Vec<_> = recovered.sandboxes.iter().map(|sandbox| sandbox.key).collect();
        assert_eq!((keys.as_slice(), recovered.incomplete), ([0, 2].map(key).as_slice(), false));
    }
}

/// A sandbox is removed and another of its name is defined, in one group, and there is room for ends alone: the first does not
/// come back with a crash, and who defined the second hears that it is not written.
#[test]
fn without_room_what_was_removed_stays_removed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    write(&journal, key(1), define(1)).unwrap();
    // The journal's thread is kept busy until all are queued.
    let (go_on, waits) = mpsc::channel::<()>();
    let (reached, is_busy) = mpsc::channel();
    let busy = move |result: Result<(), Error>| {
        reached.send(result).unwrap();
        waits.recv().unwrap();
    };
    journal.write(key(9), define(9), Some(Box::new(busy)));
    is_busy.recv().unwrap().unwrap();
    let (done, outcomes) = mpsc::channel();
    let removed = done.clone();
    journal.write(key(1), Change::Remove, Some(Box::new(move |result| removed.send(result).unwrap())));
    let (file, crashed) = (dir.path().join("journal.redb"), tempfile::tempdir_in("/dev/shm").unwrap());
    let image = crashed.path().join("journal.redb");
    let defined = move |result| {
        // Here the thread stands still: it is as a kill at this moment would leave it.
        std::fs::copy(&file, &image).unwrap();
        done.send(result).unwrap();
    };
    journal.write(key(1), define(100), Some(Box::new(defined)));
    // Its first write finds no room, and the ballast is given up.
    plan.fail(0, 1, Errno::NOSPC);
    go_on.send(()).unwrap();
    outcomes.recv().unwrap().expect("the removal is written");
    let refused = outcomes.recv().unwrap().expect_err("there is no room for it");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted, "{refused}");
    let keys: Vec<_> = open(crashed.path()).1.sandboxes.iter().map(|sandbox| sandbox.key).collect();
    assert_eq!(keys, [key(9)]);
    until(|| journal.trouble().is_none());
    drop(journal);
    let recovered = open(dir.path()).1;
    assert_eq!(recovered.sandboxes.len(), 2);
    assert_eq!(recovered.sandboxes[0].state, state(Phase::Running, 101), "it is written when there is room");
}

/// A fault of ours at a group: whoever waits for it hears so, and it is written at the next try.
#[test]
fn a_fault_of_ours_loses_nothing_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let plan = Plan::sound();
    let panics = Arc::new(AtomicBool::new(false));
    let (medium, panics_there) = (plan.medium(), Arc::clone(&panics));
    let medium: Medium = Arc::new(move |path, new| {
        assert!(!panics_there.load(Ordering::SeqCst), "a fault of ours");
        medium(path, new)
    });
    let journal = Journal::open_on(dir.path(), medium, 1).unwrap();
    write(&journal, key(1), define(1)).unwrap();
    panics.store(true, Ordering::SeqCst);
    plan.fail(0, 1, Errno::IO);
    for number in 2..4 {
        let error = write(&journal, key(number), define(number)).expect_err("it is not written");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("a fault of ours"), "{error}");
    }
    assert!(write(&journal, key(1), Change::Remove).is_err());
    assert!(journal.accept_losses().is_err());
    assert!(journal.trouble().is_some_and(|trouble| trouble.contains("a fault of ours")));
    journal.flush();
    panics.store(false, Ordering::SeqCst);
    until(|| journal.trouble().is_none());
    drop(journal);
    let recovered = open(dir.path()).1;
    let keys: Vec<_> = recovered.sandboxes.iter().map(|sandbox| sandbox.key).collect();
    assert_eq!((keys.as_slice(), recovered.incomplete), ([2, 3].map(key).as_slice(), false));
}
