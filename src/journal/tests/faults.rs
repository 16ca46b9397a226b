//! Faults while it runs: crashes at any moment, a system that refuses, a full file system.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use redb::StorageBackend;
use rustix::io::Errno;

use super::super::medium::{New, OnFile};
use super::*;

/// What a file does wrong, and what was seen of it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Changes of the file that still succeed; below 0, all do.
    sound: AtomicI64,
    /// How many fail after those.
    failing: AtomicI64,
    errno: AtomicI64,
    /// Files made anew do not fail.
    spares_new: AtomicBool,
    recorded: Mutex<Option<Recording>>,
    acknowledged: AtomicUsize,
}

/// What a power failure would leave, as of each sync.
#[derive(Debug, Default)]
struct Recording {
    synced: Vec<u8>,
    pending: Vec<Pending>,
    /// How many changes were acknowledged then, and the file.
    images: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Plan {
    pub(super) fn sound() -> Arc<Self> {
        Arc::new(Self { sound: AtomicI64::new(-1), ..Self::default() })
    }

    pub(super) fn medium(self: &Arc<Self>) -> Medium {
        let plan = Arc::clone(self);
        Arc::new(move |path, new: New| {
            let plan = Arc::clone(&plan);
            Ok(Box::new(Faulty { file: OnFile::open(path, new)?, new, plan }) as Box<dyn StorageBackend>)
        })
    }

    /// From now on: `sound` changes succeed, then `failing` fail with this error.
    pub(super) fn fail(&self, sound: i64, failing: i64, errno: Errno) {
        self.errno.store(errno.raw_os_error().into(), Ordering::SeqCst);
        self.failing.store(failing, Ordering::SeqCst);
        self.sound.store(sound, Ordering::SeqCst);
    }

    pub(super) fn heal(&self) {
        self.sound.store(-1, Ordering::SeqCst);
    }

    fn check(&self, new: New) -> io::Result<()> {
        if new == New::Yes && self.spares_new.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.sound.load(Ordering::SeqCst) < 0 {
            return Ok(());
        }
        if self.sound.load(Ordering::SeqCst) > 0 {
            self.sound.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        if self.failing.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(self.errno.load(Ordering::SeqCst) as i32))
    }

    fn record(&self, pending: Pending) {
        if let Some(recorded) = &mut *self.recorded.lock() {
            recorded.pending.push(pending);
        }
    }
}

#[derive(Debug)]
struct Faulty {
    file: OnFile,
    new: New,
    plan: Arc<Plan>,
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.check(self.new)?;
        self.plan.record(Pending::Length(len));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.plan.check(self.new)?;
        if let Some(recorded) = &mut *self.plan.recorded.lock() {
            recorded.sync(self.plan.acknowledged.load(Ordering::SeqCst));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.plan.check(self.new)?;
        self.plan.record(Pending::Write(offset, data.to_vec()));
        self.file.write(offset, data)
    }
}

impl Recording {
    /// Notes what there could be if the power failed just before this sync, and what there is after it.
    fn sync(&mut self, acknowledged: usize) {
        let seed = self.images.len() as u64;
        let every_second = |at: usize| mixed(seed << 16 | at as u64) & 1 == 0;
        self.images.push((acknowledged, self.applied(|_| true, false)));
        self.images.push((acknowledged, self.applied(|_| false, false)));
        self.images.push((acknowledged, self.applied(every_second, false)));
        self.images.push((acknowledged, self.applied(|_| true, true)));
        self.synced = self.applied(|_| true, false);
        self.pending.clear();
    }

    /// The file with some of the pending writes, the last of them torn if asked.
    fn applied(&self, keep: impl Fn(usize) -> bool, torn: bool) -> Vec<u8> {
        let mut image = self.synced.clone();
        for (at, pending) in self.pending.iter().enumerate() {
            match pending {
                Pending::Length(length) => image.resize(*length as usize, 0),
                Pending::Write(offset, data) if keep(at) => {
                    let half = torn && at + 1 == self.pending.len();
                    let length = if half { data.len() / 2 } else { data.len() };
                    let begin = *offset as usize;
                    image[begin..begin + length].copy_from_slice(&data[..length]);
                }
                Pending::Write(..) => {}
            }
        }
        image
    }
}

fn mixed(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
}

/// One change after the other, each waited for; the file is copied as of each sync, with all, none, some and half of what
/// was written since the one before. Each copy is opened, and holds whatever was acknowledged by then.
#[test]
fn every_acknowledged_record_survives_a_crash_at_any_sync() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    let synced = std::fs::read(dir.path().join("journal.redb")).unwrap();
    *plan.recorded.lock() = Some(Recording { synced, ..Recording::default() });
    let mut changes = Vec::new();
    for number in 0..24 {
        changes.push((key(number), define(number)));
        changes.push((key(number / 2), Change::State(state(Phase::Paused, number + 100))));
        if number % 5 == 4 {
            changes.push((key(number), Change::Remove));
        }
    }
    for (key, change) in &changes {
        write(&journal, *key, change.clone()).unwrap();
        plan.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    drop(journal);
    let images = plan.recorded.lock().take().unwrap().images;
    for (number, (acknowledged, image)) in images.iter().enumerate() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::write(dir.path().join("journal.redb"), image).unwrap();
        let (_journal, recovered) = open(dir.path());
        let what = format!("image {number} of {}, {acknowledged} changes acknowledged", images.len());
        assert!(!recovered.incomplete && recovered.damaged.is_empty(), "{what}: a crash is no damage");
        let found = by_key(&recovered);
        // What was under way may be there too.
        let expected =
            [*acknowledged, acknowledged + 1].map(|count| model(&changes[..count.min(changes.len())]));
        assert!(expected.contains(&found), "{what}: found {found:#?}");
    }
    println!("{} images of {} changes", images.len(), changes.len());
}

fn model(changes: &[(SandboxKey, Change)]) -> BTreeMap<SandboxKey, (Arc<[u8]>, SandboxRecord)> {
    let mut map = BTreeMap::new();
    for (key, change) in changes {
        match change {
            Change::Define(spec, state) => drop(map.insert(*key, (spec.clone(), *state))),
            Change::State(state) => {
                if let Some((_, known)) = map.get_mut(key) {
                    *known = *state;
                }
            }
            Change::Remove => drop(map.remove(key)),
        }
    }
    map
}

/// One refusal anywhere in a commit costs no caller anything: the file is opened again, and the group is written.
#[test]
fn a_single_refusal_is_made_good_before_anybody_hears_of_it() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for sound in 0..24 {
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            let plan = Plan::sound();
            let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
            write(&journal, key(1), define(1)).unwrap();
            plan.fail(sound, 1, errno);
            write(&journal, key(1), Change::State(state(Phase::Paused, 9))).unwrap();
            write(&journal, key(1), Change::State(state(Phase::Stopped, 10))).unwrap();
            drop(journal);
            let (_journal, recovered) = open(dir.path());
            assert_eq!(recovered.sandboxes.len(), 1, "{errno} after {sound}");
            assert_eq!(recovered.sandboxes[0].state, state(Phase::Stopped, 10), "{errno} after {sound}");
            assert!(!recovered.incomplete, "{errno} after {sound}");
        }
    }
}

/// The system refuses from some moment on. Callers hear so, and it is told why; when it lets up, all that was refused is
/// written, in its last state, without anybody asking again.
#[test]
fn what_was_refused_is_written_when_the_system_lets_up() {
    for (errno, kind) in [(Errno::IO, ErrorKind::Unavailable), (Errno::NOSPC, ErrorKind::ResourceExhausted)] {
        for sound in [0, 3] {
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            let plan = Plan::sound();
            let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
            for number in 0..3 {
                write(&journal, key(number), define(number)).unwrap();
            }
            assert_eq!(journal.trouble(), None);
            plan.fail(sound, i64::MAX, errno);
            let mut refused = 0;
            for number in 0..3 {
                let result = write(&journal, key(1), Change::State(state(Phase::Paused, 50 + number)));
                refused += u64::from(result.is_err());
                if let Err(error) = result {
                    assert_eq!(error.kind(), kind, "{error}");
                    assert!(error.to_string().contains("journal.redb"), "{error}");
                }
            }
            assert!(refused > 0);
            let removed = write(&journal, key(2), Change::Remove);
            let defined = write(&journal, key(3), define(3));
            assert!(removed.is_err() && defined.is_err(), "{removed:?} {defined:?}");
            assert!(journal.trouble().is_some_and(|trouble| trouble.contains("journal.redb")));
            plan.heal();
            // By itself, within its second.
            until(|| journal.trouble().is_none());
            drop(journal);
            let recovered = open(dir.path()).1;
            let states: Vec<_> =
                recovered.sandboxes.iter().map(|sandbox| (sandbox.key, sandbox.state)).collect();
            let expected = [
                (key(0), state(Phase::Running, 1)),
                (key(1), state(Phase::Paused, 52)),
                (key(3), state(Phase::Running, 4)),
            ];
            assert_eq!(states, expected, "{errno} after {sound}");
            assert!(!recovered.incomplete);
        }
    }
}

#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a test's own thread, which waits for a condition")]
pub(super) fn until(condition: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not come about in 30 s");
}

/// The file is overwritten under the running journal, and a write fails, so that it has to be read again: it is set aside,
/// and made anew from what its owner knows.
#[test]
fn a_file_damaged_while_it_runs_is_made_anew_from_the_source() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("journal.redb");
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    let epoch = journal.take_recovered().unwrap().epoch;
    for number in 0..5 {
        write(&journal, key(number), define(number)).unwrap();
    }
    let all = (0..5).map(|number| {
        let Change::Define(spec, state) = define(number) else { unreachable!("it is one") };
        Recorded { key: key(number), spec, state }
    });
    let all: Vec<_> = all.collect();
    journal.set_source(Arc::new(move || all.clone()));
    std::fs::write(&file, b"damage").unwrap();
    plan.fail(0, 1, Errno::IO);
    write(&journal, key(4), Change::Remove).unwrap();
    assert_eq!(journal.trouble(), None);
    drop(journal);
    let (_journal, recovered) = open(dir.path());
    assert_eq!(recovered.epoch, epoch + 1);
    assert_eq!(recovered.sandboxes.len(), 4);
    assert!(!recovered.incomplete, "its owner knows all there is");
    let aside = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let aside: Vec<_> = aside.filter(|path| path.display().to_string().contains("damaged")).collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(std::fs::read(&aside[0]).unwrap()[..6], *b"damage");
}

/// A source that knows of nothing is that of a keeper which is gone: what can be read of the file is kept.
#[test]
fn a_source_that_knows_of_nothing_is_not_believed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("journal.redb");
    filled(dir.path(), 5);
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    journal.set_source(Arc::new(Vec::new));
    let mut damaged = std::fs::read(&file).unwrap();
    damaged[0] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    plan.fail(0, 1, Errno::IO);
    write(&journal, key(7), define(7)).unwrap();
    drop(journal);
    let (_journal, recovered) = open(dir.path());
    assert!(recovered.incomplete);
    let keys: Vec<_> = recovered.sandboxes.iter().map(|sandbox| sandbox.key).collect();
    assert_eq!(keys, [0, 1, 2, 3, 4, 7].map(key));
}

/// The same without a source, and with the file gone: what was owed is written all the same.
#[test]
fn a_file_taken_away_while_it_runs_is_made_anew() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    write(&journal, key(1), define(1)).unwrap();
    std::fs::remove_file(dir.path().join("journal.redb")).unwrap();
    plan.fail(0, 1, Errno::IO);
    write(&journal, key(2), define(2)).unwrap();
    drop(journal);
    let (_journal, recovered) = open(dir.path());
    assert_eq!(recovered.sandboxes.len(), 1);
    assert!(recovered.incomplete);
}

/// The file lies on a bad place of a sound disk: after some refusals in a row it is set aside, and a new one lies elsewhere.
#[test]
fn a_file_that_can_never_be_written_again_is_made_anew() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    filled(dir.path(), 3);
    let plan = Plan::sound();
    let journal = Journal::open_on(dir.path(), plan.medium(), 1).unwrap();
    plan.spares_new.store(true, Ordering::SeqCst);
    plan.fail(0, i64::MAX, Errno::IO);
    let refused =
        (0..20).take_while(|_| write(&journal, key(1), Change::State(state(Phase::Paused, 9))).is_err());
    assert_eq!(refused.count(), 5);
    assert_eq!(journal.trouble(), None);
    write(&journal, key(4), define(4)).unwrap();
    drop(journal);
    let recovered = open(dir.path()).1;
    assert_eq!(recovered.sandboxes.len(), 4, "what was in the old one is read");
    assert_eq!(recovered.sandboxes[1].state, state(Phase::Paused, 9));
}

#[test]
fn whoever_panics_when_called_takes_nobody_along() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (journal, _) = open(dir.path());
    journal.write(key(1), define(1), Some(Box::new(|_| panic!("a caller's fault"))));
    write(&journal, key(2), define(2)).unwrap();
    drop(journal);
    assert_eq!(open(dir.path()).1.sandboxes.len(), 2);
}

/// A small file system of its own.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    /// Nothing if this process may not mount.
    fn mounted(options: &std::ffi::CStr) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options) {
            Ok(()) => Some(Self { dir }),
            Err(Errno::PERM) => None,
            Err(error) => panic!("cannot mount: {error}"),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// The file system fills up under the journal: nothing new begins, every end is written, and when there is room again what
/// was refused is written too.
#[test]
fn a_full_disk_still_lets_records_be_removed() {
    let Some(small) = Small::mounted(c"size=6m,mode=0700") else {
        println!("not run: it takes the right to mount");
        return;
    };
    let dir = small.dir.path().join("state");
    let (journal, _) = open(&dir);
    for number in 0..200 {
        write(&journal, key(number), define(number)).unwrap();
    }
    let filler = small.dir.path().join("filler");
    let filled = std::fs::write(&filler, vec![1; 6 << 20]);
    assert!(filled.is_err(), "it is full now");
    let big: Arc<[u8]> = vec![5; 64 << 10].into();
    let mut begun = 0;
    let refused = loop {
        let change = Change::Define(big.clone(), state(Phase::Defined, 0));
        match write(&journal, key(1_000 + begun), change) {
            Ok(()) => begun += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("room"), "{refused}");
    assert!(journal.trouble().is_some());
    // Each on its own, so that each needs a transaction of its own; states of others between them.
    for number in 0..150 {
        write(&journal, key(199 - number % 50), Change::State(state(Phase::Stopped, 300))).unwrap();
        write(&journal, key(number), Change::Remove).unwrap();
    }
    std::fs::remove_file(&filler).unwrap();
    until(|| journal.trouble().is_none());
    write(&journal, key(2_000), define(2_000)).unwrap();
    drop(journal);
    let (journal, recovered) = open(&dir);
    let keys: Vec<_> = recovered.sandboxes.iter().map(|sandbox| sandbox.key).collect();
    let expected: Vec<_> = (150..200).chain(1_000..=1_000 + begun).chain([2_000]).map(key).collect();
    assert_eq!(keys, expected);
    drop(journal);
}

/// It opens on a full file system too: the room kept back is enough for the numbers of an opening.
#[test]
fn a_full_disk_does_not_keep_it_from_opening() {
    let Some(small) = Small::mounted(c"size=6m,mode=0700") else {
        println!("not run: it takes the right to mount");
        return;
    };
    let dir = small.dir.path().join("state");
    filled(&dir, 200);
    assert!(std::fs::write(small.dir.path().join("filler"), vec![1; 6 << 20]).is_err(), "it is full now");
    for _ in 0..3 {
        let (journal, recovered) = open(&dir);
        assert_eq!((recovered.sandboxes.len(), recovered.incomplete), (200, false));
        write(&journal, key(7), Change::State(state(Phase::Stopped, 300))).unwrap();
    }
}
