use super::*;

/// Runs a filter as the kernel does, for the instructions we use.
fn interpret(filter: &[Instruction], number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jump_true, jump_false, value } = filter[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jump_true } else { jump_false });
        match code {
            LOAD => {
                accumulator = match value {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    offset if offset >= ARGUMENTS && offset % 4 == 0 => {
                        let word = (offset - ARGUMENTS) / 4;
                        (arguments[word as usize / 2] >> (32 * (word % 2))) as u32
                    }
                    offset => panic!("no field at {offset}"),
                }
            }
            JUMP_EQUAL => jump(accumulator == value),
            JUMP_AT_LEAST => jump(accumulator >= value),
            JUMP_ANY_BIT => jump(accumulator & value != 0),
            RETURN => return value,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

fn fail(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// What the lists say, read without any cleverness.
fn naive(number: u32, arguments: [u64; 6], no_sockets: bool) -> u32 {
    let listed = |list: &[c_long]| list.contains(&c_long::from(number));
    let either = |allowed: bool| if allowed { libc::SECCOMP_RET_ALLOW } else { fail(libc::EPERM) };
    let [first, second] = [arguments[0] as u32, arguments[1] as u32];
    match c_long::from(number) {
        libc::SYS_clone => either(first & CLONE_NAMESPACES as u32 == 0),
        libc::SYS_ioctl => either(!REFUSED_IOCTLS.contains(&second)),
        libc::SYS_personality => either(PERSONALITIES.contains(&first)),
        libc::SYS_socket if no_sockets => fail(libc::EAFNOSUPPORT),
        libc::SYS_socket => either(FAMILIES.contains(&first)),
        libc::SYS_socketpair if no_sockets => {
            let kind = second & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u32;
            let connected = kind == libc::SOCK_STREAM as u32 || kind == libc::SOCK_SEQPACKET as u32;
            either(first == libc::AF_UNIX as u32 && connected)
        }
        libc::SYS_bind | libc::SYS_connect | libc::SYS_listen if no_sockets => fail(libc::EAFNOSUPPORT),
        libc::SYS_socketpair => either(first == libc::AF_UNIX as u32),
        _ if listed(ALLOWED) => libc::SECCOMP_RET_ALLOW,
        _ if listed(REFUSED) => fail(libc::EPERM),
        _ => fail(libc::ENOSYS),
    }
}

/// Goal: the tree means what the lists say. Method: interpret it for every number and for arguments on both
/// sides of each rule, and with junk in the upper half, which the kernel ignores too.
#[test]
fn the_tree_decides_as_the_lists_do() {
    let mut values: Vec<u64> = (0..64).map(|bit| 1 << bit).collect();
    values.extend(0..48);
    values.extend(PERSONALITIES.map(u64::from));
    values.extend(REFUSED_IOCTLS.map(u64::from));
    values.extend(CONNECTED_KINDS.map(u64::from));
    values.extend([2 | 0x800, 3 | 0x8_0000, 6, u64::MAX, 0x8000_0000, 0x7e02_0000, 0x003d_0f00, 0x5413]);
    let junk: Vec<u64> = values.iter().map(|value| value | 0xdead_beef_0000_0000).collect();
    values.extend(junk);
    for no_sockets in [false, true] {
        let filter = default_filter(no_sockets);
        for number in 0..1024 {
            for value in &values {
                let arguments = [*value, value.rotate_left(7), 3, 4, 5, 6];
                let unix = [libc::AF_UNIX as u64, *value, 3, 4, 5, 6];
                for arguments in [arguments, [arguments[1], arguments[0], 3, 4, 5, 6], unix] {
                    assert_eq!(
                        interpret(&filter, number, AUDIT_ARCH_X86_64, arguments),
                        naive(number, arguments, no_sockets),
                        "call {number} with {arguments:x?}, without sockets: {no_sockets}"
                    );
                }
            }
        }
    }
}

#[test]
fn calls_of_another_architecture_do_not_exist() {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    const X32: u32 = 0x4000_0000;
    for number in 0..600 {
        let filter = default_filter(false);
        assert_eq!(
            interpret(&filter, number, AUDIT_ARCH_I386, [0; 6]),
            fail(libc::ENOSYS),
            "i386 call {number}"
        );
        assert_eq!(
            interpret(&filter, number | X32, AUDIT_ARCH_X86_64, [0; 6]),
            fail(libc::ENOSYS),
            "x32 call {number}"
        );
    }
    assert_eq!(interpret(&default_filter(false), u32::MAX, AUDIT_ARCH_X86_64, [0; 6]), fail(libc::ENOSYS));
}

#[test]
fn a_filter_is_small_and_no_call_is_listed_twice() {
    for filter in [default_filter(false), default_filter(true), pause_filter()] {
        assert!(filter.len() <= 200, "{} instructions", filter.len());
    }
    let mut numbers: Vec<_> = default_rules(false).iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        assert_ne!(pair[0], pair[1], "listed twice");
    }
}

/// Goal: the init is not stopped by the filter it installs. Method: each call it makes afterwards, by reading
/// its source.
#[test]
fn the_init_may_do_what_it_has_to() {
    let both = [
        libc::SYS_write,
        libc::SYS_close_range,
        libc::SYS_prctl,
        libc::SYS_capset,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_wait4,
        libc::SYS_kill,
        libc::SYS_exit_group,
    ];
    let with_process = [
        libc::SYS_setsid,
        libc::SYS_prlimit64,
        libc::SYS_setgroups,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_chdir,
        libc::SYS_rt_sigprocmask,
        libc::SYS_execve,
    ];
    let vfork = [(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0];
    for number in both {
        assert_eq!(
            interpret(&pause_filter(), number as u32, AUDIT_ARCH_X86_64, [0; 6]),
            libc::SECCOMP_RET_ALLOW
        );
    }
    for number in both.into_iter().chain(with_process) {
        assert_eq!(
            interpret(&default_filter(true), number as u32, AUDIT_ARCH_X86_64, [0; 6]),
            libc::SECCOMP_RET_ALLOW
        );
    }
    let clone = interpret(&default_filter(true), libc::SYS_clone as u32, AUDIT_ARCH_X86_64, vfork);
    assert_eq!(clone, libc::SECCOMP_RET_ALLOW);
}
