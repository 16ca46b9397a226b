//! The state directory: where the zygotes that outlive this program wait for the next one.
//!
//! ```text
//! <state_dir>/
//! ├── linux.lock       locked by the backend that uses it
//! ├── linux.root       where its cgroup root is
//! ├── empty/           nothing, ever: shown to sandboxes in this directory's place
//! └── zygotes/         for its owner alone
//!     └── <time>.sock  a zygote's, on which it waits for its next host
//! ```
//! Sockets are reached through a descriptor of their directory, so that its path may be as long as it likes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{kernel_error, workers};
use crate::error::{Error, ErrorKind};

/// What an error says was tried.
const TRIED: &str = "set up the linux backend";

/// How long a lock is tried for: a program that was just killed may still be on its way out.
const LOCKING: Duration = Duration::from_millis(250);

const LOCK: &str = "linux.lock";
const ROOT: &str = "linux.root";
pub(super) const SOCKETS: &str = "zygotes";
/// What is shown to a sandbox in this directory's place; see `off_limits`.
pub(super) const EMPTY: &str = "empty";
const SUFFIX: &str = ".sock";

/// A state directory that is ours for as long as this lives.
pub(super) struct StateDir {
    /// Without links and dots: two paths to one directory are one.
    pub(super) path: PathBuf,
    pub(super) sockets: Arc<Sockets>,
    dir: OwnedFd,
    lock: Mutex<Option<File>>,
}

impl StateDir {
    /// Takes the directory, which is made if it is not there.
    ///
    /// # Errors
    /// - [`ErrorKind::FailedPrecondition`]: another backend uses it, or others may change what is in it.
    pub(super) fn take(path: &Path, linger: Duration) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            kernel_error(TRIED, format!("{what} of the state directory {}", path.display()), error)
        };
        std::fs::create_dir_all(path).map_err(|error| failed("the making", error))?;
        let path = path.canonicalize().map_err(|error| failed("the path", error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| failed("the opening", error.into()))?;
        check_owner(&path, &dir)?;
        let lock = lock(&path, &dir)?;
        let made = rustix::fs::mkdirat(&dir, SOCKETS, Mode::RWXU);
        if let Err(error) = made
            && error != Errno::EXIST
        {
            return Err(failed("the sockets", error.into()));
        }
        match rustix::fs::mkdirat(&dir, EMPTY, Mode::from(0o555)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("the empty directory", error.into())),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let sockets = rustix::fs::openat(&dir, SOCKETS, flags, Mode::empty());
        let sockets = sockets.map_err(|error| failed("the sockets", error.into()))?;
        // It may have been made with a wider mode by somebody's hand.
        rustix::fs::chmodat(&dir, SOCKETS, Mode::RWXU, AtFlags::empty())
            .map_err(|error| failed("the sockets", error.into()))?;
        Ok(Self {
            path,
            sockets: Arc::new(Sockets { dir: sockets, linger }),
            dir,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Where the cgroup root of this directory was made, if that was written down.
    pub(super) fn root(&self) -> Option<PathBuf> {
        let file =
            rustix::fs::openat(&self.dir, ROOT, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).take(4096).read_to_string(&mut text).ok()?;
        let path = PathBuf::from(text.strip_suffix('\n')?);
        path.is_absolute().then_some(path)
    }

    /// Writes down where the cgroup root is.
    pub(super) fn note_root(&self, path: &Path) -> io::Result<()> {
        if self.root().as_deref() == Some(path) {
            return Ok(());
        }
        let next = "linux.root.next";
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.dir, next, flags, Mode::from(0o600))?);
        file.write_all(format!("{}\n", path.display()).as_bytes())?;
        Ok(rustix::fs::renameat(&self.dir, next, &self.dir, ROOT)?)
    }

    /// Lets another backend have it.
    pub(super) fn release(&self) {
        drop(self.lock.lock().take());
    }

    /// Removes all but the lock: there are no zygotes any more.
    pub(super) fn clear(&self) {
        for name in self.sockets.names() {
            self.sockets.remove(&name);
        }
        let all = [(SOCKETS, AtFlags::REMOVEDIR), (EMPTY, AtFlags::REMOVEDIR), (ROOT, AtFlags::empty())];
        for (name, flags) in all {
            if let Err(error) = rustix::fs::unlinkat(&self.dir, name, flags)
                && error != Errno::NOENT
            {
                tracing::warn!(name, %error, "left in the state directory");
            }
        }
    }
}

/// Whoever may change what is in it could put another process in a zygote's place.
fn check_owner(path: &Path, dir: &OwnedFd) -> Result<(), Error> {
    let stat = rustix::fs::fstat(dir).map_err(|error| {
        kernel_error(TRIED, format!("the state directory {}", path.display()), error.into())
    })?;
    let user = rustix::process::geteuid().as_raw();
    let refuse = |found: String, remedy: &'static str| {
        let found = format!("the state directory {} {found}", path.display());
        Err(Error::new(ErrorKind::FailedPrecondition, TRIED, found).remedy(remedy))
    };
    if stat.st_uid != user {
        return refuse(
            format!("belongs to user {}, and not to {user}", stat.st_uid),
            "choose another, or change its owner",
        );
    }
    if stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        return refuse(format!("may be changed by others (mode {mode:o})"), "chmod it to 0700");
    }
    Ok(())
}

/// Locks the directory. The lock goes with this program, and with it alone: zygotes do not inherit it.
fn lock(path: &Path, dir: &OwnedFd) -> Result<File, Error> {
    let failed =
        |error: Errno| kernel_error(TRIED, format!("the lock {}", path.join(LOCK).display()), error.into());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, LOCK, flags, Mode::from(0o600)).map_err(failed)?);
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if start.elapsed() < LOCKING => workers::pause(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Who it is serves people only.
                let _ = (&file).take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() { "another program" } else { holder };
                let found =
                    format!("the state directory {} is in use by {holder}: it holds {LOCK}", path.display());
                return Err(Error::new(ErrorKind::FailedPrecondition, TRIED, found)
                    .remedy("end that one first, or choose another directory"));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let noted = file.set_len(0).and_then(|()| file.rewind());
    if noted.and_then(|()| writeln!(file, "process {}", std::process::id())).is_err() {
        tracing::debug!("the lock does not tell who holds it");
    }
    Ok(file)
}

/// The directory of the zygotes' sockets.
pub(super) struct Sockets {
    pub(super) dir: OwnedFd,
    /// How long zygotes stay that have neither host nor child.
    pub(super) linger: Duration,
}

/// The file of a zygote's socket.
pub(super) struct Doorbell {
    pub(super) sockets: Arc<Sockets>,
    pub(super) name: String,
}

impl Doorbell {
    /// Removes it: its zygote has ended.
    pub(super) fn remove(&self) {
        self.sockets.remove(&self.name);
    }
}

impl Sockets {
    /// Makes a socket for a new zygote, which is to listen on it.
    pub(super) fn bind(self: &Arc<Self>) -> Result<(OwnedFd, Doorbell), Error> {
        let failed = |error: Errno| kernel_error("start a zygote", "its socket", error.into());
        let flags = SocketFlags::CLOEXEC;
        loop {
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
            let socket = socket.map_err(failed)?;
            // No two of one boot have the same, nor one of this boot and a living one of an earlier.
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let name = format!("{:x}{SUFFIX}", now.tv_sec as i128 * 1_000_000_000 + now.tv_nsec as i128);
            match rustix::net::bind(&socket, &self.address(&name).map_err(failed)?) {
                Ok(()) => return Ok((socket, Doorbell { sockets: Arc::clone(self), name })),
                Err(Errno::ADDRINUSE) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Connects to a zygote, without waiting.
    pub(super) fn connect(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &self.address(name)?)?;
        Ok(socket)
    }

    /// The names of all sockets.
    pub(super) fn names(&self) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&self.dir, ".", flags, Mode::empty()) else { return Vec::new() };
        let Ok(entries) = Dir::new(dir) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
        names.filter(|name| name.ends_with(SUFFIX)).collect()
    }

    /// Removes the socket of a zygote that has ended.
    pub(super) fn remove(&self, name: &str) {
        // What is gone is gone; anything else is looked at again by the next host.
        let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
    }

    fn address(&self, name: &str) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", self.dir.as_fd().as_raw_fd()))
    }
}
