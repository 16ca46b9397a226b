//! A little room kept back for when the file system is full, so that ends can be written down even then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::fault::Fault;

/// A transaction that removes one of 10,000 sandboxes writes some dozen pages; this is for many of them at once.
const BYTES: u64 = 1 << 20;

/// Takes the room: a hole would take none.
fn fill(mut file: &File) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, BYTES) {
        Err(Errno::OPNOTSUPP) => file.write_all(&vec![0; BYTES as usize]),
        taken => Ok(taken?),
    }
}

/// A file that is there only to be given up.
pub(super) struct Ballast {
    path: PathBuf,
    held: bool,
}

impl Ballast {
    /// Not held yet.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, held: false }
    }

    /// Whether one was left there.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Takes the room, if there is enough. Whether it has it now.
    pub(super) fn restore(&mut self) -> bool {
        if self.held {
            return true;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        self.held = match options.open(&self.path).and_then(|file| fill(&file)) {
            Ok(()) => true,
            Err(error) if matches!(Fault::of_io(&error), Fault::Full(_)) => {
                self.remove();
                false
            }
            // Not for want of room: nothing need be refused for that.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep room back for the journal");
                self.remove();
                true
            }
        };
        self.held
    }

    /// Gives the room up. Whether there was any to give.
    pub(super) fn release(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        self.remove();
        held
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot give up the room kept back for the journal");
        }
    }
}
