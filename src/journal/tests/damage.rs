//! Damaged files: whatever was done to them, a journal opens, twice in a row, and what can be read is kept.

use super::*;

const COUNT: u64 = 20;

/// How far apart cuts and flips are: by default there are some hundred of them. `SANDKEEPER_FULL=1` is every byte (it takes
/// half an hour), 16 every sixteenth.
fn step(length: usize) -> usize {
    match std::env::var("SANDKEEPER_FULL") {
        Ok(step) => step.parse().expect("a number of bytes"),
        Err(_) => (length / 97).max(1),
    }
}

/// A file with 20 sandboxes: as it is while the program runs (which is how a kill leaves it), or closed in order.
fn image(killed: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.redb");
    let (journal, _) = open(dir.path());
    for number in 0..COUNT {
        write(&journal, key(number), define(number)).unwrap();
    }
    if !killed {
        drop(journal);
        return std::fs::read(file).unwrap();
    }
    std::fs::read(file).unwrap()
}

/// Opens a directory twice with this as its file, and says what the first opening found.
#[track_caller]
fn found_in(image: &[u8], what: &str) -> Recovered {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(dir.path().join("journal.redb"), image).unwrap();
    let (journal, recovered) = open(dir.path());
    write(&journal, key(999), define(999)).unwrap_or_else(|error| panic!("{what}: {error}"));
    drop(journal);
    let (_journal, again) = open(dir.path());
    assert_eq!(again.sandboxes.len(), recovered.sandboxes.len() + 1, "{what}: found again");
    assert!(again.epoch > recovered.epoch && again.next_life >= recovered.next_life, "{what}");
    assert_eq!(again.incomplete, recovered.incomplete, "{what}: it stays so until it is accepted");
    let aside = set_aside(dir.path());
    if recovered.incomplete {
        let kept = std::fs::read(&aside[0]).unwrap();
        assert!(kept == image, "{what}: the damaged file is kept as it was");
    }
    assert_eq!(aside.len(), usize::from(recovered.incomplete), "{what}");
    for sandbox in &recovered.sandboxes {
        let number = (0..COUNT).find(|number| key(*number) == sandbox.key).expect("one of ours");
        let whole = define(number);
        assert_eq!(whole, Change::Define(sandbox.spec.clone(), sandbox.state), "{what}: as it was written");
    }
    recovered
}

fn set_aside(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.display().to_string().contains("journal.redb.damaged-")).collect()
}

#[test]
fn a_cut_at_any_length_never_keeps_it_from_opening() {
    for killed in [false, true] {
        let image = image(killed);
        let mut kept = 0;
        // Where a page ends, redb takes what is left for a file that it may repair.
        let ends_of_pages = (0..image.len()).step_by(4096);
        let lengths: Vec<usize> = (0..image.len()).step_by(step(image.len())).chain(ends_of_pages).collect();
        for length in &lengths {
            let found = found_in(&image[..*length], &format!("cut to {length}, killed {killed}"));
            assert!(
                found.incomplete || found.sandboxes.len() == 20,
                "cut to {length}: what is missing is said"
            );
            kept += found.sandboxes.len();
        }
        println!("killed {killed}: {} cuts of {} bytes, {kept} records kept", lengths.len(), image.len());
    }
}

#[test]
fn a_flipped_byte_anywhere_costs_at_most_what_it_hit_and_is_never_hidden() {
    for killed in [false, true] {
        let image = image(killed);
        // Where there is something: most of the file is nothing yet.
        let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        let (mut seen, mut lost, mut flips) = (0, 0, 0);
        for at in used.iter().step_by(step(used.len())) {
            let mut flipped = image.clone();
            flipped[*at] ^= 0x41;
            let found = found_in(&flipped, &format!("byte {at} flipped, killed {killed}"));
            let missing = 20 - found.sandboxes.len();
            assert!(
                missing == 0 || found.incomplete,
                "byte {at}: {missing} are missing, and it does not say so"
            );
            flips += 1;
            seen += usize::from(found.incomplete);
            lost += missing;
        }
        println!("killed {killed}: {flips} flips, {seen} seen, {lost} records lost");
    }
}

#[test]
fn an_empty_file_is_set_aside() {
    let found = found_in(b"", "empty");
    assert!(found.incomplete && found.sandboxes.is_empty());
}

#[test]
fn at_most_eight_damaged_files_are_kept_the_first_among_them() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..12 {
        std::fs::write(dir.path().join("journal.redb"), format!("damaged {number:02}")).unwrap();
        drop(open(dir.path()));
    }
    let mut kept: Vec<_> = set_aside(dir.path());
    kept.sort();
    let kept: Vec<_> = kept.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let expected = ["00", "05", "06", "07", "08", "09", "10", "11"].map(|number| format!("damaged {number}"));
    assert_eq!(kept, expected);
}

/// Changes the rows of a closed journal behind its back.
pub(super) fn tamper(dir: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::create(dir.join("journal.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

/// Four sandboxes are damaged, each in a way of its own; the others do not notice, nothing is thrown away, and it is said at
/// every opening until it is accepted.
#[test]
fn one_damaged_record_costs_only_itself() {
    use redb::ReadableTable;
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), COUNT);
    tamper(dir.path(), |txn| {
        let mut specs = txn.open_table(store::SPECS).unwrap();
        let mut states = txn.open_table(store::STATES).unwrap();
        let mut flipped = specs.get(key(1).as_str()).unwrap().unwrap().value().to_owned();
        flipped[20] ^= 1;
        specs.insert(key(1).as_str(), flipped.as_slice()).unwrap();
        states.insert(key(2).as_str(), [].as_slice()).unwrap();
        states.remove(key(3).as_str()).unwrap();
        specs.remove(key(4).as_str()).unwrap();
        let of_another = states.get(key(6).as_str()).unwrap().unwrap().value().to_owned();
        states.insert(key(5).as_str(), of_another.as_slice()).unwrap();
    });
    for _ in 0..2 {
        let (_journal, recovered) = open(dir.path());
        assert_eq!(recovered.sandboxes.len(), 15);
        assert!(!recovered.incomplete, "it is known who is damaged");
        let mut damaged: Vec<_> = recovered.damaged.iter().filter_map(|damaged| damaged.key).collect();
        damaged.dedup();
        assert_eq!(damaged, [1, 2, 3, 4, 5].map(key));
    }
    let (journal, _) = open(dir.path());
    // Defined anew, it is whole again.
    write(&journal, key(2), define(2)).unwrap();
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert!(recovered.damaged.iter().all(|damaged| damaged.key != Some(key(2))), "{:?}", recovered.damaged);
    journal.accept_losses().unwrap();
    drop(journal);
    assert_eq!(open(dir.path()).1.damaged, []);
    tamper(dir.path(), |txn| {
        use redb::ReadableTableMetadata;
        assert_eq!(txn.open_table(store::QUARANTINE).unwrap().len().unwrap(), 8, "nothing is thrown away");
    });
}

#[test]
fn a_newer_record_version_is_quarantined() {
    use redb::ReadableTable;
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), COUNT);
    tamper(dir.path(), |txn| {
        let mut states = txn.open_table(store::STATES).unwrap();
        let mut newer = states.get(key(7).as_str()).unwrap().unwrap().value().to_owned();
        record::make_newer(record::Shelf::State, key(7).as_str(), &mut newer);
        states.insert(key(7).as_str(), newer.as_slice()).unwrap();
    });
    let (_journal, recovered) = open(dir.path());
    assert_eq!(recovered.sandboxes.len(), 19);
    assert!(recovered.damaged.iter().all(|damaged| damaged.key == Some(key(7))));
    assert!(recovered.damaged[0].why.contains("version 2"), "{:?}", recovered.damaged);
}

#[test]
fn a_newer_file_format_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), COUNT);
    tamper(dir.path(), |txn| {
        let mut framed = Vec::new();
        let meta = record::Meta { format: store::FORMAT + 1, ..record::Meta::default() };
        record::frame_meta(&meta, &mut framed);
        txn.open_table(store::META).unwrap().insert("numbers", framed.as_slice()).unwrap();
    });
    let (_journal, recovered) = open(dir.path());
    assert!(recovered.incomplete);
    assert_eq!(recovered.sandboxes.len(), 20, "what can be read is kept");
    assert_eq!(set_aside(dir.path()).len(), 1);
}

/// A damaged file that kills whoever reads it must not do so for ever: after two tries it is left alone.
#[test]
fn what_kills_its_reader_is_read_twice_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(false);
    std::fs::write(dir.path().join("journal.redb.damaged-1"), &image).unwrap();
    for (tries, kept) in [(0, 20), (1, 20), (2, 0)] {
        let place = Place { dir: dir.path().to_owned(), medium: medium::files(), boot: 1 };
        let meta = record::Meta {
            format: store::FORMAT,
            incomplete: true,
            salvage: "journal.redb.damaged-1".to_owned(),
            salvage_tries: tries,
            ..record::Meta::default()
        };
        drop(store::Store::create(&place, meta).unwrap());
        let (_journal, recovered) = open(dir.path());
        assert_eq!((recovered.sandboxes.len(), recovered.incomplete), (kept, true), "after {tries} tries");
    }
}

/// Killed when the new file has just taken the damaged one's place: the next opening reads that one all the same.
#[test]
fn a_kill_before_the_new_file_is_filled_loses_nothing() {
    for numbers in [None, Some(record::Meta { epoch: 1 << 60, life: 7, ..record::Meta::default() })] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), COUNT);
        let place = Place { dir: dir.path().to_owned(), medium: medium::files(), boot: 1 };
        drop(salvage::replace(&place, "a test wants it", numbers.as_ref()).unwrap());
        let (_journal, recovered) = open(dir.path());
        assert_eq!((recovered.sandboxes.len(), recovered.incomplete), (20, true));
        assert!(recovered.epoch > numbers.map_or(1, |numbers| numbers.epoch));
        assert_eq!(set_aside(dir.path()).len(), 1, "the new one is sound");
    }
}

/// What runs must not be taken for nobody's, nor its numbers be given again.
#[test]
fn a_file_that_was_taken_away_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, fresh) = open(dir.path());
    assert!(!fresh.incomplete, "there was none before");
    write(&journal, key(1), define(1)).unwrap();
    drop(journal);
    std::fs::remove_file(dir.path().join("journal.redb")).unwrap();
    let (journal, recovered) = open(dir.path());
    assert!(recovered.incomplete && recovered.sandboxes.is_empty(), "{recovered:?}");
    assert!(recovered.epoch > fresh.epoch + 1 && recovered.next_life > 1_000_000, "{recovered:?}");
    drop(journal);
    assert!(open(dir.path()).1.incomplete, "until that is accepted");
    // Also where the ballast is gone, as it is after a full disk: the lock says that there was one.
    for name in ["journal.redb", "ballast"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert!(open(dir.path()).1.incomplete, "there is neither file nor ballast");
}

/// A first opening that comes to nothing leaves no sign of a journal that was lost.
#[test]
fn a_first_opening_that_is_cut_short_is_none() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), testing::Disk::default());
    disk.refuse(true);
    assert!(testing::open_on(dir.path(), &disk).is_err());
    disk.refuse(false);
    let journal = testing::open_on(dir.path(), &disk).unwrap();
    assert!(!journal.take_recovered().unwrap().incomplete, "there was none");
    // A kill in the middle of the first one leaves the lock alone.
    let killed = tempfile::tempdir().unwrap();
    std::fs::write(killed.path().join("lock"), "").unwrap();
    assert!(!open(killed.path()).1.incomplete, "there was none");
}

/// A record in quarantine does not take along the one that was defined in its place, when the file is read as a damaged one.
#[test]
fn what_was_defined_anew_outlives_its_damaged_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 4);
    tamper(dir.path(), |txn| {
        txn.open_table(store::STATES).unwrap().insert(key(2).as_str(), [].as_slice()).unwrap();
    });
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered.sandboxes.len(), 3);
    write(&journal, key(2), define(2)).unwrap();
    drop(journal);
    let file = dir.path().join("journal.redb");
    let mut damaged = std::fs::read(&file).unwrap();
    damaged[0] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let (_journal, recovered) = open(dir.path());
    let keys: Vec<_> = recovered.sandboxes.iter().map(|sandbox| sandbox.key).collect();
    assert!(recovered.incomplete);
    assert_eq!(keys, [0, 1, 2, 3].map(key));
}
