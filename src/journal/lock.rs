//! The directory of a journal, and the lock that keeps it one keeper's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, ErrorKind};

/// How long a lock that is held is tried for: long enough for a predecessor that is just ending.
const PATIENCE: Duration = Duration::from_secs(1);

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Makes the directory if need be, and refuses one that others may write to.
pub(super) fn prepare(dir: &Path) -> Result<(), Error> {
    let failed = |tried: &'static str, error: io::Error| refused(dir, tried, error);
    match fs::metadata(dir) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| failed("make", error))?;
        }
        Err(error) => return Err(failed("look at", error)),
    }
    let found = fs::metadata(dir).map_err(|error| failed("look at", error))?;
    let ours = rustix::process::geteuid().as_raw();
    let wrong = if !found.is_dir() {
        "it is no directory".to_owned()
    } else if found.uid() != ours {
        format!("it belongs to user {}, and this program runs as user {ours}", found.uid())
    } else if found.mode() & 0o022 != 0 {
        format!("its mode is {:03o}, so that others may write to it", found.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::PermissionDenied, format!("keep the journal in {}", dir.display()), wrong)
        .remedy("give it a directory of its own with mode 0700"))
}

/// Says where records will outlive the machine's memory at the price of a disk.
pub(super) fn mention_file_system(dir: &Path) {
    match rustix::fs::statfs(dir) {
        Ok(found) if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&(found.f_type as u64)) => {}
        Ok(found) => tracing::info!(
            dir = %dir.display(),
            file_system = format_args!("{:#x}", found.f_type),
            "the journal is not in memory; what runs dies with the machine anyhow, and each commit waits for a disk"
        ),
        Err(error) => {
            tracing::info!(dir = %dir.display(), %error, "cannot tell what file system the journal is on")
        }
    }
}

/// A directory that is ours for as long as this is kept. The kernel holds it, so it ends with the process at the latest.
pub(super) struct Lock {
    file: File,
    /// Whether the directory was a journal's already.
    pub(super) used: bool,
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(|error| refused(&path, "open", error))?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => pause(),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(dir, &path, &mut file)),
                Err(error) => return Err(refused(&path, "lock", error.into())),
            }
        }
        let used = file.metadata().is_ok_and(|found| found.len() > 0);
        let mut lock = Self { file, used };
        if used {
            lock.note_holder();
        }
        Ok(lock)
    }

    /// Notes who holds it, which also says that there is a journal. Without the number the lock is as good; on a full disk there
    /// is no room for it.
    pub(super) fn note_holder(&mut self) {
        let file = &mut self.file;
        let noted = file.rewind().and_then(|()| file.set_len(0));
        if let Err(error) = noted.and_then(|()| writeln!(file, "{}", std::process::id())) {
            tracing::debug!(%error, "cannot note who holds the lock");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "opening a journal is not for an async worker, and this is bounded"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn held(dir: &Path, path: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    let holder = match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    let found = format!("{holder} has it open and holds {}", path.display());
    Error::new(ErrorKind::FailedPrecondition, format!("open the journal in {}", dir.display()), found)
        .remedy("end that one first, or use another state directory")
}

/// An error of a file or directory that cannot be used.
pub(super) fn refused(path: &Path, tried: &str, error: io::Error) -> Error {
    use rustix::io::Errno;
    let (kind, remedy) = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            (ErrorKind::PermissionDenied, "run as its owner, or use another state directory")
        }
        Some(Errno::NOSPC | Errno::DQUOT) => (ErrorKind::ResourceExhausted, "make room on its file system"),
        Some(Errno::MFILE | Errno::NFILE) => (ErrorKind::ResourceExhausted, "raise the limit on open files"),
        _ => (ErrorKind::Internal, "use another state directory"),
    };
    let tried = format!("{tried} {}", path.display());
    Error::new(kind, tried, "the system refuses").caused_by(error).remedy(remedy)
}
