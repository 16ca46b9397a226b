//! System calls that no safe wrapper exists for.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// `PIDFD_GET_INFO` for the first published size of its structure, 64 bytes.
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;

/// Asks [`PIDFD_GET_INFO`] for the exit status, which it has once the process is reaped.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` as first published.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pids_and_ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// The wait status of a process that has been reaped, if the kernel still knows it (Linux 6.15 and later).
pub(super) fn status_of_reaped(pidfd: impl AsFd) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's number carries the size of the structure, 64 bytes, which `info` has; the kernel writes
    // within it and keeps no reference.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Whether the process has not been reaped yet: it runs, or is a zombie.
pub(super) fn is_unreaped(pidfd: impl AsFd) -> bool {
    // SAFETY: signal 0 is only checked and never delivered; no memory is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Whether this descriptor can be read now: of a pidfd, whether its process has ended.
pub(super) fn is_readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    // It cannot be asked only for want of memory: then it counts as not.
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// The name of a process, also of one that has ended and was not reaped.
pub(super) fn process_name(pid: u32) -> Option<Vec<u8>> {
    let mut name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|last| *last == b'\n');
    Some(name)
}

/// Whether a process still executes our init, and has executed nothing else.
pub(super) fn runs_init(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.as_os_str().as_encoded_bytes().starts_with(b"/memfd:sk-zygote"))
}

/// The numbers of a process in the PID namespaces that it is in, from ours inwards.
///
/// Source: proc_pid_status(5), `NSpid`.
pub(super) fn pids_in_namespaces(process: &str) -> Option<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// Whether this descriptor, which must be on nsfs, is of a network namespace.
pub(super) fn is_network_namespace(namespace: impl AsFd) -> io::Result<bool> {
    /// `NS_GET_NSTYPE`.
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument; it returns the type.
    let kind = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind == libc::CLONE_NEWNET) }
}

/// Brings up the loopback device of the calling thread's network namespace.
pub(super) fn bring_loopback_up() -> io::Result<()> {
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a structure of plain integers and arrays, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which `request` is; the kernel keeps no reference.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the calling thread, and only it, a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET concerns this thread's namespaces only; neither memory nor descriptors become unshared,
    // which is what makes other flags unsafe.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
