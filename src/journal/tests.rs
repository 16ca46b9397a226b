//! What a journal promises, on real files and on files with faults.

mod damage;
mod faults;
mod remade;

use std::collections::BTreeMap;
use std::sync::mpsc;

use super::*;
use crate::model::{Life, Phase};

fn key(number: u64) -> SandboxKey {
    SandboxKey::new("default", &format!("s{number:05}")).unwrap()
}

fn state(phase: Phase, life: u64) -> SandboxRecord {
    SandboxRecord {
        record: Record {
            phase,
            life: Life(life),
            ran: life > 0,
            kept: true,
            shutdown: false,
            exit: None,
            until: None,
        },
        created_at_unix_nanos: 1,
        started_at_unix_nanos: 2,
    }
}

fn define(number: u64) -> Change {
    Change::Define(
        Arc::from(format!("spec of {number}").repeat(10).as_bytes()),
        state(Phase::Running, number + 1),
    )
}

/// Opens a directory, and takes what it held.
#[track_caller]
fn open(dir: &Path) -> (Journal, Recovered) {
    let journal = Journal::open(dir).unwrap();
    let recovered = journal.take_recovered().unwrap();
    (journal, recovered)
}

/// Writes, and waits for the outcome.
fn write(journal: &Journal, key: SandboxKey, change: Change) -> Result<(), Error> {
    let (done, outcome) = mpsc::channel();
    journal.write(key, change, Some(Box::new(move |result| done.send(result).unwrap())));
    outcome.recv().unwrap()
}

/// A journal in this directory with so many running, closed again.
fn filled(dir: &Path, count: u64) {
    let (journal, _) = open(dir);
    for number in 0..count {
        journal.write(key(number), define(number), None);
    }
}

fn by_key(recovered: &Recovered) -> BTreeMap<SandboxKey, (Arc<[u8]>, SandboxRecord)> {
    recovered.sandboxes.iter().map(|sandbox| (sandbox.key, (sandbox.spec.clone(), sandbox.state))).collect()
}

#[test]
fn what_was_written_is_there_at_the_next_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = open(dir.path());
    assert_eq!((recovered.epoch, recovered.next_life, recovered.incomplete), (1, 1, false));
    assert!(recovered.sandboxes.is_empty());
    for number in 0..10 {
        journal.write(key(number), define(number), None);
    }
    journal.write(key(3), Change::State(state(Phase::Paused, 41)), None);
    journal.write(key(4), Change::Remove, None);
    // It comes too late, and makes no record without a spec.
    journal.write(key(4), Change::State(state(Phase::Stopped, 5)), None);
    journal.flush();
    journal.write(key(4), Change::State(state(Phase::Stopped, 5)), None);
    drop(journal);
    let (_journal, recovered) = open(dir.path());
    assert_eq!((recovered.epoch, recovered.next_life, recovered.incomplete), (2, 42, false));
    assert!(recovered.same_boot && recovered.damaged.is_empty());
    assert_eq!(recovered.sandboxes.len(), 9);
    assert_eq!(recovered.sandboxes[3].state, state(Phase::Paused, 41));
    assert!(recovered.sandboxes.is_sorted_by_key(|sandbox| sandbox.key.to_string()));
}

#[test]
fn a_second_opening_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let refused = Journal::open(dir.path()).err().expect("it is held");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    let text = refused.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains("/lock") && text.contains(&dir.path().display().to_string()), "{text}");
    assert_eq!(write(&journal, key(1), define(1)).map_err(|error| error.kind()), Ok(()));
    drop(journal);
    assert_eq!(open(dir.path()).1.sandboxes.len(), 1);
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("state/of/mine");
    drop(Journal::open(&below).unwrap());
    assert_eq!(std::fs::metadata(&below).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o770)).unwrap();
    let refused = Journal::open(&below).err().expect("others may write to it");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(refused.to_string().contains("770"), "{refused}");
    let refused = Journal::open(below.join("lock")).err().expect("it is a file");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
}

#[test]
fn lives_and_epochs_never_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let (mut life, mut epoch) = (0, 0);
    for round in 0..12_u64 {
        let (journal, recovered) = open(dir.path());
        assert!(recovered.epoch > epoch, "epoch {} after {epoch} in round {round}", recovered.epoch);
        assert!(recovered.next_life > life, "life {} after {life} in round {round}", recovered.next_life);
        (life, epoch) = (recovered.next_life, recovered.epoch);
        // The life is used, and nothing of it stays.
        journal.write(key(1), Change::Define(Arc::from([1]), state(Phase::Running, life)), None);
        journal.flush();
        journal.write(key(1), Change::Remove, None);
        drop(journal);
        let file = dir.path().join("journal.redb");
        match round % 4 {
            1 => std::fs::write(&file, b"").unwrap(),
            3 => std::fs::write(&file, b"not a database").unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_deadline_of_another_boot_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open_on(dir.path(), medium::files(), 1).unwrap();
    let mut stopping = state(Phase::Stopping, 3);
    stopping.record.until = Some(crate::model::BootMillis(5));
    write(&journal, key(1), Change::Define(Arc::from([1]), stopping)).unwrap();
    drop(journal);
    for (boot, same) in [(1, true), (2, false)] {
        let journal = Journal::open_on(dir.path(), medium::files(), boot).unwrap();
        let recovered = journal.take_recovered().unwrap();
        assert_eq!(recovered.same_boot, same);
        assert_eq!(recovered.sandboxes[0].state.record.until.is_some(), same);
    }
}

#[test]
fn callbacks_come_in_order_and_after_the_file_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let (done, outcomes) = mpsc::channel();
    for number in 0..1_000 {
        let done = done.clone();
        let then: Then = Box::new(move |result| done.send((number, result.is_ok())).unwrap());
        journal.write(key(number % 10), define(number), Some(then));
    }
    drop(done);
    let outcomes: Vec<_> = outcomes.iter().collect();
    assert_eq!(outcomes, (0..1_000).map(|number| (number, true)).collect::<Vec<_>>());
}

/// The last handle may be dropped by a callback: the thread does not wait for itself.
#[test]
fn the_last_handle_may_go_in_a_callback() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let (done, gone) = mpsc::channel();
    let kept = journal.clone();
    let (go, going) = mpsc::channel();
    let then: Then = Box::new(move |_| {
        going.recv().unwrap();
        drop(kept);
        done.send(()).unwrap();
    });
    journal.write(key(1), define(1), Some(then));
    drop(journal);
    go.send(()).unwrap();
    gone.recv().unwrap();
    assert_eq!(open(dir.path()).1.sandboxes.len(), 1);
}

/// A random life of a journal, beside a map.
mod against_a_map {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Define(u64, u64),
        State(u64, u64),
        Remove(u64),
        Flush,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..8_u64, 1..1000_u64).prop_map(|(number, life)| Step::Define(number, life)),
            6 => (0..8_u64, 1..1000_u64).prop_map(|(number, life)| Step::State(number, life)),
            3 => (0..8_u64).prop_map(Step::Remove),
            2 => Just(Step::Flush),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_holds_what_a_map_would(steps in proptest::collection::vec(step(), 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = open(dir.path()).0;
            let mut map: BTreeMap<SandboxKey, (Arc<[u8]>, SandboxRecord)> = BTreeMap::new();
            for step in steps.into_iter().chain([Step::Reopen]) {
                match step {
                    Step::Define(number, life) => {
                        let (spec, state) = (Arc::<[u8]>::from(life.to_le_bytes()), state(Phase::Created, life));
                        map.insert(key(number), (spec.clone(), state));
                        journal.write(key(number), Change::Define(spec, state), None);
                    }
                    Step::State(number, life) => {
                        let state = state(Phase::Running, life);
                        if let Some((_, known)) = map.get_mut(&key(number)) {
                            *known = state;
                        }
                        journal.write(key(number), Change::State(state), None);
                    }
                    Step::Remove(number) => {
                        map.remove(&key(number));
                        journal.write(key(number), Change::Remove, None);
                    }
                    Step::Flush => journal.flush(),
                    Step::Reopen => {
                        drop(journal);
                        let (again, recovered) = open(dir.path());
                        journal = again;
                        prop_assert_eq!(by_key(&recovered), map.clone());
                        prop_assert!(recovered.damaged.is_empty() && !recovered.incomplete);
                    }
                }
            }
        }
    }
}
