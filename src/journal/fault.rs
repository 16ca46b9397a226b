//! What can go wrong with the file, told apart by what helps against it.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};

/// Why the file could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no room on the file system.
    Full(String),
    /// The system refused a read or a write. The file itself may be sound.
    Io(String),
    /// This program has no right to the file.
    Denied(String),
    /// This program has no descriptor or no memory left.
    Scarce(String),
    /// What the file says makes no sense.
    Broken(String),
    /// This program itself has failed.
    Ours(String),
}

impl Fault {
    pub(super) fn of_io(error: &io::Error) -> Self {
        let text = error.to_string();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Fault::Full(text),
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::ISDIR) => Fault::Denied(text),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Fault::Scarce(text),
            Some(Errno::NOENT) => Fault::Broken("it is gone".to_owned()),
            Some(_) => Fault::Io(text),
            // Not the system's: redb found too few bytes, or others than its own.
            None => Fault::Broken(text),
        }
    }

    fn of_redb(error: &redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => Self::of_io(error),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Fault::Io(error.to_string()),
            _ => Fault::Broken(error.to_string()),
        }
    }

    fn of_panic(panic: &(dyn Any + Send)) -> Self {
        Fault::Broken(format!("the database panicked: {}", panic_text(panic)))
    }

    /// A panic that is none of the database's.
    pub(super) fn of_our_own(panic: &(dyn Any + Send)) -> Self {
        Fault::Ours(panic_text(panic).to_owned())
    }

    fn remedy(&self) -> &'static str {
        match self {
            Fault::Full(_) => "make room on its file system",
            Fault::Io(_) => "look at the disk and the kernel's log",
            Fault::Denied(_) => "look at the file's owner and mode",
            Fault::Scarce(_) => "raise this program's limits",
            Fault::Broken(_) => "look at the file system",
            Fault::Ours(_) => "it is a fault of this program's, which its maintainers want to hear of",
        }
    }

    /// What a caller is told whose change could not be written.
    pub(super) fn refusal(&self, file: &Path) -> Error {
        let kind = match self {
            Fault::Full(_) | Fault::Scarce(_) => ErrorKind::ResourceExhausted,
            Fault::Io(_) | Fault::Denied(_) | Fault::Broken(_) | Fault::Ours(_) => ErrorKind::Unavailable,
        };
        let remedy = format!("{}; it is tried again every second", self.remedy());
        Error::new(kind, format!("write {}", file.display()), self.to_string()).remedy(remedy)
    }

    /// What whoever opens the journal is told if there is no way to.
    pub(super) fn no_opening(&self, file: &Path) -> Error {
        let kind = match self {
            Fault::Full(_) | Fault::Scarce(_) => ErrorKind::ResourceExhausted,
            Fault::Denied(_) => ErrorKind::PermissionDenied,
            Fault::Io(_) | Fault::Broken(_) | Fault::Ours(_) => ErrorKind::Internal,
        };
        let remedy = format!("{}, or use another state directory", self.remedy());
        Error::new(kind, format!("open {}", file.display()), self.to_string()).remedy(remedy)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Full(text) => write!(f, "there is no room: {text}"),
            Fault::Io(text) | Fault::Denied(text) | Fault::Scarce(text) => {
                write!(f, "the system refuses: {text}")
            }
            Fault::Broken(text) => write!(f, "it is damaged: {text}"),
            Fault::Ours(text) => write!(f, "this program failed: {text}"),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// Runs what touches the database. On a damaged file it may panic; that is an answer like another.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Stop>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Stop(fault))) => Err(fault),
        Err(panic) => Err(Fault::of_panic(&*panic)),
    }
}

/// A fault on its way out of guarded work: `?` makes one of any of redb's errors.
#[derive(Debug)]
pub(super) struct Stop(pub(super) Fault);

impl<E: Into<redb::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop(Fault::of_redb(&error.into()))
    }
}
