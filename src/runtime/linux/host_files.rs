//! Opens what a spec names on the host: mount trees, and files for standard input and output.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::spec::{RootFs, SandboxSpec};

/// How a tree of the host appears inside a sandbox. Never with devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    /// With the mounts below it.
    pub(super) recursive: bool,
    pub(super) read_only: bool,
    /// Set-user-ID bits have no effect.
    pub(super) no_setuid: bool,
}

/// A detached copy of the mount tree at `path`. `what` names its purpose in the error.
///
/// It is private: what is mounted on the copy later never appears on the host, nor the other way round.
pub(super) fn open_tree(what: &str, path: &Path, attributes: Attributes) -> Result<OwnedFd, Error> {
    let refuse = |errno: io::Error| refused(what, path, errno);
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|error| refuse(error.into()))?;
    let recursive = if attributes.recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = rustix::mount::OpenTreeFlags::from_bits_retain(recursive)
        | rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
        | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &text, flags).map_err(|errno| refuse(errno.into()))?;
    let mut set = libc::MOUNT_ATTR_NODEV;
    if attributes.read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    if attributes.no_setuid {
        set |= libc::MOUNT_ATTR_NOSUID;
    }
    let change = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: an empty NUL-terminated path, and a structure of the size that is given; neither is kept.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH as u32 | recursive,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(tree) } else { Err(refuse(io::Error::last_os_error())) }
}

/// A directory or file, by whatever path: its device, and its number there.
pub(super) type Identity = (u64, u64);

pub(super) fn identity(stat: &rustix::fs::Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// What is at `path`, if this process's user may reach it.
pub(super) fn check_source(what: &str, path: &Path) -> Result<Identity, Error> {
    let opened = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let stat = opened.and_then(rustix::fs::fstat);
    stat.map(|stat| identity(&stat)).map_err(|errno| refused(what, path, errno.into()))
}

/// What of the host a spec shows: the root's directory, if there is one, and a source per mount; and whether it is writable.
pub(super) fn sources(spec: &SandboxSpec) -> impl Iterator<Item = (&'static str, &Path, bool)> {
    let root = match &spec.root {
        RootFs::Minimal => None,
        RootFs::Directory { path, writable } => Some(("the root", &**path, *writable)),
        RootFs::HostReadOnly => Some(("the root", Path::new("/"), false)),
    };
    let mounts = spec.mounts.iter();
    root.into_iter().chain(mounts.map(|mount| ("the source of a mount", &*mount.source, mount.writable)))
}

/// Opens a file for a process's standard input, or its output.
pub(super) fn open_stdio(path: &Path, output: bool) -> Result<OwnedFd, Error> {
    let refuse = |errno: Errno| refused("a file for standard input or output", path, errno.into());
    let base = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let flags = if output { OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND } else { OFlags::RDONLY };
    // Not blocking, since a FIFO would wait for its other end. For writing, one without a reader is opened
    // both ways: that waits for nobody, and whoever opens it later reads what was written.
    let fd = match open(path, base | flags, Mode::from_raw_mode(0o640)) {
        Err(Errno::NXIO) if output => open(path, base | OFlags::RDWR, Mode::empty()),
        other => other,
    }
    .map_err(refuse)?;
    let flags = fcntl_getfl(&fd).map_err(refuse)?;
    fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map_err(refuse)?;
    Ok(fd)
}

fn refused(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            ErrorKind::InvalidArgument
        }
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::FailedPrecondition,
    };
    Error::new(kind, "start", format!("{what}, {path:?} on the host, cannot be opened")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileTypeExt;

    use super::super::rig::Scratch;
    use super::*;

    /// Goal: neither end of a FIFO has to be there. Method: open it for output first, when nobody reads, and
    /// read later.
    #[test]
    fn a_fifo_without_its_other_end_does_not_block() {
        let scratch = Scratch::new();
        let path = scratch.0.join("fifo");
        rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo());
        let output = open_stdio(&path, true).unwrap();
        let input = open_stdio(&path, false).unwrap();
        for fd in [&output, &input] {
            assert!(!fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK), "a process expects to block");
        }
        std::fs::File::from(output).write_all(b"late").unwrap();
        let mut read = [0; 4];
        std::fs::File::from(input).read_exact(&mut read).unwrap();
        assert_eq!(&read, b"late");
    }

    #[test]
    fn output_is_appended_and_what_is_missing_is_named() {
        let scratch = Scratch::new();
        let path = scratch.0.join("output");
        for text in ["one\n", "two\n"] {
            std::fs::File::from(open_stdio(&path, true).unwrap()).write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let error = open_stdio(&scratch.0.join("missing"), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
