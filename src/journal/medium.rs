//! What the file lies on: the seam between redb and the system, where tests put faults.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

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

/// redb takes a backend by value, and this one is chosen while the program runs.
#[derive(Debug)]
pub(super) struct Chosen(pub(super) Box<dyn StorageBackend>);

impl StorageBackend for Chosen {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
