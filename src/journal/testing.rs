//! Drives a journal alone, for benches, and opens one on a disk that refuses on demand.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use parking_lot::{Condvar, Mutex};
use redb::StorageBackend;

use super::medium::OnFile;
use super::{Change, Journal, SandboxRecord, boot};
use crate::error::Error;
use crate::id::SandboxKey;
use crate::model::{Life, Phase, Record};

/// A disk that can be told to refuse every write, or to let it wait.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<AtomicBool>, Arc<(Mutex<bool>, Condvar)>);

impl Disk {
    /// Refuses writes from now on, or takes them again.
    pub fn refuse(&self, refuses: bool) {
        self.0.store(refuses, Ordering::Release);
    }

    /// Lets writes wait from now on, or go on.
    pub fn hold(&self, holds: bool) {
        *self.1.0.lock() = holds;
        self.1.1.notify_all();
    }

    fn check(&self) -> io::Result<()> {
        let mut holds = self.1.0.lock();
        while *holds {
            self.1.1.wait(&mut holds);
        }
        match self.0.load(Ordering::Acquire) {
            true => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
struct OnDisk(OnFile, Disk);

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.check()?;
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.check()?;
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.1.check()?;
        self.0.write(offset, data)
    }
}

/// Opens a journal whose file lies on this disk.
///
/// # Errors
/// Those of [`Journal::open`].
pub fn open_on(dir: &Path, disk: &Disk) -> Result<Journal, Error> {
    let disk = disk.clone();
    let medium: super::medium::Medium = Arc::new(move |path, new| {
        Ok(Box::new(OnDisk(OnFile::open(path, new)?, disk.clone())) as Box<dyn StorageBackend>)
    });
    Journal::open_on(dir, medium, boot()?)
}

/// Defines these sandboxes, with a spec of so many bytes, and returns when all are durable.
///
/// # Panics
/// If one cannot be written.
pub fn define(journal: &Journal, keys: &[SandboxKey], spec_bytes: usize) {
    let spec: Arc<[u8]> = vec![7; spec_bytes].into();
    all(journal, keys, |number| Change::Define(Arc::clone(&spec), running(number)));
}

/// Writes a change of state of each of these sandboxes, and returns when all are durable.
///
/// # Panics
/// If one cannot be written.
pub fn append(journal: &Journal, keys: &[SandboxKey], life: u64) {
    all(journal, keys, |_| Change::State(running(life)));
}

/// How many sandboxes it held when it was opened, and the next life; once.
pub fn held(journal: &Journal) -> (usize, u64) {
    let recovered = journal.take_recovered().expect("nobody has asked before");
    (recovered.sandboxes.len(), recovered.next_life)
}

fn all(journal: &Journal, keys: &[SandboxKey], change: impl Fn(u64) -> Change) {
    let (done, outcomes) = mpsc::channel();
    for (number, key) in (1..).zip(keys) {
        let done = done.clone();
        let then = move |result| drop(done.send(result));
        journal.write(*key, change(number), Some(Box::new(then)));
    }
    drop(done);
    let written = outcomes.iter().map(|result| result.expect("it can be written")).count();
    assert_eq!(written, keys.len());
}

fn running(life: u64) -> SandboxRecord {
    let (ran, kept, shutdown) = (true, true, false);
    let record =
        Record { phase: Phase::Running, life: Life(life), ran, kept, shutdown, exit: None, until: None };
    SandboxRecord { record, created_at_unix_nanos: 1 << 60, started_at_unix_nanos: 1 << 60 }
}
