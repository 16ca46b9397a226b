//! The socket that a daemon listens on: made without a moment at which others could reach it, and removed if still its own.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, ErrorKind};

/// The longest path that a socket can have: `sun_path`, less its terminator.
const LONGEST_PATH: usize = 107;

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// A unix socket that is listened on. Dropping it removes its file, if that is still its own.
pub struct Socket {
    pub(super) listener: UnixListener,
    /// Members of this group may speak to it, besides its owner and root.
    pub(super) group: Option<u32>,
    file: Option<(PathBuf, FileId)>,
}

impl Socket {
    /// Listens on a new socket at `path`, which only its owner (mode 0600) and the members of `group` (0660) can reach.
    ///
    /// What an earlier daemon left there is replaced; what is listened on is not. Needs a tokio runtime.
    ///
    /// # Errors
    /// - `InvalidArgument`: the path is longer than a socket's can be, or has no file name.
    /// - `AlreadyExists`: somebody listens there, or it is no socket.
    /// - `FailedPrecondition`, `PermissionDenied`: its directory is missing, or refuses.
    pub async fn bind(path: &Path, group: Option<u32>) -> Result<Self, Error> {
        let tried = format!("listen on {}", path.display());
        let refuse = |kind, found: String| Error::new(kind, tried.clone(), found);
        let size = path.as_os_str().len();
        if size > LONGEST_PATH {
            let found = format!("the path has {size} bytes; the limit is {LONGEST_PATH}");
            return Err(refuse(ErrorKind::InvalidArgument, found).remedy("choose a shorter one"));
        }
        let name = path
            .file_name()
            .ok_or_else(|| refuse(ErrorKind::InvalidArgument, "the path has no file name".to_owned()))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::FailedPrecondition,
            };
            refuse(kind, "its directory refuses".to_owned()).caused_by(error)
        };
        let _lock = lock(parent).await.map_err(failed)?;
        vacant(path).await.map_err(|found| {
            refuse(ErrorKind::AlreadyExists, found).remedy("end that daemon first, or choose another path")
        })?;
        let private = parent.join(format!(".{}.new", name.to_string_lossy()));
        let listener = bind_privately(&private, path, group);
        let cleared = clear(&private);
        let listener = listener.map_err(failed)?;
        cleared.map_err(failed)?;
        let file = FileId::of(path).map_err(failed)?;
        Ok(Self { listener, group, file: Some((path.to_owned(), file)) })
    }

    /// Takes a socket that somebody else has made and will remove, such as a service manager.
    pub fn from_listener(listener: UnixListener, group: Option<u32>) -> Self {
        Self { listener, group, file: None }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some((path, file)) = self.file.take() else { return };
        // Another daemon that replaced it has made another file.
        if FileId::of(&path).is_ok_and(|there| there == file)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the daemon's socket");
        }
    }
}

/// Locks a directory against other daemons that come or go at this moment.
async fn lock(directory: &Path) -> io::Result<fs::File> {
    let directory = fs::File::open(directory)?;
    let mut tries = 0;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            // Others hold it for a moment, and if it is for longer, then they are none of ours.
            Err(rustix::io::Errno::WOULDBLOCK) if tries < 100 => tries += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes sure that nobody listens at this path. The error says what is in the way.
async fn vacant(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("what is there cannot be looked at: {error}")),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err("a file is there that is no socket".to_owned()),
    }
    match tokio::time::timeout(Duration::from_secs(1), UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(format!("a socket of somebody else's is there: {error}"))
        }
        // It answers, or is too busy to.
        _ => Err("another daemon listens there".to_owned()),
    }
}

/// Removes what an attempt leaves.
fn clear(private: &Path) -> io::Result<()> {
    for gone in [fs::remove_file(private.join("s")), fs::remove_dir(private)] {
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the socket where nobody else can reach it, gives it its mode, and only then moves it to its place.
fn bind_privately(private: &Path, path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    clear(private)?;
    fs::DirBuilder::new().mode(0o700).create(private)?;
    let directory = fs::File::open(private)?;
    // By its descriptor: its path may be longer than a socket's can be.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", directory.as_raw_fd()))?;
    let socket = private.join("s");
    if group.is_some() {
        std::os::unix::fs::chown(&socket, None, group)?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(&socket, fs::Permissions::from_mode(mode))?;
    fs::rename(&socket, path)?;
    Ok(listener)
}
