//! System calls, and nothing else: no allocation, no errno, no libc.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

/// Why a call failed.
pub(crate) type Errno = u32;
/// What a call came to.
pub(crate) type Outcome = Result<usize, Errno>;
/// A descriptor.
pub(crate) type Fd = i32;

macro_rules! calls {
    ($($name:ident = $number:literal),+ $(,)?) => { $(pub(crate) const $name: usize = $number;)+ };
}
calls! {
    READ = 0, WRITE = 1, CLOSE = 3, POLL = 7, GETPID = 39, LISTEN = 50, GETSOCKOPT = 55, FLOCK = 73, GETUID = 102, GETEUID = 107, GETEGID = 108, SOCKET = 41, IOCTL = 16, MOUNT_SETATTR = 442, ACCEPT4 = 288, RT_SIGACTION = 13, RT_SIGPROCMASK = 14, MADVISE = 28, PAUSE = 34,
    NANOSLEEP = 35, SENDMSG = 46, RECVMSG = 47, CLONE = 56, EXECVE = 59, WAIT4 = 61, KILL = 62, CHDIR = 80,
    FCHDIR = 81, UMASK = 95, SETSID = 112, SETGROUPS = 116, SETRESUID = 117, SETRESGID = 119, CAPSET = 126,
    RT_SIGTIMEDWAIT = 128, PIVOT_ROOT = 155, PRCTL = 157, CHROOT = 161, MOUNT = 165, UMOUNT2 = 166, SETHOSTNAME = 170,
    FGETXATTR = 193, GETDENTS64 = 217, EXIT_GROUP = 231, OPENAT = 257, MKDIRAT = 258, NEWFSTATAT = 262, UNLINKAT = 263, SYMLINKAT = 266,
    UNSHARE = 272, DUP3 = 292, PIPE2 = 293, PRLIMIT64 = 302, SETNS = 308, SECCOMP = 317, OPEN_TREE = 428, MOVE_MOUNT = 429,
    CLONE3 = 435, CLOSE_RANGE = 436, OPENAT2 = 437, KEYCTL = 250,
    PREAD64 = 17, PWRITE64 = 18, FCNTL = 72, FTRUNCATE = 77, FCHOWN = 93, GETPPID = 110, CLOCK_GETTIME = 228, PPOLL = 271,
    SIGNALFD4 = 289,
}

/// The working directory, where a directory's descriptor is asked for.
pub(crate) const AT_FDCWD: Fd = -100;

global_asm!(
    // What a C library would supply. In assembly, since a loop in Rust may be compiled into a call to itself.
    ".globl memcpy",
    "memcpy:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "cmp %rsi, %rdi",
    "jbe 1f",
    "std",
    "lea -1(%rdi,%rdx), %rdi",
    "lea -1(%rsi,%rdx), %rsi",
    "rep movsb",
    "cld",
    "ret",
    "1: rep movsb",
    "ret",
    ".globl memset",
    "memset:",
    "mov %rdi, %r8",
    "mov %esi, %eax",
    "mov %rdx, %rcx",
    "rep stosb",
    "mov %r8, %rax",
    "ret",
    ".globl memcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp:",
    "xor %eax, %eax",
    "mov %rdx, %rcx",
    "cmp %rcx, %rcx",
    "repe cmpsb",
    "je 2f",
    "movzbl -1(%rdi), %eax",
    "movzbl -1(%rsi), %ecx",
    "sub %ecx, %eax",
    "2: ret",
    // clone_on_stack(flags, stack top, function, argument): the child calls the function on the stack. r12
    // and r13 carry what it needs over the call, since the child's stack is empty; the parent gives them back
    // as it found them.
    ".globl clone_on_stack",
    "clone_on_stack:",
    "push %r12",
    "push %r13",
    "mov %rdx, %r12",
    "mov %rcx, %r13",
    "xor %edx, %edx",
    "xor %r10d, %r10d",
    "xor %r8d, %r8d",
    "mov ${clone}, %eax",
    "syscall",
    "test %rax, %rax",
    "jz 3f",
    "pop %r13",
    "pop %r12",
    "ret",
    "3: xor %ebp, %ebp",
    "mov %r13, %rdi",
    "call *%r12",
    "ud2",
    clone = const CLONE,
    options(att_syntax)
);

unsafe extern "C" {
    fn clone_on_stack(
        flags: usize,
        stack: *mut u8,
        run: extern "C" fn(*const u8) -> !,
        argument: *const u8,
    ) -> isize;
}

/// Clones with `CLONE_VM | CLONE_VFORK`: the child runs `run(argument)` on `stack`, and this returns when it
/// has executed a program or ended.
///
/// # Safety
/// `stack` is the upper end, aligned to 16, of memory that nothing else uses until then. `run` may use what
/// `argument` points to, and shares all memory with the caller.
pub(crate) unsafe fn vfork_on(
    stack: *mut u8,
    run: extern "C" fn(*const u8) -> !,
    argument: *const u8,
) -> Outcome {
    const CLONE_VM: usize = 0x100;
    const CLONE_VFORK: usize = 0x4000;
    // SAFETY: as promised by the caller; the assembly keeps every register that its callers expect kept.
    outcome(unsafe { clone_on_stack(CLONE_VM | CLONE_VFORK | SIGCHLD as usize, stack, run, argument) })
}

/// One system call. For the compiler it may write to whatever an address was taken of, so results are read as
/// they are.
///
/// # Safety
/// The arguments that are addresses point to memory of the size and kind that this call reads or writes.
#[inline(never)]
pub(crate) unsafe fn call(number: usize, arguments: [usize; 5]) -> Outcome {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the kernel's calling convention: it clobbers rcx and r11 and returns in rax; the rest is the
    // caller's promise. The sixth argument is used by none of our calls, and zero for those that have one.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") 0, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    outcome(result)
}

fn outcome(result: isize) -> Outcome {
    if (-4095..0).contains(&result) { Err((-result) as Errno) } else { Ok(result as usize) }
}

/// A system call without addresses among its arguments.
pub(crate) fn plain(number: usize, arguments: [usize; 5]) -> Outcome {
    // SAFETY: no argument is an address.
    unsafe { call(number, arguments) }
}

pub(crate) const EPERM: Errno = 1;
pub(crate) const ENOENT: Errno = 2;
pub(crate) const EINTR: Errno = 4;
pub(crate) const EAGAIN: Errno = 11;
pub(crate) const EACCES: Errno = 13;
pub(crate) const ENOTDIR: Errno = 20;
pub(crate) const EINVAL: Errno = 22;
pub(crate) const ERANGE: Errno = 34;
pub(crate) const ENAMETOOLONG: Errno = 36;
pub(crate) const ENOSYS: Errno = 38;
pub(crate) const EOPNOTSUPP: Errno = 95;
pub(crate) const ESTALE: Errno = 116;

pub(crate) const SIGKILL: u32 = 9;
pub(crate) const SIGCHLD: u32 = 17;

pub(crate) fn close(fd: Fd) {
    // Closing reports errors of the past at best; there is nobody to tell.
    let _ = plain(CLOSE, [fd as usize, 0, 0, 0, 0]);
}

/// Closes every descriptor from this number on.
pub(crate) fn close_from(first: Fd) -> Outcome {
    close_range(first, Fd::MAX)
}

/// Closes the descriptors of these numbers, both included.
pub(crate) fn close_range(first: Fd, last: Fd) -> Outcome {
    plain(CLOSE_RANGE, [first as usize, last as usize, 0, 0, 0])
}

pub(crate) const O_WRONLY: usize = 1;
pub(crate) const O_RDWR: usize = 2;
pub(crate) const O_NONBLOCK: usize = 0o4000;
pub(crate) const O_CREAT: usize = 0o100;
pub(crate) const O_DIRECTORY: usize = 0o200_000;
pub(crate) const O_CLOEXEC: usize = 0o2_000_000;
pub(crate) const O_PATH: usize = 0o10_000_000;

/// Opens a path below a directory.
pub(crate) fn open_at(dir: Fd, path: &CStr, flags: usize) -> Result<Fd, Errno> {
    // SAFETY: the path is a NUL-terminated string.
    unsafe { call(OPENAT, [dir as usize, path.as_ptr() as usize, flags, 0o644, 0]) }.map(|fd| fd as Fd)
}

/// Opens a file below a directory, writes these bytes at once, and closes it.
pub(crate) fn write_at(dir: Fd, path: &CStr, bytes: &[u8]) -> Outcome {
    let fd = open_at(dir, path, O_WRONLY | O_CLOEXEC)?;
    let written = write(fd, bytes);
    close(fd);
    written
}

pub(crate) fn write(fd: Fd, bytes: &[u8]) -> Outcome {
    // SAFETY: the bytes are readable.
    unsafe { call(WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0]) }
}

pub(crate) fn read(fd: Fd, bytes: &mut [u8]) -> Outcome {
    // SAFETY: the bytes are writable and borrowed for the call.
    unsafe { call(READ, [fd as usize, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0]) }
}

/// Makes `to` the same as `from`, open across an execution unless `O_CLOEXEC` is given.
pub(crate) fn duplicate(from: Fd, to: Fd, flags: usize) -> Outcome {
    plain(DUP3, [from as usize, to as usize, flags, 0, 0])
}

/// A pipe, closed on execution: where to read, where to write.
pub(crate) fn pipe() -> Result<[Fd; 2], Errno> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written, for which there is room.
    unsafe { call(PIPE2, [ends.as_mut_ptr() as usize, O_CLOEXEC, 0, 0, 0]) }?;
    Ok(ends)
}

pub(crate) fn make_dir(dir: Fd, path: &CStr, mode: usize) -> Outcome {
    // SAFETY: the path is a NUL-terminated string.
    unsafe { call(MKDIRAT, [dir as usize, path.as_ptr() as usize, mode, 0, 0]) }
}

pub(crate) fn symlink(target: &CStr, path: &CStr) -> Outcome {
    // SAFETY: both are NUL-terminated strings.
    unsafe { call(SYMLINKAT, [target.as_ptr() as usize, AT_FDCWD as usize, path.as_ptr() as usize, 0, 0]) }
}

pub(crate) fn change_dir(path: &CStr) -> Outcome {
    // SAFETY: the path is a NUL-terminated string.
    unsafe { call(CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0]) }
}

pub(crate) mod ms {
    pub(crate) const RDONLY: usize = 1;
    pub(crate) const NOSUID: usize = 2;
    pub(crate) const NODEV: usize = 4;
    pub(crate) const NOEXEC: usize = 8;
    pub(crate) const REMOUNT: usize = 32;
    pub(crate) const BIND: usize = 4096;
    pub(crate) const MOVE: usize = 8192;
    pub(crate) const REC: usize = 16384;
    pub(crate) const PRIVATE: usize = 1 << 18;
}

/// `mount(2)`.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: usize, data: &CStr) -> Outcome {
    let [source, target, kind, data] = [source, target, kind, data].map(|text| text.as_ptr() as usize);
    // SAFETY: all are NUL-terminated strings.
    unsafe { call(MOUNT, [source, target, kind, flags, data]) }
}

/// Makes the working directory, which is a mount, the root, and lets go of the old one.
pub(crate) fn pivot_to_working_dir() -> Outcome {
    const MNT_DETACH: usize = 2;
    let here = c".".as_ptr() as usize;
    // SAFETY: NUL-terminated strings.
    unsafe {
        call(PIVOT_ROOT, [here, here, 0, 0, 0])?;
        call(UMOUNT2, [here, MNT_DETACH, 0, 0, 0])?;
    }
    change_dir(c"/")
}

/// Makes the working directory the root of this process.
pub(crate) fn change_root_here() -> Outcome {
    // SAFETY: a NUL-terminated string.
    unsafe { call(CHROOT, [c".".as_ptr() as usize, 0, 0, 0, 0]) }
}

pub(crate) const OPEN_TREE_CLONE: usize = 1;
pub(crate) const AT_RECURSIVE: usize = 0x8000;

/// A detached copy of the mount tree at a path.
pub(crate) fn open_tree(path: &CStr, recursive: bool) -> Result<Fd, Errno> {
    let flags = OPEN_TREE_CLONE | O_CLOEXEC | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated string.
    unsafe { call(OPEN_TREE, [AT_FDCWD as usize, path.as_ptr() as usize, flags, 0, 0]) }.map(|fd| fd as Fd)
}

/// Makes a detached tree private, with all that is in it, and sets these attributes everywhere.
pub(crate) fn set_attributes(tree: Fd, attributes: u64) -> Outcome {
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        users: u64,
    }
    const EMPTY_PATH: usize = 0x1000;
    let change = MountAttributes { set: attributes, clear: 0, propagation: ms::PRIVATE as u64, users: 0 };
    let (empty, size) = (c"".as_ptr() as usize, size_of::<MountAttributes>());
    // SAFETY: a NUL-terminated string, and a structure of the given size.
    unsafe {
        call(
            MOUNT_SETATTR,
            [tree as usize, empty, EMPTY_PATH | AT_RECURSIVE, &raw const change as usize, size],
        )
    }
}

/// Attaches a detached tree to what `target` is a descriptor of.
pub(crate) fn attach(tree: Fd, target: Fd) -> Outcome {
    const FROM_EMPTY_PATH: usize = 4;
    const TO_EMPTY_PATH: usize = 0x40;
    let empty = c"".as_ptr() as usize;
    // SAFETY: NUL-terminated strings.
    unsafe {
        call(MOVE_MOUNT, [tree as usize, empty, target as usize, empty, FROM_EMPTY_PATH | TO_EMPTY_PATH])
    }
}

/// Opens a path as if `root` were the root: neither `..` nor a symbolic link leads out of it.
pub(crate) fn open_in_root(root: Fd, path: &CStr) -> Result<Fd, Errno> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const NO_MAGIC_LINKS: u64 = 2;
    const IN_ROOT: u64 = 0x10;
    let how = How { flags: (O_PATH | O_CLOEXEC) as u64, mode: 0, resolve: NO_MAGIC_LINKS | IN_ROOT };
    let arguments = [root as usize, path.as_ptr() as usize, &raw const how as usize, size_of::<How>(), 0];
    // SAFETY: a NUL-terminated string, and a structure of the given size.
    unsafe { call(OPENAT2, arguments) }.map(|fd| fd as Fd)
}

pub(crate) mod ns {
    pub(crate) const MOUNT: u64 = 0x0002_0000;
    pub(crate) const CGROUP: u64 = 0x0200_0000;
    pub(crate) const UTS: u64 = 0x0400_0000;
    pub(crate) const IPC: u64 = 0x0800_0000;
    pub(crate) const USER: u64 = 0x1000_0000;
    pub(crate) const PID: u64 = 0x2000_0000;
    pub(crate) const NET: u64 = 0x4000_0000;
}

pub(crate) fn unshare(namespaces: u64) -> Outcome {
    plain(UNSHARE, [namespaces as usize, 0, 0, 0, 0])
}

/// Joins namespaces of these kinds, of a namespace's descriptor or a process's.
pub(crate) fn set_ns(fd: Fd, namespaces: u64) -> Outcome {
    plain(SETNS, [fd as usize, namespaces as usize, 0, 0, 0])
}

/// Clones like a fork, into a cgroup if there is one. In the child it returns no pid.
pub(crate) fn clone3(namespaces: u64, group: Option<Fd>) -> Result<Option<(u32, Fd)>, Errno> {
    const PIDFD: u64 = 0x1000;
    const INTO_CGROUP: u64 = 1 << 33;
    #[repr(C)]
    #[derive(Default)]
    struct CloneArguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let mut pidfd: Fd = -1;
    let arguments = CloneArguments {
        flags: namespaces | PIDFD | if group.is_some() { INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        exit_signal: u64::from(SIGCHLD),
        cgroup: group.unwrap_or(0) as u64,
        ..CloneArguments::default()
    };
    // SAFETY: a structure of the given size; the pidfd is written to a place that outlives the call. The
    // child has a copy of all memory, this stack included, so that both may go on.
    let pid = unsafe { call(CLONE3, [&raw const arguments as usize, size_of::<CloneArguments>(), 0, 0, 0]) }?;
    Ok(if pid == 0 { None } else { Some((pid as u32, pidfd)) })
}

/// Ends this process.
pub(crate) fn exit(status: u32) -> ! {
    loop {
        let _ = plain(EXIT_GROUP, [status as usize, 0, 0, 0, 0]);
    }
}

pub(crate) fn kill(pid: u32, signal: u32) -> Outcome {
    plain(KILL, [pid as usize, signal as usize, 0, 0, 0])
}

/// Reaps one child, or any (`pid` -1). Says who it was, 0 for nobody, and its wait status.
pub(crate) fn wait(pid: i32, no_hang: bool) -> Result<(u32, u32), Errno> {
    let mut status: u32 = 0;
    let arguments = [pid as usize, &raw mut status as usize, usize::from(no_hang), 0, 0];
    // SAFETY: the status is written to a place that outlives the call; no resource usage is asked for.
    let who = unsafe { call(WAIT4, arguments) }?;
    Ok((who as u32, status))
}

/// Waits until this descriptor can be read, for so long at most. Whether it can.
pub(crate) fn wait_readable(fd: Fd, milliseconds: u32) -> bool {
    const POLLIN: u64 = 1;
    // struct pollfd: the descriptor, and 16 bits each of what is asked for and what is so.
    let mut polled: u64 = fd as u32 as u64 | POLLIN << 32;
    // SAFETY: one pollfd, of 8 bytes, to read and write.
    let ready = unsafe { call(POLL, [&raw mut polled as usize, 1, milliseconds as usize, 0, 0]) };
    matches!(ready, Ok(1..))
}

pub(crate) fn sleep_milliseconds(milliseconds: u64) {
    let time: [u64; 2] = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    // SAFETY: a timespec to read; what is left over is not asked for.
    let _ = unsafe { call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0]) };
}

/// Sets the mask of blocked signals.
pub(crate) fn block_signals(mask: u64) {
    const SET: usize = 2;
    // SAFETY: eight bytes to read; the old mask is not asked for. It cannot fail with these arguments.
    let _ = unsafe { call(RT_SIGPROCMASK, [SET, &raw const mask as usize, 0, 8, 0]) };
}

/// Waits for one of these signals, which are blocked.
pub(crate) fn wait_signal(mask: u64) -> Result<u32, Errno> {
    // SAFETY: eight bytes to read; neither information nor a time limit is asked for.
    unsafe { call(RT_SIGTIMEDWAIT, [&raw const mask as usize, 0, 0, 8, 0]) }.map(|signal| signal as u32)
}

pub(crate) fn default_action(signal: u32) {
    let action = [0_u64; 4];
    // SAFETY: a structure of this size to read; the old action is not asked for. It fails for SIGKILL and
    // SIGSTOP only, which nobody can change.
    let _ = unsafe { call(RT_SIGACTION, [signal as usize, action.as_ptr() as usize, 0, 8, 0]) };
}

pub(crate) mod pr {
    pub(crate) const SET_PDEATHSIG: usize = 1;
    pub(crate) const SET_DUMPABLE: usize = 4;
    pub(crate) const SET_KEEPCAPS: usize = 8;
    pub(crate) const SET_NAME: usize = 15;
    pub(crate) const CAPBSET_DROP: usize = 24;
    pub(crate) const SET_NO_NEW_PRIVS: usize = 38;
    pub(crate) const CAP_AMBIENT: usize = 47;
    pub(crate) const CAP_AMBIENT_RAISE: usize = 2;
}

pub(crate) fn prctl(option: usize, value: usize, third: usize) -> Outcome {
    plain(PRCTL, [option, value, third, 0, 0])
}

/// Names this process, in `/proc/PID/comm`.
pub(crate) fn set_name(name: *const c_char) {
    // SAFETY: every caller passes a NUL-terminated string, of which at most 16 bytes are read. It cannot
    // fail.
    let _ = unsafe { call(PRCTL, [pr::SET_NAME, name as usize, 0, 0, 0]) };
}

/// Sets the effective and permitted capabilities, and the inheritable ones.
pub(crate) fn set_capabilities(permitted: u64, inheritable: u64) -> Outcome {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let half = |shift: u32| [permitted, permitted, inheritable].map(|set| (set >> shift) as u32);
    let sets = [half(0), half(32)];
    // SAFETY: a header, and two triples as version 3 asks for.
    unsafe { call(CAPSET, [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0]) }
}
