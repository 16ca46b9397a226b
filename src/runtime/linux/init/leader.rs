//! A leader: PID 1 of a sandbox. It sets the sandbox up from inside, starts the main process, and is its
//! init.

use core::ffi::CStr;

use crate::log::Log;
use crate::main_process::{self, MainProcess};
use crate::protocol::{Decoded, Report, SETUP_NAME, Step, bytes_of, exit_name, flag};
use crate::sys::{self, Fd, ms, ns, pr};
use crate::zygote::{NULL, Received};
use crate::{At, Failure, loopback, report_of};

/// What of /proc tells too much of the machine.
const MASKED_FILES: [&CStr; 7] = [
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/sched_debug",
    c"/proc/interrupts",
];
const MASKED_DIRS: [&CStr; 3] = [c"/proc/acpi", c"/proc/scsi", c"/proc/asound"];
/// What of /proc could change the machine.
const READ_ONLY: [&CStr; 5] = [c"/proc/sys", c"/proc/irq", c"/proc/bus", c"/proc/fs", c"/proc/sysrq-trigger"];

/// The highest capability that any kernel may know. Above its own last one the kernel answers EINVAL.
const CAPABILITIES: usize = 64;
/// Lets the init signal a main process that runs as another user.
pub(crate) const CAP_KILL: u64 = 1 << 5;

/// Where the report goes during set-up. Closed on execution: the pipe's end is the news.
pub(crate) const REPORT: Fd = 3;
const RELEASE: Fd = 4;
/// The two files of a log, if there is one.
pub(crate) const LOG_SLOTS: [Fd; 2] = [5, 6];

/// Signals that the init passes on: all that ask for something. Not those that the kernel sends for faults,
/// nor SIGCHLD, nor those that would stop a process.
const FORWARDED: [u32; 8] = [1, 2, 3, 10, 12, 15, 18, 28];
const TERM: u32 = 15;
const INT: u32 = 2;

/// The descriptors that a leader gets.
pub(crate) struct Descriptors<'a> {
    pub(crate) report: Fd,
    pub(crate) release: Option<[Fd; 2]>,
    pub(crate) fds: &'a mut Received,
}

/// What runs in the new PID 1.
pub(crate) fn run(plan: &Decoded<'_>, descriptors: Descriptors<'_>) -> ! {
    sys::set_name(SETUP_NAME.as_ptr());
    let released = descriptors.release.is_some();
    let started = arrange(plan, descriptors)
        .and_then(|()| wait_for_release(released))
        .and_then(|()| set_up(plan))
        .and_then(|()| start(plan));
    match started {
        Ok((main, Some(log))) => log.serve(main),
        Ok((main, None)) => serve(main),
        Err(failure) => {
            report(report_of(failure));
            sys::exit(127)
        }
    }
}

pub(crate) fn report(report: Report) {
    // If the host is gone, the next one is told by this process's name.
    let _ = sys::write(REPORT, bytes_of(&report));
}

/// Puts every descriptor at its number and closes all others, the zygote's above all.
fn arrange(plan: &Decoded<'_>, descriptors: Descriptors<'_>) -> Result<(), Failure> {
    let Descriptors { report, release, fds } = descriptors;
    if plan.has(flag::PROCESS) {
        sys::duplicate(NULL, NULL_COPY, sys::O_CLOEXEC).at(Step::Descriptors)?;
        for (number, given) in [flag::STDIN, flag::STDOUT, flag::STDERR].into_iter().enumerate() {
            let from = fds.next_if(plan.has(given))?.unwrap_or(NULL_COPY);
            sys::duplicate(from, number as Fd, 0).at(Step::Descriptors)?;
        }
    }
    sys::duplicate(report, REPORT, sys::O_CLOEXEC).at(Step::Descriptors)?;
    match release {
        Some([read, _]) => drop(sys::duplicate(read, RELEASE, sys::O_CLOEXEC).at(Step::Descriptors)?),
        None => sys::close(RELEASE),
    }
    let mut first_closed = RELEASE + 1;
    if plan.has(flag::LOG) {
        for number in LOG_SLOTS {
            sys::duplicate(fds.next()?, number, sys::O_CLOEXEC).at(Step::Descriptors)?;
        }
        first_closed = LOG_SLOTS[1] + 1;
    }
    sys::close_from(first_closed).at(Step::Descriptors)?;
    Ok(())
}

/// Waits until the zygote has written the maps. If it dies before, the pipe ends, and so does this process.
fn wait_for_release(expected: bool) -> Result<(), Failure> {
    if !expected {
        return Ok(());
    }
    let mut byte = [0];
    let count = sys::read(RELEASE, &mut byte).at(Step::Release)?;
    sys::close(RELEASE);
    if count == 1 { Ok(()) } else { Err((Step::Release, sys::EPERM)) }
}

fn set_up(plan: &Decoded<'_>) -> Result<(), Failure> {
    // Not with the clone: the namespace's root would be the zygote's cgroup, not the sandbox's.
    sys::unshare(ns::CGROUP).at(Step::CgroupNamespace)?;
    if plan.has(flag::USERS) {
        become_root(plan).at(Step::BecomeRoot)?;
    }
    if plan.has(flag::ONE_USER) && plan.has(flag::NET_FRESH) && !plan.has(flag::BUILT) {
        loopback::bring_up().at(Step::Loopback)?;
    }
    let name = plan.hostname;
    // SAFETY: the name is in the plan, its NUL not counted.
    unsafe { sys::call(sys::SETHOSTNAME, [name.as_ptr() as usize, name.len() - 1, 0, 0, 0]) }
        .at(Step::HostName)?;
    if plan.has(flag::PROCESS) {
        mount_proc(plan)?;
    }
    give_up_rights(plan)
}

/// Becomes the sandbox's user and group 0, in no other group; until now this process was nobody here. Groups of an ordinary user
/// stay: the kernel lets that one set none.
pub(crate) fn become_root(plan: &Decoded<'_>) -> Result<(), sys::Errno> {
    if !plan.has(flag::ONE_USER) {
        sys::plain(sys::SETGROUPS, [0; 5])?;
    }
    sys::plain(sys::SETRESGID, [0; 5])?;
    sys::plain(sys::SETRESUID, [0; 5])?;
    Ok(())
}

/// Mounts /proc, which shows this PID namespace only, and hides what is not of it.
fn mount_proc(plan: &Decoded<'_>) -> Result<(), Failure> {
    let safe = ms::NOSUID | ms::NODEV | ms::NOEXEC;
    sys::mount(c"proc", c"/proc", c"proc", safe, c"").at(Step::MountProc)?;
    if !plan.has(flag::MASK) {
        return Ok(());
    }
    for path in MASKED_FILES {
        unless_absent(sys::mount(c"/dev/null", path, c"", ms::BIND, c"")).at(Step::MaskProc)?;
    }
    for path in MASKED_DIRS {
        let empty = sys::mount(c"tmpfs", path, c"tmpfs", safe | ms::RDONLY, c"size=4k,nr_inodes=2,mode=555");
        unless_absent(empty).at(Step::MaskProc)?;
    }
    for path in READ_ONLY {
        if unless_absent(sys::mount(path, path, c"", ms::BIND | ms::REC, c"")).at(Step::ReadOnlyProc)? {
            let flags = ms::REMOUNT | ms::BIND | ms::RDONLY | safe;
            sys::mount(c"", path, c"", flags, c"").at(Step::ReadOnlyProc)?;
        }
    }
    Ok(())
}

/// Whether a path was there to mount on. What this kernel does not have needs no mask.
fn unless_absent(mounted: sys::Outcome) -> Result<bool, sys::Errno> {
    match mounted {
        Ok(_) => Ok(true),
        Err(sys::ENOENT | sys::ENOTDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Gives up what neither the init nor the main process needs; a child inherits all of it. The filter goes
/// last of what can be checked here, and allows what is still to be done.
pub(crate) fn give_up_rights(plan: &Decoded<'_>) -> Result<(), Failure> {
    // Before there is a main process: it may run before this one has dropped its own capabilities, and must
    // not reach them.
    let _ = sys::prctl(pr::SET_DUMPABLE, 0, 0);
    for capability in 0..CAPABILITIES {
        if plan.has(flag::PROCESS) && plan.fixed.kept_capabilities >> capability & 1 == 1 {
            continue;
        }
        match sys::prctl(pr::CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            Err(sys::EINVAL) => break,
            Err(errno) => return Err((Step::BoundingSet, errno)),
        }
    }
    if !plan.has(flag::NEW_PRIVILEGES) {
        sys::prctl(pr::SET_NO_NEW_PRIVS, 1, 0).at(Step::NewPrivileges)?;
    }
    let filter = plan.filter.bytes();
    if filter.is_empty() {
        return own_keyring();
    }
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    const SET_MODE_FILTER: usize = 1;
    let program = Program { length: plan.fixed.instructions as u16, filter: filter.as_ptr() };
    // SAFETY: a program of as many instructions as it says, which the decoder has checked to be there.
    unsafe { sys::call(sys::SECCOMP, [SET_MODE_FILTER, 0, &raw const program as usize, 0, 0]) }
        .at(Step::Seccomp)?;
    Ok(())
}

/// Leaves the keyring that all sandboxes of a zygote have in common. With the filter, no call reaches it.
fn own_keyring() -> Result<(), Failure> {
    const JOIN_SESSION_KEYRING: usize = 1;
    match sys::plain(sys::KEYCTL, [JOIN_SESSION_KEYRING, 0, 0, 0, 0]) {
        // A kernel without keyrings.
        Ok(_) | Err(sys::ENOSYS) => Ok(()),
        Err(errno) => Err((Step::Keyring, errno)),
    }
}

/// Starts the main process, if there is one, and says who it is.
fn start(plan: &Decoded<'_>) -> Result<(Option<u32>, Option<Log>), Failure> {
    if !plan.has(flag::PROCESS) {
        sys::set_capabilities(0, 0).at(Step::InitCapabilities)?;
        ready(None);
        return Ok((None, None));
    }
    let mut process = MainProcess::new(plan);
    if plan.has(flag::NO_INIT) {
        report(Report { step: Step::Executing as u32, errno: 0 });
        return Err(process.execute());
    }
    let mut log = if plan.has(flag::LOG) { Some(Log::open(plan)?) } else { None };
    let pid = main_process::start(&mut process)?;
    sys::set_capabilities(CAP_KILL, 0).at(Step::InitCapabilities)?;
    ready(log.as_mut());
    Ok((Some(pid), log))
}

/// Says that the set-up is done, and holds no descriptor from then on but those of a log.
fn ready(log: Option<&mut Log>) {
    sys::set_name(c"sk-init".as_ptr());
    // By range, since that is what the filter of a pause leader allows.
    let _ = sys::close_range(0, REPORT - 1);
    report(Report { step: Step::Ready as u32, errno: 0 });
    match log {
        Some(log) => {
            sys::close(REPORT);
            log.close_write_ends();
        }
        None => drop(sys::close_from(REPORT)),
    }
}

/// The init of a sandbox: reaps, passes signals on, and ends with the main process.
fn serve(main: Option<u32>) -> ! {
    loop {
        let Ok(signal) = sys::wait_signal(u64::MAX) else { continue };
        if let Some(status) = heed(signal, main) {
            end_as(status);
        }
    }
}

/// Does what a signal asks for. Says how the main process ended, if it has.
pub(crate) fn heed(signal: u32, main: Option<u32>) -> Option<u32> {
    match main {
        _ if signal == sys::SIGCHLD => return reap(main),
        None if signal == TERM || signal == INT => sys::exit(0),
        Some(main) if FORWARDED.contains(&signal) => {
            // It may have ended just now; its SIGCHLD is next.
            let _ = sys::kill(main, signal);
        }
        _ => {}
    }
    None
}

/// Reaps whatever has ended, and says how the main process has. One SIGCHLD may stand for many.
fn reap(main: Option<u32>) -> Option<u32> {
    while let Ok((pid, status)) = sys::wait(-1, true) {
        if pid == 0 {
            return None;
        }
        if Some(pid) == main {
            return Some(status);
        }
    }
    None
}

/// Ends as the main process did, as far as a PID 1 can, and leaves the whole truth in its name.
pub(crate) fn end_as(wait_status: u32) -> ! {
    sys::set_name(exit_name(wait_status).as_ptr().cast());
    let signal = wait_status & 0x7f;
    sys::exit(if signal == 0 { wait_status >> 8 & 0xff } else { 128 + signal })
}

/// Another descriptor of /dev/null, while those below 3 are being replaced. The host's network, which had
/// this number, is not for a leader.
pub(crate) const NULL_COPY: Fd = 9;
