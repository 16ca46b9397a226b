//! What is written down: for each sandbox what it is to be and what was going on, so that nothing is lost when the program
//! that supervises it is killed.
//!
//! `docs/journal.md` draws the format and says what each fault leads to.

mod ballast;
mod batch;
mod fault;
mod lock;
mod medium;
mod record;
mod rows;
mod salvage;
mod store;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::Record;
use lock::Lock;
use medium::Medium;
use store::Place;
use writer::{Running, Writer};

/// The journal of one keeper: a directory that is locked while it is open. Cloning gives another handle to it.
///
/// Dropping the last handle writes what is queued, and closes it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    recovered: Mutex<Option<Recovered>>,
    writer: Running,
}

/// What is written of one sandbox beside its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SandboxRecord {
    /// Its lifecycle.
    pub(crate) record: Record,
    /// When it was defined, in nanoseconds since the Unix epoch.
    pub(crate) created_at_unix_nanos: i64,
    /// When the current life's leader ran; 0 if it has not.
    pub(crate) started_at_unix_nanos: i64,
}

/// A change to write. For one sandbox they are written in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A sandbox, with its spec as its owner encoded it.
    Define(Arc<[u8]>, SandboxRecord),
    /// What is going on with it.
    State(SandboxRecord),
    /// It is gone.
    Remove,
}

/// Called once a change is durable, or cannot be made so now. From a thread of the journal's; must not block.
pub(crate) type Then = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// All that is to be written, read when it is needed.
pub(crate) type Source = Arc<dyn Fn() -> Vec<Recorded> + Send + Sync>;

/// What an opened journal held.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Every sandbox whose record could be read, in the order of the text of their keys.
    pub(crate) sandboxes: Vec<Recorded>,
    /// What could not be read, and was put aside: now or at an earlier opening, if it has not been
    /// [accepted](Journal::accept_losses) as lost since and no later record stands in for it.
    pub(crate) damaged: Vec<Damaged>,
    /// Whether records may be missing, so that what exists without one may be somebody's: the file was damaged or not of this
    /// format, and was set aside, or was gone. It stays so over later openings until it is [accepted](Journal::accept_losses).
    pub(crate) incomplete: bool,
    /// Counts up with every opening of this journal; starts at 1.
    pub(crate) epoch: u64,
    /// A number above every life that was ever written.
    pub(crate) next_life: u64,
    /// Whether it was last open in this boot of the machine. If not, nothing of what it says is alive.
    pub(crate) same_boot: bool,
}

/// One sandbox that a journal knew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) key: SandboxKey,
    pub(crate) spec: Arc<[u8]>,
    pub(crate) state: SandboxRecord,
}

/// A record that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damaged {
    /// Whose it was, where that can be told.
    pub(crate) key: Option<SandboxKey>,
    /// What is wrong with it.
    pub(crate) why: String,
}

impl Journal {
    /// Opens the journal in a directory, which is made if need be, and locks it.
    ///
    /// A file in it that is damaged is set aside, never wiped, and what can be read of it is kept.
    ///
    /// # Errors
    /// - `FailedPrecondition`: another process has it open; the message says which.
    /// - `PermissionDenied`, `ResourceExhausted`, `Internal`: the directory cannot be used.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_on(dir.as_ref(), medium::files(), boot()?)
    }

    /// Opens it on files of one's own making, in a boot of one's own choosing.
    pub(crate) fn open_on(dir: &Path, medium: Medium, boot: u64) -> Result<Self, Error> {
        lock::prepare(dir)?;
        lock::mention_file_system(dir);
        let lock = Lock::take(dir)?;
        let place = Place { dir: dir.to_owned(), medium, boot };
        let (writer, recovered) = Writer::open(place, lock)?;
        let writer = writer.run()?;
        Ok(Self {
            inner: Arc::new(Inner { dir: dir.to_owned(), recovered: Mutex::new(Some(recovered)), writer }),
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// What it held when it was opened. Once; nothing the second time.
    pub(crate) fn take_recovered(&self) -> Option<Recovered> {
        self.inner.recovered.lock().take()
    }

    /// Where all that is to be written can be read, should the file have to be made anew. Called on the journal's thread.
    pub(crate) fn set_source(&self, source: Source) {
        self.inner.writer.set_source(source);
    }

    /// Writes a change, together with whatever else is waiting. Returns at once; `then` hears when it is durable.
    ///
    /// A change that cannot be written is kept, and tried again every second and with the next change, until it is written
    /// or a later change of that sandbox takes its place. So whoever gives up what `then` was told has failed says so by
    /// another change: a Define that was refused is taken back with Remove.
    pub(crate) fn write(&self, key: SandboxKey, change: Change, then: Option<Then>) {
        self.inner.writer.write(key, change, then);
    }

    /// Returns once every change given before is durable, or has failed. Blocks its thread.
    pub fn flush(&self) {
        self.inner.writer.flush();
    }

    /// Why changes cannot be written at the moment; nothing if they can.
    pub fn trouble(&self) -> Option<String> {
        self.inner.writer.trouble()
    }

    /// Notes that records are missing, which the journal itself cannot know: later openings mention it until that is
    /// [accepted](Self::accept_losses). Gives a number above every life that may have been used. Returns at once; it is
    /// written before any later change.
    pub(crate) fn note_losses(&self) -> u64 {
        let life = salvage::unix_millis();
        self.inner.writer.note_losses(life);
        life + 1
    }

    /// Declares that what is missing or damaged is lost: later openings do not mention it any more. What was set aside is
    /// kept. Blocks its thread.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn accept_losses(&self) -> Result<(), Error> {
        self.inner.writer.accept_losses()
    }
}

/// A number of this boot of the machine.
fn boot() -> Result<u64, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(|error| lock::refused(path, "read", error))?;
    // Half of its random bits; 0 stands for none.
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).skip(16).take(16).collect();
    let number = u64::from_str_radix(&digits, 16);
    let number = number.map_err(|_| {
        Error::new(ErrorKind::Internal, format!("read {}", path.display()), format!("it says {text:?}"))
    })?;
    Ok(number.max(1))
}
