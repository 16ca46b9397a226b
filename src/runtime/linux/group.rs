//! One cgroup directory: reading and writing its files, and taking it down.
//!
//! Groups are reached through descriptors, one name below the other, and never by a path: a path could lead elsewhere by
//! the time it is used.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// The extended attribute that marks a group as ours. Its value says whose the group is, for people.
pub(super) const MARK: &CStr = c"user.sandkeeper";

/// How far the life has come that a group is for.
pub(super) const STAGE: &CStr = c"user.sandkeeper.stage";

/// What the sandbox's owner gave along.
pub(super) const KEEPSAKE: &CStr = c"user.sandkeeper.keepsake";

/// Opens the group `name` below `parent`; nothing if there is none.
pub(super) fn open(parent: impl AsFd, name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(group) => Ok(Some(group)),
        // ENODEV: it was removed between its lookup and the open.
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the group `name` below `parent`; nothing if there is one already.
pub(super) fn make(parent: impl AsFd, name: &str) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
        Ok(()) => open(parent, name),
        Err(Errno::EXIST) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number that no other group of this boot has, not even a later one of the same name.
pub(super) fn number(group: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(group)?.st_ino)
}

/// Marks a group as ours. Where the kernel has no such attributes (before Linux 5.7) this does nothing.
pub(super) fn mark(group: impl AsFd, whose: &str) -> io::Result<()> {
    set_attribute(group, MARK, whose.as_bytes())
}

/// Sets an attribute, where the kernel has any.
pub(super) fn set_attribute(group: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    match rustix::fs::fsetxattr(group, name, value, XattrFlags::empty()) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A short attribute, as text.
pub(super) fn attribute(group: impl AsFd, name: &CStr) -> Option<String> {
    let mut value = [0_u8; 256];
    let length = rustix::fs::fgetxattr(group, name, &mut value[..]).ok()?;
    Some(std::str::from_utf8(&value[..length]).ok()?.to_owned())
}

/// Takes an attribute away, if it is there.
pub(super) fn remove_attribute(group: impl AsFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::fremovexattr(group, name) {
        Ok(()) | Err(Errno::NOTSUP | Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a group carries our mark.
pub(super) fn is_marked(group: impl AsFd) -> bool {
    let mut value = [0_u8; 256];
    match rustix::fs::fgetxattr(group, MARK, &mut value[..]) {
        // A longer value than fits is a mark as well.
        Ok(_) | Err(Errno::RANGE) => true,
        Err(_) => false,
    }
}

/// Whether the group has such a file, that is, whether the kernel offers the control.
pub(super) fn has(group: impl AsFd, file: &str) -> bool {
    rustix::fs::accessat(group, file, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

/// Writes a file of the group.
pub(super) fn write(group: impl AsFd, file: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(group, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // A cgroup file takes a value in one write or not at all.
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    Ok(())
}

/// Reads a file of the group, whatever its length.
pub(super) fn read(group: impl AsFd, file: &str) -> io::Result<String> {
    use std::io::Read;
    let file = rustix::fs::openat(group, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a flat-keyed file of a few short lines and gives the number beside `key`.
pub(super) fn read_key(group: impl AsFd, file: &str, key: &str) -> io::Result<u64> {
    let file = rustix::fs::openat(group, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0_u8; 512];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer))?;
    std::str::from_utf8(&buffer[..length])
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("there is no key {key} in it")))
}

/// Whether a process lives in the group or below it. A zombie does not live.
pub(super) fn is_populated(group: impl AsFd) -> io::Result<bool> {
    gone_is(false, read_key(group, "cgroup.events", "populated").map(|populated| populated != 0))
}

/// Whether every process of the group is frozen.
pub(super) fn is_frozen(group: impl AsFd) -> io::Result<bool> {
    gone_is(false, read_key(group, "cgroup.events", "frozen").map(|frozen| frozen != 0))
}

/// A file of a group that has been removed meanwhile answers ENODEV or ENOENT.
fn gone_is<T>(value: T, result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if is_gone(&error) => Ok(value),
        result => result,
    }
}

/// Whether the error says that the group is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

/// Kills every process of the group and of those below it, frozen ones included, in one step that no fork escapes.
pub(super) fn kill(group: impl AsFd) -> io::Result<()> {
    gone_is((), write(group, "cgroup.kill", "1"))
}

/// The names of the groups right below.
pub(super) fn children(group: impl AsFd) -> io::Result<Vec<String>> {
    Ok(numbered_children(group)?.into_iter().map(|(_, name)| name).collect())
}

/// The numbers and names of the groups right below.
pub(super) fn numbered_children(group: impl AsFd) -> io::Result<Vec<(u64, String)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(group)? {
        let entry = entry?;
        // kernfs always tells the type.
        if entry.file_type() == FileType::Directory && entry.file_name().to_bytes().first() != Some(&b'.') {
            names.push((entry.ino(), entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(names)
}

/// Removes the group `name` below `parent` and every group below it. Whether it is gone now: a group with a process in
/// it, or one that somebody adds groups to at this moment, is not.
pub(super) fn remove(parent: impl AsFd, name: &str) -> io::Result<bool> {
    // The usual group has none below it. Try that first, at half the cost.
    for may_have_children in [false, true] {
        if may_have_children && let Some(group) = open(&parent, name)? {
            for child in children(&group)? {
                remove(&group, &child)?;
            }
        }
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The processes of the group and of those below it.
pub(super) fn processes(group: impl AsFd) -> io::Result<Vec<u32>> {
    let text = gone_is(String::new(), read(&group, "cgroup.procs"))?;
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(&group)? {
        if let Some(child) = open(&group, &child)? {
            pids.extend(processes(&child)?);
        }
    }
    Ok(pids)
}

/// The processes of the group in words: number, name and state of each.
pub(super) fn describe_processes(group: impl AsFd) -> Vec<String> {
    match processes(group) {
        Ok(pids) => pids.into_iter().map(describe_process).collect(),
        Err(error) => vec![format!("processes that cannot be listed: {error}")],
    }
}

fn describe_process(pid: u32) -> String {
    // It may have ended meanwhile; its number is all there is then.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|_| String::new());
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    match name {
        Some((name, rest)) => {
            format!("pid {pid} ({name}) in state {}", rest.trim_start().get(..1).unwrap_or("?"))
        }
        None => format!("pid {pid}"),
    }
}
