//! The system call filter: lists of calls as data, and a compiler that makes a search tree of them.
//!
//! When a filter is installed the kernel runs it once for every call number there is, to learn which are
//! always allowed. A linear list of 300 comparisons makes that half a millisecond per start; a tree costs an
//! eighth.
//!
//! The default answers in four ways. What ordinary programs need is allowed. What could reach beyond the
//! sandbox is EPERM. What is unknown, and thus newer than this list, is ENOSYS, so that programs fall back to
//! what they did before. And five calls depend on an argument ([`Check`]).

use std::sync::{Arc, LazyLock};

use libc::c_long;

use super::protocol::Instruction;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    /// Fails with this errno.
    Fail(i32),
    Check(Check),
}

/// Decides by an argument. The kernel takes these arguments as 32 bits wide, whatever the upper half says; so
/// does the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// `clone`: no namespaces. (`clone3` passes its flags in memory, where no filter can see them: ENOSYS.)
    Clone,
    /// `ioctl`: not those that type into a terminal.
    Ioctl,
    /// `personality`: Linux, with or without 32 bit or the old version number; or a mere question.
    Personality,
    /// `socket`: UNIX, IPv4, IPv6 and netlink. Others have a history of holes.
    Socket,
    /// `socketpair`: UNIX.
    SocketPair,
    /// `socketpair`: UNIX, and only of kinds that stay connected. A datagram socket of a pair can let go of its peer, be bound
    /// to an abstract name, and be reached by whoever shares the network namespace.
    ConnectedPair,
}

/// What ordinary programs need. Also all that the init does after it has installed the filter.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read, libc::SYS_write, libc::SYS_open, libc::SYS_close, libc::SYS_stat, libc::SYS_fstat, libc::SYS_lstat,
    libc::SYS_poll, libc::SYS_lseek, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev,
    libc::SYS_access, libc::SYS_pipe, libc::SYS_select, libc::SYS_dup, libc::SYS_dup2, libc::SYS_sendfile, libc::SYS_fcntl,
    libc::SYS_flock, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_truncate, libc::SYS_ftruncate, libc::SYS_getdents,
    libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_rename, libc::SYS_mkdir, libc::SYS_rmdir,
    libc::SYS_creat, libc::SYS_link, libc::SYS_unlink, libc::SYS_symlink, libc::SYS_readlink, libc::SYS_chmod,
    libc::SYS_fchmod, libc::SYS_chown, libc::SYS_fchown, libc::SYS_lchown, libc::SYS_umask, libc::SYS_utime, libc::SYS_mknod,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_sync, libc::SYS_readahead, libc::SYS_setxattr, libc::SYS_lsetxattr,
    libc::SYS_fsetxattr, libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr,
    libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr,
    libc::SYS_io_setup, libc::SYS_io_destroy, libc::SYS_io_getevents, libc::SYS_io_submit, libc::SYS_io_cancel,
    libc::SYS_getdents64, libc::SYS_fadvise64, libc::SYS_utimes, libc::SYS_inotify_init, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch, libc::SYS_openat, libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_fchownat,
    libc::SYS_futimesat, libc::SYS_newfstatat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_readlinkat, libc::SYS_fchmodat, libc::SYS_faccessat, libc::SYS_pselect6, libc::SYS_ppoll, libc::SYS_splice,
    libc::SYS_tee, libc::SYS_sync_file_range, libc::SYS_vmsplice, libc::SYS_utimensat, libc::SYS_epoll_create,
    libc::SYS_epoll_ctl, libc::SYS_epoll_wait, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait_old, libc::SYS_epoll_pwait,
    libc::SYS_signalfd, libc::SYS_eventfd, libc::SYS_fallocate, libc::SYS_signalfd4, libc::SYS_eventfd2,
    libc::SYS_epoll_create1, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_inotify_init1, libc::SYS_preadv, libc::SYS_pwritev,
    libc::SYS_syncfs, libc::SYS_renameat2, libc::SYS_memfd_create, libc::SYS_copy_file_range, libc::SYS_preadv2,
    libc::SYS_pwritev2, libc::SYS_statx, IO_PGETEVENTS, libc::SYS_close_range, libc::SYS_openat2,
    libc::SYS_faccessat2, libc::SYS_epoll_pwait2, CACHESTAT, libc::SYS_fchmodat2, SETXATTRAT, GETXATTRAT, LISTXATTRAT,
    REMOVEXATTRAT, FILE_GETATTR, FILE_SETATTR,
    // Memory.
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_brk, libc::SYS_mremap, libc::SYS_msync,
    libc::SYS_mincore, libc::SYS_madvise, libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt,
    libc::SYS_semget, libc::SYS_semop, libc::SYS_semctl, libc::SYS_semtimedop, libc::SYS_msgget, libc::SYS_msgsnd,
    libc::SYS_msgrcv, libc::SYS_msgctl, libc::SYS_mlock, libc::SYS_munlock, libc::SYS_mlockall, libc::SYS_munlockall,
    libc::SYS_remap_file_pages, libc::SYS_mlock2, libc::SYS_pkey_mprotect, libc::SYS_pkey_alloc, libc::SYS_pkey_free,
    libc::SYS_membarrier, libc::SYS_memfd_secret, MAP_SHADOW_STACK, libc::SYS_mseal, libc::SYS_mq_open, libc::SYS_mq_unlink,
    libc::SYS_mq_timedsend, libc::SYS_mq_timedreceive, libc::SYS_mq_notify, libc::SYS_mq_getsetattr,
    // Processes, signals and users.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sched_yield, libc::SYS_pause,
    libc::SYS_getpid, libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_exit, libc::SYS_wait4, libc::SYS_kill,
    libc::SYS_uname, libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_sysinfo, libc::SYS_times, libc::SYS_getuid,
    libc::SYS_getgid, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_geteuid, libc::SYS_getegid, libc::SYS_setpgid,
    libc::SYS_getppid, libc::SYS_getpgrp, libc::SYS_setsid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_getgroups,
    libc::SYS_setgroups, libc::SYS_setresuid, libc::SYS_getresuid, libc::SYS_setresgid, libc::SYS_getresgid,
    libc::SYS_getpgid, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_getsid, libc::SYS_capget, libc::SYS_capset,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack, libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_sched_setparam, libc::SYS_sched_getparam,
    libc::SYS_sched_setscheduler, libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_sched_rr_get_interval, libc::SYS_prctl, libc::SYS_arch_prctl,
    libc::SYS_setrlimit, libc::SYS_gettid, libc::SYS_tkill, libc::SYS_futex, libc::SYS_sched_setaffinity,
    libc::SYS_sched_getaffinity, libc::SYS_set_thread_area, libc::SYS_get_thread_area, libc::SYS_set_tid_address,
    libc::SYS_restart_syscall, libc::SYS_exit_group, libc::SYS_tgkill, libc::SYS_waitid, libc::SYS_ioprio_set,
    libc::SYS_ioprio_get, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_prlimit64, libc::SYS_getcpu, libc::SYS_sched_setattr, libc::SYS_sched_getattr, libc::SYS_seccomp,
    libc::SYS_execveat, libc::SYS_rseq, libc::SYS_pidfd_send_signal, libc::SYS_pidfd_open, libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self, libc::SYS_process_mrelease, libc::SYS_futex_waitv,
    FUTEX_WAKE, FUTEX_WAIT, FUTEX_REQUEUE,
    // Time.
    libc::SYS_nanosleep, libc::SYS_getitimer, libc::SYS_alarm, libc::SYS_setitimer, libc::SYS_gettimeofday, libc::SYS_time,
    libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete, libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep,
    libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    // Sockets, once there are any; and chance.
    libc::SYS_connect, libc::SYS_accept, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_shutdown, libc::SYS_bind, libc::SYS_listen, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_setsockopt,
    libc::SYS_getsockopt, libc::SYS_accept4, libc::SYS_recvmmsg, libc::SYS_sendmmsg, libc::SYS_getrandom,
];

/// What could reach beyond the sandbox, or has a history of doing so, and what only a machine's administrator
/// needs.
#[rustfmt::skip]
const REFUSED: &[c_long] = &[
    // Mounts, roots and namespaces.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare, libc::SYS_setns,
    libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_mount_setattr, STATMOUNT, LISTMOUNT, OPEN_TREE_ATTR, libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at,
    libc::SYS_sethostname, libc::SYS_setdomainname,
    // Other processes' insides.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise, libc::SYS_kcmp,
    libc::SYS_pidfd_getfd, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_migrate_pages, libc::SYS_move_pages,
    libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_get_mempolicy, libc::SYS_set_mempolicy_home_node,
    // The kernel.
    libc::SYS_bpf, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_add_key,
    libc::SYS_request_key, libc::SYS_keyctl, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
    libc::SYS_kexec_load, libc::SYS_kexec_file_load, libc::SYS_fanotify_init, libc::SYS_fanotify_mark, libc::SYS_lookup_dcookie, libc::SYS_syslog,
    libc::SYS__sysctl, libc::SYS_sysfs, libc::SYS_ustat, libc::SYS_uselib, libc::SYS_nfsservctl, libc::SYS_modify_ldt,
    // The machine.
    libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_settimeofday, libc::SYS_clock_settime,
    libc::SYS_adjtimex, libc::SYS_clock_adjtime, libc::SYS_acct, libc::SYS_quotactl, libc::SYS_quotactl_fd,
    libc::SYS_vhangup, libc::SYS_iopl, libc::SYS_ioperm,
];

/// Those that depend on an argument.
const CHECKED: &[(c_long, Check)] = &[
    (libc::SYS_clone, Check::Clone),
    (libc::SYS_ioctl, Check::Ioctl),
    (libc::SYS_personality, Check::Personality),
    (libc::SYS_socket, Check::Socket),
    (libc::SYS_socketpair, Check::SocketPair),
];

// Newer than the C library's list of names.
const IO_PGETEVENTS: c_long = 333;
const CACHESTAT: c_long = 451;
const MAP_SHADOW_STACK: c_long = 453;
const FUTEX_WAKE: c_long = 454;
const FUTEX_WAIT: c_long = 455;
const FUTEX_REQUEUE: c_long = 456;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const SETXATTRAT: c_long = 463;
const GETXATTRAT: c_long = 464;
const LISTXATTRAT: c_long = 465;
const REMOVEXATTRAT: c_long = 466;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_GETATTR: c_long = 468;
const FILE_SETATTR: c_long = 469;

/// All that the init of a pause leader does once the filter is there.
#[rustfmt::skip]
const PAUSE: &[c_long] = &[
    libc::SYS_write, libc::SYS_close_range, libc::SYS_prctl, libc::SYS_capset, libc::SYS_rt_sigtimedwait, libc::SYS_wait4,
    libc::SYS_kill, libc::SYS_exit_group, libc::SYS_restart_syscall,
];

const CLONE_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
const REFUSED_IOCTLS: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];
const NAMING: [c_long; 3] = [libc::SYS_bind, libc::SYS_connect, libc::SYS_listen];
/// Each kind that stays connected, with each combination of flags.
const CONNECTED_KINDS: [u32; 8] = {
    let (none, nonblock, cloexec) = (0, libc::SOCK_NONBLOCK as u32, libc::SOCK_CLOEXEC as u32);
    let (stream, packets) = (libc::SOCK_STREAM as u32, libc::SOCK_SEQPACKET as u32);
    [
        stream | none,
        stream | nonblock,
        stream | cloexec,
        stream | nonblock | cloexec,
        packets | none,
        packets | nonblock,
        packets | cloexec,
        packets | nonblock | cloexec,
    ]
};
const FAMILIES: [u32; 4] =
    [libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32];

/// The filter of processes: with or without sockets.
pub(super) fn default_filter(no_sockets: bool) -> Arc<[Instruction]> {
    static FILTERS: LazyLock<[Arc<[Instruction]>; 2]> =
        LazyLock::new(|| [false, true].map(|no_sockets| compile(&default_rules(no_sockets))));
    Arc::clone(&FILTERS[usize::from(no_sockets)])
}

/// The filter of a pause leader.
pub(super) fn pause_filter() -> Arc<[Instruction]> {
    static FILTER: LazyLock<Arc<[Instruction]>> = LazyLock::new(|| {
        compile(&PAUSE.iter().map(|number| (*number as u32, Action::Allow)).collect::<Vec<_>>())
    });
    Arc::clone(&FILTER)
}

/// What becomes of each call, by number. What is not in it is ENOSYS.
type Rules = Vec<(u32, Action)>;

fn default_rules(no_sockets: bool) -> Rules {
    let allowed = ALLOWED.iter().map(|number| match number {
        // What has no sockets but pairs has nothing to name them for.
        number if no_sockets && NAMING.contains(number) => (*number as u32, Action::Fail(libc::EAFNOSUPPORT)),
        number => (*number as u32, Action::Allow),
    });
    let refused = REFUSED.iter().map(|number| (*number as u32, Action::Fail(libc::EPERM)));
    let checked = CHECKED.iter().map(|(number, check)| match check {
        Check::Socket if no_sockets => (*number as u32, Action::Fail(libc::EAFNOSUPPORT)),
        Check::SocketPair if no_sockets => (*number as u32, Action::Check(Check::ConnectedPair)),
        check => (*number as u32, Action::Check(*check)),
    });
    allowed.chain(refused).chain(checked).collect()
}

// Classic BPF, as Documentation/networking/filter.rst numbers it.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Where a jump leads: to what becomes of a call, or to a node of the tree.
#[derive(Debug, Clone, Copy)]
enum Target {
    Action(Action),
    Node(usize),
}

/// Makes a filter. Calls of another architecture, and those of x32 (which lie above all numbers), are unknown
/// ones.
fn compile(rules: &[(u32, Action)]) -> Arc<[Instruction]> {
    let unknown = Action::Fail(libc::ENOSYS);
    let mut assembler = Assembler::default();
    assembler.plain(LOAD, ARCHITECTURE);
    assembler.jump(JUMP_EQUAL, AUDIT_ARCH_X86_64, Target::Node(2), Target::Action(unknown));
    assembler.plain(LOAD, NUMBER);
    assembler.tree(&ranges(rules, unknown));
    assembler.finish()
}

/// Joins neighbours that are treated alike; each range reaches to the start of the next, the last to the end
/// of numbers.
fn ranges(rules: &[(u32, Action)], unknown: Action) -> Vec<(u32, Action)> {
    let mut sorted = rules.to_vec();
    sorted.sort_by_key(|(number, _)| *number);
    let mut ranges = vec![(0, unknown)];
    let mut push = |start: u32, action: Action| {
        let (last_start, last) = ranges[ranges.len() - 1];
        if last_start == start {
            let at = ranges.len() - 1;
            ranges[at] = (start, action);
        } else if last != action {
            ranges.push((start, action));
        }
    };
    let mut next = 0;
    for (number, action) in sorted {
        if number > next {
            push(next, unknown);
        }
        push(number, action);
        next = number + 1;
    }
    push(next, unknown);
    ranges
}

/// Instructions with jumps that are not resolved yet. All lead forward: nodes first, what becomes of a call
/// after them.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Target, Target)>,
}

impl Assembler {
    fn plain(&mut self, code: u16, value: u32) {
        self.instructions.push(Instruction { code, jump_true: 0, jump_false: 0, value });
    }

    fn jump(&mut self, code: u16, value: u32, then: Target, otherwise: Target) -> usize {
        let at = self.instructions.len();
        self.plain(code, value);
        self.jumps.push((at, then, otherwise));
        at
    }

    /// Emits a search tree over ranges, and says where to enter it.
    fn tree(&mut self, ranges: &[(u32, Action)]) -> Target {
        if let [(_, action)] = ranges {
            return Target::Action(*action);
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let at = self.instructions.len();
        self.plain(JUMP_AT_LEAST, high[0].0);
        let low = self.tree(low);
        let high = self.tree(high);
        self.jumps.push((at, high, low));
        Target::Node(at)
    }

    /// Emits what becomes of calls and resolves every jump.
    fn finish(mut self) -> Arc<[Instruction]> {
        let mut places: Vec<(Action, usize)> = Vec::new();
        for (at, then, otherwise) in std::mem::take(&mut self.jumps) {
            let [then, otherwise] = [then, otherwise].map(|target| self.place(target, &mut places));
            // Its jumps have 8 bits. The tests compile every filter there is, so a list that outgrows them is
            // noticed.
            let distance =
                |place: usize| u8::try_from(place - at - 1).expect("a filter of at most 255 instructions");
            self.instructions[at].jump_true = distance(then);
            self.instructions[at].jump_false = distance(otherwise);
        }
        self.instructions.into()
    }

    fn place(&mut self, target: Target, places: &mut Vec<(Action, usize)>) -> usize {
        let action = match target {
            Target::Node(at) => return at,
            Target::Action(action) => action,
        };
        if let Some((_, at)) = places.iter().find(|(known, _)| *known == action) {
            return *at;
        }
        let at = self.instructions.len();
        match action {
            Action::Allow => self.plain(RETURN, libc::SECCOMP_RET_ALLOW),
            Action::Fail(errno) => self.plain(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32),
            Action::Check(check) => self.check(check),
        }
        places.push((action, at));
        at
    }

    fn check(&mut self, check: Check) {
        let argument = |index: u32| ARGUMENTS + 8 * index;
        match check {
            Check::Clone => {
                self.plain(LOAD, argument(0));
                self.plain(JUMP_ANY_BIT, CLONE_NAMESPACES as u32);
                self.verdict(1, 0);
            }
            Check::Ioctl => self.none_of(argument(1), &REFUSED_IOCTLS),
            Check::Personality => self.one_of(argument(0), &PERSONALITIES),
            Check::Socket => self.one_of(argument(0), &FAMILIES),
            Check::SocketPair => self.one_of(argument(0), &[libc::AF_UNIX as u32]),
            Check::ConnectedPair => {
                self.plain(LOAD, argument(0));
                self.plain(JUMP_EQUAL, libc::AF_UNIX as u32);
                if let Some(unix) = self.instructions.last_mut() {
                    unix.jump_true = 1;
                }
                self.plain(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
                self.one_of(argument(1), &CONNECTED_KINDS);
            }
        }
    }

    fn one_of(&mut self, offset: u32, values: &[u32]) {
        self.compare(offset, values);
        self.verdict(0, 1);
    }

    fn none_of(&mut self, offset: u32, values: &[u32]) {
        self.compare(offset, values);
        self.verdict(1, 0);
    }

    /// Loads an argument and compares it with each value. `verdict` says where that leads.
    fn compare(&mut self, offset: u32, values: &[u32]) {
        self.plain(LOAD, offset);
        for value in values {
            self.plain(JUMP_EQUAL, *value);
        }
    }

    /// Closes a check with its two verdicts: 0 allows, 1 refuses. Whatever comparison holds leads to one, the
    /// last that does not to the other.
    fn verdict(&mut self, holds: usize, otherwise: usize) {
        let end = self.instructions.len();
        let mut at = end;
        while at > 0 && self.instructions[at - 1].code != LOAD {
            at -= 1;
            let last = at + 1 == end;
            let instruction = &mut self.instructions[at];
            instruction.jump_true = (end + holds - at - 1) as u8;
            instruction.jump_false = if last { otherwise as u8 } else { 0 };
        }
        self.plain(RETURN, libc::SECCOMP_RET_ALLOW);
        self.plain(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
