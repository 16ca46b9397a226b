//! What a sandbox must not be able to do, and what it must, as one table. This test program runs itself
//! inside of sandboxes, tries every row, and tells the outcomes.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use libc::{EACCES, EAFNOSUPPORT, EBADF, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, EROFS, c_long};

use super::rig::{IDS, Rig, run_shell};
use crate::spec::{Mount, Network, ProcessSpec, SandboxSpec, Users};

/// A row: what is tried, and how it may fail. No errno: it must succeed.
type Row = (&'static str, &'static [i32], fn() -> io::Result<()>);

/// A masked path that every kernel has.
const MASK: &CStr = c"/proc/interrupts";

/// A system call by number.
fn call(number: c_long, arguments: [usize; 5]) -> io::Result<usize> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every row passes zeros, small numbers, or addresses of what outlives the call, as the call
    // wants them.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

fn tried(number: c_long, arguments: [usize; 5]) -> io::Result<()> {
    call(number, arguments).map(drop)
}

fn at(text: &'static CStr) -> usize {
    text.as_ptr() as usize
}

fn written(path: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path).map(drop)
}

fn denied() -> io::Error {
    io::Error::from_raw_os_error(EACCES)
}

/// Fails unless it holds.
fn holds(it: bool) -> io::Result<()> {
    if it { Ok(()) } else { Err(denied()) }
}

/// Succeeds if a child cloned with these flags comes to be.
fn cloned(flags: i32) -> io::Result<()> {
    match call(libc::SYS_clone, [(flags | libc::SIGCHLD) as usize, 0, 0, 0, 0])? {
        // SAFETY: ends the child at once, touching nothing.
        0 => unsafe { libc::_exit(0) },
        pid => tried(libc::SYS_wait4, [pid, 0, 0, 0, 0]),
    }
}

/// What comes of it in user and mount namespaces that a child makes for itself, where it has every
/// capability.
fn in_own_namespaces(attempt: fn() -> io::Result<()>) -> io::Result<()> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(EBADF);
    let pid = call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0])?;
    if pid == 0 {
        let namespaces = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize;
        let outcome = match tried(libc::SYS_unshare, [namespaces, 0, 0, 0, 0]) {
            Ok(()) => attempt().err().map_or(0, errno),
            Err(_) => EBADF,
        };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(outcome) };
    }
    let mut status = 0_i32;
    tried(libc::SYS_wait4, [pid, &raw mut status as usize, 0, 0, 0])?;
    match libc::WEXITSTATUS(status) {
        0 if status == 0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn terminal() -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx")
}

fn ioctl(request: u64) -> io::Result<()> {
    tried(libc::SYS_ioctl, [terminal()?.as_raw_fd() as usize, request as usize, at(c"x"), 0, 0])
}

fn raise_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for one limit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_max += 1;
    // SAFETY: one limit to read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn gain_capabilities() -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets = [u32::MAX, u32::MAX, 0, 0, 0, 0];
    tried(libc::SYS_capset, [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0])
}

/// Succeeds if any process outside of this PID namespace is visible: there are init, this process, and nobody
/// else.
fn see_others() -> io::Result<()> {
    let own = [1, std::process::id()];
    let mut pids =
        fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    holds(pids.any(|pid: u32| !own.contains(&pid)))
}

/// Succeeds if a device other than the harmless ones is there.
fn find_device() -> io::Result<()> {
    let harmless = ["null", "zero", "full", "random", "urandom", "tty"];
    let is_device = |kind: fs::FileType| kind.is_char_device() || kind.is_block_device();
    let mut devices = fs::read_dir("/dev")?.flatten().filter(|entry| entry.file_type().is_ok_and(is_device));
    holds(devices.any(|entry| entry.file_name().to_str().is_none_or(|name| !harmless.contains(&name))))
}

/// Succeeds if there is a descriptor beside 0 to 2 and the one that looks.
fn find_descriptor() -> io::Result<()> {
    holds(fs::read_dir("/proc/self/fd")?.count() > 4)
}

fn join_init(kind: &str) -> io::Result<()> {
    let file = File::open(format!("/proc/1/ns/{kind}"))?;
    tried(libc::SYS_setns, [file.as_raw_fd() as usize, 0, 0, 0, 0])
}

/// Succeeds if /proc/kcore holds memory.
fn read_kernel_memory() -> io::Result<()> {
    let mut first = [0; 1];
    holds(File::open("/proc/kcore")?.read(&mut first)? > 0)
}

fn flags_of(path: &CStr) -> u64 {
    // SAFETY: zeros are a value of this type, and there is room for one.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        libc::statvfs(path.as_ptr(), &raw mut found);
        found.f_flag
    }
}

/// What no sandbox may do, however it is configured.
#[rustfmt::skip]
const NEVER: &[Row] = &[
    ("see processes outside", &[EACCES], see_others),
    ("find a device of the machine", &[EACCES], find_device),
    ("find a descriptor left open", &[EACCES], find_descriptor),
    ("read kernel memory", &[EACCES, ENOENT], read_kernel_memory),
    ("open /dev/mem", &[ENOENT], || File::open("/dev/mem").map(drop)),
    ("write /proc/sys", &[EROFS, EACCES], || written("/proc/sys/kernel/domainname")),
    ("write /proc/sysrq-trigger", &[EROFS, EACCES, ENOENT], || written("/proc/sysrq-trigger")),
    ("write /sys", &[EROFS, EACCES], || written("/sys/kernel/uevent_helper").or_else(|_| written("/sys/kernel/profiling"))),
    ("see the firmware", &[EACCES], || holds(fs::read_dir("/sys/firmware")?.count() > 0)),
    ("write a file of the host", &[EROFS, EACCES], || written("/etc/passwd")),
    ("make a file on the host", &[EROFS], || File::create("/usr/escaped").map(drop)),
    ("give away a device", &[EROFS, EPERM], || fs::set_permissions("/dev/null", fs::Permissions::from_mode(0o600))),
    ("mount", &[EPERM], || tried(libc::SYS_mount, [at(c"none"), at(c"/tmp"), at(c"tmpfs"), 0, 0])),
    ("unmount a mask", &[EPERM], || tried(libc::SYS_umount2, [at(MASK), libc::MNT_DETACH as usize, 0, 0, 0])),
    ("unmount /proc", &[EPERM], || tried(libc::SYS_umount2, [at(c"/proc"), libc::MNT_DETACH as usize, 0, 0, 0])),
    ("make /usr writable", &[EPERM], || tried(libc::SYS_mount, [0, at(c"/"), 0, (libc::MS_REMOUNT | libc::MS_BIND) as usize, 0])),
    ("pivot the root", &[EPERM], || tried(libc::SYS_pivot_root, [at(c"/tmp"), at(c"/tmp"), 0, 0, 0])),
    ("chroot", &[EPERM], || tried(libc::SYS_chroot, [at(c"/tmp"), 0, 0, 0, 0])),
    ("make a device", &[EPERM], || tried(libc::SYS_mknod, [at(c"/tmp/vda"), (libc::S_IFBLK | 0o600) as usize, 0xfe00, 0, 0])),
    ("trace init", &[EPERM], || tried(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, 1, 0, 0, 0])),
    ("enter init's root", &[EACCES, EPERM], || fs::read_dir("/proc/1/root/").map(drop)),
    ("read init's memory", &[EACCES, EPERM], || File::open("/proc/1/mem").map(drop)),
    ("join init's network", &[EACCES, EPERM], || join_init("net")),
    ("join init's mounts", &[EACCES, EPERM], || join_init("mnt")),
    ("join init's users", &[EACCES, EPERM, EINVAL], || join_init("user")),
    ("unshare mounts", &[EPERM], || tried(libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0])),
    ("raise a hard limit", &[EPERM], raise_limit),
    ("gain capabilities", &[EPERM], gain_capabilities),
    ("gain privileges by a program", &[EACCES], || holds(flags_of(c"/") & libc::ST_NOSUID == 0)),
    ("become a realtime process", &[EPERM], || {
        let priority = 10;
        tried(libc::SYS_sched_setscheduler, [0, libc::SCHED_FIFO as usize, &raw const priority as usize, 0, 0])
    }),
    ("be nicer to itself", &[EACCES, EPERM], || tried(libc::SYS_setpriority, [0, 0, -5_isize as usize, 0, 0])),
    ("open a raw socket", &[EPERM, EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_RAW as usize, 1, 0, 0])),
    ("open a packet socket", &[EPERM, EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_PACKET as usize, libc::SOCK_RAW as usize, 0, 0, 0])),
    ("name the host", &[EPERM], || tried(libc::SYS_sethostname, [at(c"x"), 1, 0, 0, 0])),
    ("set the clock", &[EPERM], || tried(libc::SYS_settimeofday, [[0_u64; 2].as_ptr() as usize, 0, 0, 0, 0])),
    ("reboot", &[EPERM], || tried(libc::SYS_reboot, [0xfee1_dead, 0x2812_1969, 0, 0, 0])),
    ("load a module", &[EPERM, ENOSYS], || tried(libc::SYS_init_module, [0, 0, at(c""), 0, 0])),
    ("load another kernel", &[EPERM, ENOSYS], || tried(libc::SYS_kexec_load, [0, 0, 0, 0, 0])),
    ("swap", &[EPERM], || tried(libc::SYS_swapon, [at(c"/tmp"), 0, 0, 0, 0])),
    ("use ports", &[EPERM, ENOSYS], || tried(libc::SYS_iopl, [3, 0, 0, 0, 0])),
    ("account", &[EPERM, ENOSYS], || tried(libc::SYS_acct, [0, 0, 0, 0, 0])),
    ("hang up the terminal", &[EPERM], || tried(libc::SYS_vhangup, [0; 5])),
];

/// What the filter forbids besides.
#[rustfmt::skip]
const FILTERED: &[Row] = &[
    ("unshare users", &[EPERM], || tried(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0, 0, 0])),
    ("clone users", &[EPERM], || cloned(libc::CLONE_NEWUSER)),
    ("clone a network", &[EPERM], || cloned(libc::CLONE_NEWNET | libc::CLONE_NEWUSER)),
    ("clone3", &[ENOSYS], || tried(libc::SYS_clone3, [0, 64, 0, 0, 0])),
    ("be traced", &[EPERM], || tried(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0])),
    ("read another's memory", &[EPERM], || tried(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0])),
    ("take another's descriptor", &[EPERM], || tried(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0])),
    ("use the keyring", &[EPERM], || tried(libc::SYS_keyctl, [0, -3_isize as usize, 0, 0, 0])),
    ("add a key", &[EPERM], || tried(libc::SYS_add_key, [at(c"user"), at(c"k"), at(c"v"), 1, -3_isize as usize])),
    ("load BPF", &[EPERM], || tried(libc::SYS_bpf, [0; 5])),
    ("count events", &[EPERM], || tried(libc::SYS_perf_event_open, [0; 5])),
    ("use io_uring", &[EPERM], || tried(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0])),
    ("handle page faults", &[EPERM], || tried(libc::SYS_userfaultfd, [0; 5])),
    ("open by handle", &[EPERM], || tried(libc::SYS_open_by_handle_at, [libc::AT_FDCWD as usize, 0, 0, 0, 0])),
    ("name a file's handle", &[EPERM], || tried(libc::SYS_name_to_handle_at, [0; 5])),
    ("read the kernel's log", &[EPERM], || tried(libc::SYS_syslog, [3, 0, 0, 0, 0])),
    ("open a tree", &[EPERM], || tried(libc::SYS_open_tree, [libc::AT_FDCWD as usize, at(c"/"), 1, 0, 0])),
    ("set up a file system", &[EPERM], || tried(libc::SYS_fsopen, [at(c"tmpfs"), 0, 0, 0, 0])),
    ("type into a terminal", &[EPERM], || ioctl(libc::TIOCSTI)),
    ("type into a console", &[EPERM], || ioctl(libc::TIOCLINUX)),
    ("lose randomness of addresses", &[EPERM], || tried(libc::SYS_personality, [0x4_0000, 0, 0, 0, 0])),
    ("talk to the hypervisor", &[EPERM, EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_VSOCK as usize, 1, 0, 0, 0])),
    ("use the kernel's ciphers", &[EPERM, EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_ALG as usize, 5, 0, 0, 0])),
    ("call the x32 way", &[ENOSYS], || tried(0x4000_0000 | libc::SYS_getpid, [0; 5])),
    ("call what no kernel has", &[ENOSYS], || tried(1000, [0; 5])),
];

/// What every sandbox can.
#[rustfmt::skip]
const ALWAYS: &[Row] = &[
    ("fork", &[], || cloned(0)),
    ("run a thread", &[], || std::thread::spawn(|| ()).join().map_err(|_| denied())),
    ("execute a program", &[], || holds(std::process::Command::new("/bin/true").status()?.success())),
    ("make a pipe", &[], || io::pipe().map(drop)),
    ("make a pair of sockets", &[], || std::os::unix::net::UnixStream::pair().map(drop)),
    ("poll", &[], || tried(libc::SYS_epoll_create1, [0; 5])),
    ("make a file in memory", &[], || tried(libc::SYS_memfd_create, [at(c"x"), 0, 0, 0, 0])),
    ("make an event", &[], || tried(libc::SYS_eventfd2, [0; 5])),
    ("make a timer", &[], || tried(libc::SYS_timerfd_create, [0; 5])),
    ("watch files", &[], || tried(libc::SYS_inotify_init1, [0; 5])),
    ("write to /tmp", &[], || fs::write("/tmp/file", "x")),
    ("write to shared memory", &[], || fs::write("/dev/shm/file", "x")),
    ("open a terminal", &[], || terminal().map(drop)),
    ("read random numbers", &[], || File::open("/dev/urandom")?.read_exact(&mut [0; 16])),
    ("throw away", &[], || fs::write("/dev/null", "x")),
    ("read /proc/cpuinfo", &[], || holds(fs::read_to_string("/proc/cpuinfo")?.contains("processor"))),
    ("see only its own PID namespace's init", &[], || holds(fs::metadata("/proc/1")?.is_dir())),
    ("fill the kernel's memory with empty files", &[ENOSPC], || {
        (0..20_000).try_for_each(|number| File::create(format!("/dev/shm/{number}")).map(drop))
    }),
    ("own /tmp", &[], || holds(fs::metadata("/tmp")?.mode() & 0o7777 == 0o1777)),
    ("make a FIFO", &[], || tried(libc::SYS_mknod, [at(c"/tmp/fifo"), (libc::S_IFIFO | 0o600) as usize, 0, 0, 0])),
    // Without an effect: the kernel shields a PID 1 from its own namespace.
    ("send init a signal that is ignored", &[], || tried(libc::SYS_kill, [1, libc::SIGKILL as usize, 0, 0, 0]).or(Ok(()))),
];

/// With a network.
#[rustfmt::skip]
const NETWORKED: &[Row] = &[
    ("listen", &[], || std::net::TcpListener::bind("0.0.0.0:0").map(drop)),
    ("listen on a path", &[], || std::os::unix::net::UnixListener::bind("/tmp/socket").map(drop)),
];

/// Without one.
#[rustfmt::skip]
const UNNETWORKED: &[Row] = &[
    ("open a TCP socket", &[EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_INET as usize, 1, 0, 0, 0])),
    ("make a pair of datagram sockets", &[EPERM], || std::os::unix::net::UnixDatagram::pair().map(drop)),
    ("give one of a pair a name", &[EAFNOSUPPORT], || {
        let (one, _other) = std::os::unix::net::UnixStream::pair()?;
        // sockaddr_un with the abstract name of no length: the kernel would choose one.
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        tried(libc::SYS_bind, [one.as_raw_fd() as usize, family.as_ptr() as usize, family.len(), 0, 0])
    }),
    ("open a UNIX socket", &[EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_UNIX as usize, 1, 0, 0, 0])),
    ("listen to the kernel", &[EAFNOSUPPORT], || tried(libc::SYS_socket, [libc::AF_NETLINK as usize, 3, 0, 0, 0])),
    ("see the host's network", &[EACCES], || holds(fs::read_to_string("/proc/net/dev")?.lines().count() > 3)),
];

/// Without the filter: what the kernel's own checks still prevent, in namespaces that a sandbox can make for
/// itself then.
#[rustfmt::skip]
const UNFILTERED: &[Row] = &[
    ("undo a mask in namespaces of its own", &[EINVAL], || {
        in_own_namespaces(|| tried(libc::SYS_umount2, [at(MASK), libc::MNT_DETACH as usize, 0, 0, 0]))
    }),
    ("undo a mount of its root there", &[EINVAL], || {
        in_own_namespaces(|| tried(libc::SYS_umount2, [at(c"/proc"), libc::MNT_DETACH as usize, 0, 0, 0]))
    }),
    ("make its root writable there", &[EPERM], || {
        in_own_namespaces(|| tried(libc::SYS_mount, [0, at(c"/"), 0, (libc::MS_REMOUNT | libc::MS_BIND) as usize, 0]))
    }),
    ("make /proc/sys writable there", &[EPERM], || {
        in_own_namespaces(|| tried(libc::SYS_mount, [0, at(c"/proc/sys"), 0, (libc::MS_REMOUNT | libc::MS_BIND) as usize, 0]))
    }),
    ("mount a proc without masks there", &[EPERM], || {
        in_own_namespaces(|| tried(libc::SYS_mount, [at(c"proc"), at(c"/tmp"), at(c"proc"), 0, 0]))
    }),
    ("mount a writable /sys there", &[EPERM], || {
        in_own_namespaces(|| tried(libc::SYS_mount, [at(c"sysfs"), at(c"/tmp"), at(c"sysfs"), 0, 0]))
    }),
];

fn rows(set: &str) -> Vec<Row> {
    let sets: &[&[Row]] = match set {
        "default" => &[NEVER, FILTERED, ALWAYS, NETWORKED],
        "unnetworked" => &[NEVER, FILTERED, UNNETWORKED, ALWAYS],
        "unfiltered" => &[NEVER, UNFILTERED, ALWAYS, NETWORKED],
        other => panic!("no rows are called {other}"),
    };
    sets.concat()
}

/// Names the rows to try, inside.
const PROBE: &str = "SANDKEEPER_TEST_PROBE";

/// The test that runs inside of sandboxes as well, where it is the probe.
const SELF: &str = "runtime::linux::escape_tests::a_sandbox_can_do_its_work_and_nothing_beyond";

/// Tries every row from inside of a sandbox, and tells each errno.
fn probe(set: &str) {
    println!();
    for (number, (_, _, attempt)) in rows(set).into_iter().enumerate() {
        let errno = attempt().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        println!("row {number} {errno}");
    }
}

async fn check(set: &str, change: impl FnOnce(&mut SandboxSpec)) {
    let rig = Rig::new(1);
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    let mut output = run_shell(&rig, "", |spec| {
        let process = spec.process.as_mut().unwrap();
        let args = [&format!("/mnt/{name}"), "--exact", "--nocapture", SELF];
        process.args = ProcessSpec::new(args).args;
        process.env = vec![format!("{PROBE}={set}"), "RUST_TEST_THREADS=1".to_owned()];
        spec.mounts =
            vec![Mount { source: program.parent().unwrap().into(), target: "/mnt".into(), writable: false }];
        change(spec);
    })
    .await
    .unwrap_or_else(|error| panic!("{error}"));
    let (end, text) = (output.0, std::mem::take(&mut output.1));
    assert_eq!(end.told, Some(0), "{text}");
    let rows = rows(set);
    let mut outcomes = text.lines().filter_map(|line| line.strip_prefix("row "));
    let mut wrong = Vec::new();
    for (number, (what, expected, _)) in rows.iter().enumerate() {
        let line = outcomes.next().unwrap_or_else(|| panic!("no outcome for {what:?} in\n{text}"));
        let (at, errno) = line.split_once(' ').unwrap();
        assert_eq!(at.parse(), Ok(number));
        let errno: i32 = errno.parse().unwrap();
        if !(expected.is_empty() && errno == 0 || expected.contains(&errno)) {
            let outcome =
                if errno == 0 { "could".to_owned() } else { io::Error::from_raw_os_error(errno).to_string() };
            wrong.push(format!("{what}: {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "with rows {set:?}:\n{}", wrong.join("\n"));
}

/// Goal: untrusted code inside can do what programs do, and nothing to anybody outside. Method: this test again, inside, as
/// the probe that tries every row.
#[test]
fn a_sandbox_can_do_its_work_and_nothing_beyond() {
    if let Ok(set) = std::env::var(PROBE) {
        // Before any runtime opens descriptors of its own.
        return probe(&set);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(check("default", |_| {}));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_of_a_sandbox_can_do_no_more() {
    check("default", |spec| {
        let user = &mut spec.process.as_mut().unwrap().user;
        (user.uid, user.gid) = (1000, 1000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn even_the_hosts_root_can_do_no_more_inside() {
    check("default", |spec| spec.isolation.users = Users::Host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_there_are_no_sockets_but_pairs() {
    check("unnetworked", |spec| spec.network = Network::None).await;
}

/// Goal: the filter is not the only wall. Method: without it, with namespaces that the sandbox makes for
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_filter_the_kernels_own_checks_still_hold() {
    check("unfiltered", |spec| spec.isolation.no_seccomp = true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_mapped_as_planned_and_no_right_is_left() {
    let rig = Rig::new(1);
    // The process may run a moment before its init has dropped its own capabilities.
    let script = "sleep 0.2; cat /proc/self/uid_map /proc/self/gid_map /proc/self/status; cat /proc/1/status";
    let (_, output) = run_shell(&rig, script, |_| {}).await.unwrap_or_else(|error| panic!("{error}"));
    let map: Vec<_> =
        output.lines().take(2).map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let range = ["0".to_owned(), IDS.host_start.to_string(), IDS.count.to_string()];
    assert_eq!(map, [range.each_ref().map(String::as_str), range.each_ref().map(String::as_str)]);
    let lines = |start: &str| output.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    assert_eq!(lines("CapBnd"), ["CapBnd:\t0000000000000000"; 2]);
    assert_eq!(
        lines("CapPrm"),
        ["CapPrm:\t0000000000000000", "CapPrm:\t0000000000000020"],
        "init keeps CAP_KILL"
    );
    assert_eq!(lines("CapInh"), ["CapInh:\t0000000000000000"; 2]);
    assert_eq!(lines("CapAmb"), ["CapAmb:\t0000000000000000"; 2]);
    assert_eq!(lines("NoNewPrivs"), ["NoNewPrivs:\t1"; 2]);
    assert_eq!(lines("Seccomp:"), ["Seccomp:\t2"; 2]);
    assert_eq!(lines("SigBlk")[0], "SigBlk:\t0000000000000000");
    assert_eq!(lines("SigIgn")[0], "SigIgn:\t0000000000000000");
}
