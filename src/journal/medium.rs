//! What the file lies on: the seam between redb and the system, where tests put faults.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

/// Opens what redb keeps its pages in: the file at a path, made anew (empty) if asked.
pub(crate) type Medium = Arc<dyn Fn(&Path, New) -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// Whether a file is to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum New {
    Yes,
    No,
}

/// A real file. redb would lock it too; the directory's lock covers it, and tells who holds it.
#[derive(Debug)]
pub(crate) struct OnFile {
    file: File,
}

impl OnFile {
    pub(crate) fn open(path: &Path, new: New) -> io::Result<Self> {
        let new = new == New::Yes;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(new).truncate(new).mode(0o600);
        Ok(Self { file: options.open(path)? })
    }
}

impl StorageBackend for OnFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// Files, and no faults but the system's own.
pub(crate) fn files() -> Medium {
    Arc::new(|path, new| Ok(Box::new(OnFile::open(path, new)?) as Box<dyn StorageBackend>))
}

/// What redb gets: it takes a backend by value, and this one is chosen while the program runs. Until it is
/// [trusted](Trial::accept) it notes what it overwrites.
#[derive(Debug)]
pub(super) struct Chosen {
    medium: Box<dyn StorageBackend>,
    trial: Trial,
}

impl Chosen {
    pub(super) fn new(medium: Box<dyn StorageBackend>) -> io::Result<(Self, Trial)> {
        let undo = Undo { length: medium.len()?, overwritten: Vec::new() };
        let trial = Trial(Arc::new(Mutex::new(Some(undo))));
        Ok((Self { medium, trial: trial.clone() }, trial))
    }

    /// Notes what is to be overwritten.
    fn note(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut trial = self.trial.0.lock();
        let Some(undo) = &mut *trial else { return Ok(()) };
        let end = offset.saturating_add(length).min(undo.length).min(self.medium.len()?);
        if offset < end {
            let mut before = vec![0; (end - offset) as usize];
            self.medium.read(offset, &mut before)?;
            undo.overwritten.push((offset, before));
        }
        Ok(())
    }
}

/// An opening on trial: on a damaged file redb may begin a repair and give up in the middle of it.
#[derive(Debug, Clone)]
pub(super) struct Trial(Arc<Mutex<Option<Undo>>>);

#[derive(Debug)]
struct Undo {
    length: u64,
    overwritten: Vec<(u64, Vec<u8>)>,
}

impl Trial {
    /// It went well: nothing is noted any more.
    pub(super) fn accept(&self) {
        *self.0.lock() = None;
    }

    /// It did not: gives the file what it held before.
    pub(super) fn undo(&self, path: &Path) -> io::Result<()> {
        let Some(undo) = self.0.lock().take() else { return Ok(()) };
        let file = OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() != undo.length {
            file.set_len(undo.length)?;
        }
        for (offset, before) in undo.overwritten.iter().rev() {
            file.write_all_at(before, *offset)?;
        }
        Ok(())
    }
}

impl StorageBackend for Chosen {
    fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(len, u64::MAX)?;
        self.medium.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.medium.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(offset, data.len() as u64)?;
        self.medium.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.medium.close()
    }
}
