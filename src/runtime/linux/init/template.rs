//! The mount tree that every sandbox starts from, made once per zygote.
//!
//! A clone into new mount and user namespaces copies these dozen mounts and locks each copy, so that the
//! sandbox can undo none. That is far cheaper than building a tree each time.

use core::ffi::CStr;

use crate::protocol::Step;
use crate::sys::{self, AT_FDCWD, Fd, ms};
use crate::users::Users;
use crate::{At, Failure};

/// What there is to mount on.
const DIRECTORIES: [&CStr; 20] = [
    c"dev", c"dev/pts", c"dev/shm", c"proc", c"sys", c"tmp", c"etc", c"usr", c"bin", c"sbin", c"lib",
    c"lib64", c"opt", c"mnt", c"home", c"root", c"run", c"srv", c"var", c"var/tmp",
];

/// Where devices are, and where they go.
const DEVICES: [(&CStr, &CStr); 6] = [
    (c"/dev/null", c"dev/null"),
    (c"/dev/zero", c"dev/zero"),
    (c"/dev/full", c"dev/full"),
    (c"/dev/random", c"dev/random"),
    (c"/dev/urandom", c"dev/urandom"),
    (c"/dev/tty", c"dev/tty"),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

/// Makes the tree in a mount namespace of its own, and makes it the root.
pub(crate) fn build(users: Users) -> Result<(), Failure> {
    sys::unshare(sys::ns::MOUNT).at(Step::OwnMounts)?;
    sys::mount(c"", c"/", c"", ms::REC | ms::PRIVATE, c"").at(Step::OwnMounts)?;
    // /proc surely is a directory, since the zygote was executed through it, and unlike /dev it is not needed
    // below.
    sys::mount(c"tmpfs", c"/proc", c"tmpfs", ms::NOSUID | ms::NODEV, c"mode=0755,size=64k")
        .at(Step::Template)?;
    sys::change_dir(c"/proc").at(Step::Template)?;
    for dir in DIRECTORIES {
        sys::make_dir(AT_FDCWD, dir, 0o755).at(Step::Template)?;
    }
    for (target, path) in LINKS {
        sys::symlink(target, path).at(Step::Template)?;
    }
    for (device, path) in DEVICES {
        bind_device(device, path).at(Step::Devices)?;
    }
    mount_dead_proc()?;
    if users == Users::One {
        cover_sys().at(Step::MountSys)?;
    }
    match sys::pivot_to_working_dir() {
        // The host's root is the initial ramfs, or no mount at all. Then the tree goes on top of it, which
        // from below a lesser user namespace cannot be lifted either.
        Err(sys::EINVAL) => cover_root(),
        other => other,
    }
    .at(Step::Pivot)?;
    let sealed = ms::REMOUNT | ms::BIND | ms::RDONLY | ms::NOSUID | ms::NODEV;
    sys::mount(c"", c"/", c"", sealed, c"").at(Step::Template)?;
    Ok(())
}

fn cover_root() -> sys::Outcome {
    sys::mount(c".", c"/", c"", ms::MOVE, c"")?;
    sys::change_root_here()?;
    sys::change_dir(c"/")
}

/// Shows a device of the host. Read-only concerns its inode: it can be written to, but not given away or made
/// executable.
fn bind_device(device: &CStr, path: &CStr) -> sys::Outcome {
    let file = sys::open_at(AT_FDCWD, path, sys::O_CREAT | sys::O_WRONLY | sys::O_CLOEXEC)?;
    sys::close(file);
    sys::mount(device, path, c"", ms::BIND, c"")?;
    sys::mount(c"", path, c"", ms::REMOUNT | ms::BIND | ms::RDONLY | ms::NOSUID | ms::NOEXEC, c"")
}

/// Mounts the proc of a PID namespace that has ended. It lists no process, ever; and it is what the kernel
/// wants to see whole in a mount namespace before it lets a sandbox mount a proc of its own. Therefore
/// nothing may be mounted below it.
fn mount_dead_proc() -> Result<(), Failure> {
    let Some((pid, pidfd)) = sys::clone3(sys::ns::PID, None).at(Step::DeadProc)? else {
        let flags = ms::NOSUID | ms::NODEV | ms::NOEXEC;
        let mounted = sys::mount(c"proc", c"proc", c"proc", flags, c"");
        sys::exit(mounted.err().unwrap_or(0))
    };
    sys::close(pidfd);
    let (_, status) = sys::wait(pid as i32, false).at(Step::DeadProc)?;
    match status >> 8 & 0xff {
        0 if status == 0 => Ok(()),
        errno => Err((Step::DeadProc, errno)),
    }
}

/// Mounts a sysfs, and an empty directory over it. As with the proc, the kernel wants to see one in a mount namespace before
/// it lets anybody but the host's root mount another, which builders do; and nobody is to look into this one.
fn cover_sys() -> sys::Outcome {
    let flags = ms::NOSUID | ms::NODEV | ms::NOEXEC;
    sys::mount(c"sysfs", c"sys", c"sysfs", flags, c"")?;
    sys::mount(c"tmpfs", c"sys", c"tmpfs", flags | ms::RDONLY, c"size=4k,nr_inodes=2,mode=555")
}

/// Opens the network or mount namespace that this process is in.
pub(crate) fn own_namespace(proc: Fd, path: &CStr) -> Result<Fd, sys::Errno> {
    sys::open_at(proc, path, sys::O_CLOEXEC)
}
