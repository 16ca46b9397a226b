//! What a zygote that is not to stay does when its host is gone: ends every sandbox, and leaves nothing behind.
//!
//! All zygotes of a host do this at once; each does all of it, and what another has done already is no error.

use core::ffi::CStr;

use crate::sys::{self, Errno, Fd};
use crate::zygote::{LEAF, PARENT, ROOT};

/// How long the sandboxes' processes may take to end, in rounds of [`ROUND_MILLISECONDS`].
const ROUNDS: u32 = 400;
const ROUND_MILLISECONDS: u64 = 5;
/// How deep cgroups are removed below a sandbox's own.
const DEPTH: u32 = 4;

const AT_REMOVEDIR: usize = 0x200;
const DIRECTORY: u8 = 4;

pub(crate) fn clean_up() -> ! {
    let leaf = inode(LEAF, c"").ok();
    for _ in 0..ROUNDS {
        while sys::wait(-1, true).is_ok_and(|(pid, _)| pid > 0) {}
        let mut left = 0;
        for_each_dir(ROOT, &mut |name, inode| {
            if Some(inode) != leaf && (is_marked(name) || remove_tree(ROOT, name, DEPTH).is_err()) {
                left += u32::from(end_group(name).is_err());
            }
        });
        if left == 0 {
            break;
        }
        sys::sleep_milliseconds(ROUND_MILLISECONDS);
    }
    leave_own_group();
    remove_own_groups();
    sys::exit(0)
}

/// Leaves the leaf, so that it can be removed. If no process may be where this one goes, the leaf stays.
pub(crate) fn leave_own_group() {
    let _ = sys::write_at(PARENT, c"cgroup.procs", b"0");
}

/// Removes the leaf and the root if nothing is in them; of several that leave them, the last does.
pub(crate) fn remove_own_groups() {
    remove_by_inode(ROOT, inode(LEAF, c"").ok());
    if let Ok(above) = open_dir(ROOT, c"..") {
        remove_by_inode(above, inode(ROOT, c"").ok());
    }
}

/// Removes the directory of this inode, whatever it is called.
fn remove_by_inode(parent: Fd, wanted: Option<u64>) {
    for_each_dir(parent, &mut |name, inode| {
        if Some(inode) == wanted {
            let _ = remove(parent, name);
        }
    });
}

/// Ends and removes a group if it carries our mark. What does not, and has processes in it, is somebody else's: it stays, and
/// nothing is left to do.
fn end_group(name: &CStr) -> Result<(), Errno> {
    if !is_marked(name) {
        return Ok(());
    }
    let _ = kill_group(name);
    remove_tree(ROOT, name, DEPTH)
}

/// Whether a child of the root cgroup carries the mark that the host puts on each. On kernels without such attributes all do.
fn is_marked(name: &CStr) -> bool {
    let Ok(dir) = open_dir(ROOT, name) else { return false };
    let mut value = [0_u8; 256];
    let place = [dir as usize, c"user.sandkeeper".as_ptr() as usize, value.as_mut_ptr() as usize, value.len(), 0];
    // SAFETY: the name is a NUL-terminated string, and the buffer has the length that is told.
    let found = unsafe { sys::call(sys::FGETXATTR, place) };
    sys::close(dir);
    matches!(found, Ok(_) | Err(sys::ERANGE | sys::EOPNOTSUPP))
}

/// Kills every process in a child of the root cgroup.
fn kill_group(name: &CStr) -> Result<(), Errno> {
    let dir = open_dir(ROOT, name)?;
    let killed = sys::write_at(dir, c"cgroup.kill", b"1");
    sys::close(dir);
    killed.map(drop)
}

fn remove_tree(parent: Fd, name: &CStr, depth: u32) -> Result<(), Errno> {
    match remove(parent, name) {
        Ok(()) | Err(sys::ENOENT) => return Ok(()),
        Err(errno) if depth == 0 => return Err(errno),
        Err(_) => {}
    }
    let dir = open_dir(parent, name)?;
    for_each_dir(dir, &mut |name, _| {
        let _ = remove_tree(dir, name, depth - 1);
    });
    sys::close(dir);
    remove(parent, name)
}

fn remove(parent: Fd, name: &CStr) -> Result<(), Errno> {
    unlink(parent, name, AT_REMOVEDIR)
}

pub(crate) fn unlink(parent: Fd, name: &CStr, flags: usize) -> Result<(), Errno> {
    // SAFETY: the name is a NUL-terminated string.
    unsafe { sys::call(sys::UNLINKAT, [parent as usize, name.as_ptr() as usize, flags, 0, 0]) }.map(drop)
}

pub(crate) fn open_dir(parent: Fd, name: &CStr) -> Result<Fd, Errno> {
    sys::open_at(parent, name, sys::O_DIRECTORY | sys::O_CLOEXEC)
}

/// The inode number of what a descriptor leads to.
pub(crate) fn inode(fd: Fd, path: &CStr) -> Result<u64, Errno> {
    identity(fd, path).map(|(_, inode)| inode)
}

/// Its device, and its number there.
pub(crate) fn identity(fd: Fd, path: &CStr) -> Result<(u64, u64), Errno> {
    const EMPTY_PATH: usize = 0x1000;
    // struct stat of x86_64: device, then inode.
    let mut stat = [0_u64; 18];
    let arguments = [fd as usize, path.as_ptr() as usize, stat.as_mut_ptr() as usize, EMPTY_PATH, 0];
    // SAFETY: a NUL-terminated string, and room for the 144 bytes of a struct stat.
    unsafe { sys::call(sys::NEWFSTATAT, arguments) }?;
    Ok((stat[0], stat[1]))
}

/// Calls `each` with the name and inode of every directory in a directory, but `.` and `..`.
fn for_each_dir(dir: Fd, each: &mut dyn FnMut(&CStr, u64)) {
    // A descriptor of its own: a directory's descriptor remembers how far it was read.
    let Ok(reading) = open_dir(dir, c".") else { return };
    let mut buffer = [0_u8; 2048];
    loop {
        // SAFETY: the buffer is writable.
        let arguments = [reading as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0];
        let Ok(length @ 1..) = (unsafe { sys::call(sys::GETDENTS64, arguments) }) else { break };
        let mut entries = &buffer[..length];
        // struct linux_dirent64: inode, offset, length of the record, type, name.
        while let Some((record, rest)) = split_record(entries) {
            entries = rest;
            let inode = record.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            let Ok(name) = CStr::from_bytes_until_nul(&record[19..]) else { continue };
            if record[18] == DIRECTORY && name != c"." && name != c".." {
                each(name, inode);
            }
        }
    }
    sys::close(reading);
}

fn split_record(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u16::from_ne_bytes([*entries.get(16)?, *entries.get(17)?]);
    if length < 20 { None } else { entries.split_at_checked(length.into()) }
}
