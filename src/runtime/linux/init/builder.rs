//! A builder: makes the mount tree of a sandbox that has a root or mounts of its own.
//!
//! It works in a mount namespace that the host's user namespace owns, on trees that the host has opened. When
//! the tree stands it reports so and waits for its end. A leader is then cloned from within this mount
//! namespace: the clone into a lesser user namespace locks every mount, which a leader that mounted for
//! itself could not do. And only a builder hangs when a file system does.

use core::ffi::CStr;

use crate::line::Line;
use crate::protocol::{Decoded, Report, Step, bytes_of, flag};
use crate::sys::{self, AT_FDCWD, Fd, ms, ns};
use crate::zygote::{HOST_MOUNTS, PROC, Received};
use crate::{At, Failure, loopback, orphan, report_of, template};

/// What of /sys tells too much of the machine, or could change it.
const MASKED_SYS: [&CStr; 3] = [c"/sys/firmware", c"/sys/devices/virtual/powercap", c"/sys/fs/bpf"];
/// Where the new root is put together, before it becomes the root.
const PLACE: &CStr = c"/mnt";
/// How directories are opened to work in.
const HERE: usize = sys::O_PATH | sys::O_DIRECTORY | sys::O_CLOEXEC;

pub(crate) fn run(plan: &Decoded<'_>, mut fds: Received) -> ! {
    sys::set_name(c"sk-builder".as_ptr());
    let Ok(pipe) = fds.next() else { sys::exit(1) };
    let report =
        build(plan, &mut fds).map_or_else(report_of, |()| Report { step: Step::Built as u32, errno: 0 });
    let _ = sys::write(pipe, bytes_of(&report));
    let _ = sys::close_from(0);
    loop {
        let _ = sys::plain(sys::PAUSE, [0; 5]);
    }
}

fn build(plan: &Decoded<'_>, fds: &mut Received) -> Result<(), Failure> {
    // Until it is told to end, it would keep the host's end from being seen.
    sys::close(crate::zygote::CONTROL);
    open_sources(plan, fds)?;
    if let Some(network) = fds.next_if(plan.has(flag::NET_GIVEN))? {
        sys::set_ns(network, ns::NET).at(Step::BuilderNetwork)?;
    } else if plan.has(flag::NET_FRESH) {
        sys::unshare(ns::NET).at(Step::BuilderNetwork)?;
        if plan.has(flag::ONE_USER) {
            loopback::bring_up().at(Step::BuilderNetwork)?;
        }
    }
    if plan.has(flag::ROOT_GIVEN) {
        attach_root(fds.next()?)?;
    }
    let root = sys::open_at(AT_FDCWD, c".", HERE).at(Step::AttachRoot)?;
    if plan.has(flag::ROOT_GIVEN) {
        bind(root, c"/dev").at(Step::BindDev)?;
        bind(root, c"/proc").at(Step::BindProc)?;
    }
    mount_sys(plan, root)?;
    mount_writable(plan, root)?;
    for target in plan.mounts {
        let tree = fds.next()?;
        let target = CStr::from_bytes_with_nul(target).map_err(|_| (Step::Understand, sys::EINVAL))?;
        let target = sys::open_in_root(root, target).at(Step::FindTarget)?;
        sys::attach(tree, target).at(Step::AttachMount)?;
        sys::close(target);
    }
    if plan.has(flag::ROOT_GIVEN) {
        sys::pivot_to_working_dir().at(Step::Pivot)?;
    }
    Ok(())
}

/// Opens the trees that the host could not: it has no right to, and one that belongs to its mount namespace could not be
/// attached here.
fn open_sources(plan: &Decoded<'_>, fds: &mut Received) -> Result<(), Failure> {
    if plan.fixed.sources == 0 {
        return Ok(());
    }
    let own = template::own_namespace(PROC, c"self/ns/mnt").at(Step::JoinMounts)?;
    sys::set_ns(HOST_MOUNTS, ns::MOUNT).at(Step::JoinMounts)?;
    for text in plan.sources {
        fds.add(open_source(text).at(Step::OpenSource)?)?;
    }
    sys::set_ns(own, ns::MOUNT).at(Step::JoinMounts)?;
    sys::close(own);
    Ok(())
}

/// A detached copy of a tree of the host, as its first byte says. With all that is mounted below: the kernel lets nobody but
/// the host's root look under those.
fn open_source(text: &[u8]) -> Result<Fd, sys::Errno> {
    const READ_ONLY: u64 = 1;
    const NO_SETUID: u64 = 2;
    const NO_DEVICES: u64 = 4;
    let (first, rest) = text.split_first().ok_or(sys::EINVAL)?;
    let (device, rest) = number(rest)?;
    let (inode, path) = number(rest)?;
    let path = CStr::from_bytes_with_nul(path).map_err(|_| sys::EINVAL)?;
    let mut attributes = NO_DEVICES;
    if first & flag::source::WRITABLE == 0 {
        attributes |= READ_ONLY;
    }
    if first & flag::source::SETUID == 0 {
        attributes |= NO_SETUID;
    }
    let tree = sys::open_tree(path, true)?;
    // Another may have been put there since the host judged what it found: that one nobody has.
    if orphan::identity(tree, c"")? != (device, inode) {
        return Err(sys::ESTALE);
    }
    sys::set_attributes(tree, attributes)?;
    Ok(tree)
}

/// Sixteen hexadecimal digits, and what follows them.
fn number(text: &[u8]) -> Result<(u64, &[u8]), sys::Errno> {
    let (digits, rest) = text.split_at_checked(16).ok_or(sys::EINVAL)?;
    let mut number = 0;
    for digit in digits {
        let digit = char::from(*digit).to_digit(16).ok_or(sys::EINVAL)?;
        number = number << 4 | u64::from(digit);
    }
    Ok((number, rest))
}

/// Puts the root's tree in place and makes it the working directory.
fn attach_root(tree: Fd) -> Result<(), Failure> {
    let place = sys::open_at(AT_FDCWD, PLACE, HERE).at(Step::AttachRoot)?;
    sys::attach(tree, place).at(Step::AttachRoot)?;
    sys::close(place);
    sys::change_dir(PLACE).at(Step::AttachRoot)?;
    Ok(())
}

/// Shows a directory of the template in the new root, wherever the root's links lead, but never outside of
/// it.
fn bind(root: Fd, path: &CStr) -> Result<(), sys::Errno> {
    let tree = sys::open_tree(path, true)?;
    let target = sys::open_in_root(root, path)?;
    sys::attach(tree, target)?;
    sys::close(target);
    sys::close(tree);
    Ok(())
}

/// Mounts a file system inside the new root. The kernel resolves a mount's target by itself, links and all;
/// standing on it keeps that inside.
fn mount_inside(root: Fd, kind: &CStr, target: &CStr, flags: usize, data: &CStr) -> Result<(), sys::Errno> {
    let target = sys::open_in_root(root, target)?;
    let mounted = sys::plain(sys::FCHDIR, [target as usize, 0, 0, 0, 0])
        .and_then(|_| sys::mount(kind, c".", kind, flags, data));
    sys::close(target);
    // Where it stood before; it cannot fail, and if it did, nothing after it would succeed.
    sys::plain(sys::FCHDIR, [root as usize, 0, 0, 0, 0])?;
    mounted.map(drop)
}

/// Mounts /sys, read-only: it shows the devices of the network namespace this process is in.
fn mount_sys(plan: &Decoded<'_>, root: Fd) -> Result<(), Failure> {
    if !plan.has(flag::PROCESS) {
        return Ok(());
    }
    let read_only = if plan.has(flag::MASK) { ms::RDONLY } else { 0 };
    let flags = read_only | ms::NOSUID | ms::NODEV | ms::NOEXEC;
    mount_inside(root, c"sysfs", c"/sys", flags, c"").at(Step::MountSys)?;
    if !plan.has(flag::MASK) {
        return Ok(());
    }
    for path in MASKED_SYS {
        let flags = ms::RDONLY | ms::NOSUID | ms::NODEV | ms::NOEXEC;
        match mount_inside(root, c"tmpfs", path, flags, c"size=4k,nr_inodes=2,mode=555") {
            // This machine has none.
            Ok(()) | Err(sys::ENOENT) => {}
            Err(errno) => return Err((Step::MaskSys, errno)),
        }
    }
    Ok(())
}

/// Mounts what a process needs to write to: /tmp, shared memory, and terminals.
fn mount_writable(plan: &Decoded<'_>, root: Fd) -> Result<(), Failure> {
    if !plan.has(flag::PROCESS) {
        return Ok(());
    }
    let flags = ms::NOSUID | ms::NODEV;
    // Inodes are the kernel's memory, too, and on some machines nobody's limit counts them. The mode is tmpfs' own, 1777.
    let scratch = options(plan, b"nr_inodes=16k", 0, true);
    if plan.has(flag::TMP) {
        mount_inside(root, c"tmpfs", c"/tmp", flags, scratch.text()).at(Step::MountTmp)?;
    }
    mount_inside(root, c"tmpfs", c"/dev/shm", flags | ms::NOEXEC, scratch.text()).at(Step::MountShm)?;
    // Group 5 is tty wherever there are terminals; without a fifth group it is the sandbox's group 0.
    let tty = if plan.fixed.id_count > 5 || !plan.has(flag::USERS) { 5 } else { 0 };
    let pts = options(plan, b"newinstance,ptmxmode=0666,mode=0620", tty, false);
    mount_inside(root, c"devpts", c"/dev/pts", ms::NOSUID | ms::NOEXEC, pts.text()).at(Step::MountPts)
}

/// Options of a mount, with its owners as the host numbers them.
struct Options(Line);

impl Options {
    fn text(&self) -> &CStr {
        // The line is closed with a NUL where it is made. Were it too long for that, the kernel refuses what it does not know,
        // and the start fails: no limit must go missing in silence.
        CStr::from_bytes_until_nul(self.0.text()).unwrap_or(c"overlong")
    }
}

fn options(plan: &Decoded<'_>, first: &[u8], group: u32, sized: bool) -> Options {
    let mut line = Line::new();
    line.bytes(first);
    line.bytes(b",gid=");
    line.number(plan.fixed.host_start + group);
    if sized {
        line.bytes(b",uid=");
        line.number(plan.fixed.host_start);
        line.bytes(b",size=");
        line.number(plan.fixed.tmpfs_kilobytes);
        line.bytes(b"k");
    }
    line.bytes(b"\0");
    Options(line)
}
