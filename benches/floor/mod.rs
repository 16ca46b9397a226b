//! The floor under a real start: make a cgroup, clone into it with every namespace, pause. Nothing is set up, mapped,
//! dropped or filtered in it, and no program is executed.
#![allow(unsafe_code)]

use std::arch::asm;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWCGROUP;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
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

/// Clones a child that does nothing but pause. It shares our memory, so that the size of that does not count, and it
/// never returns from here: it needs no stack.
fn clone_pausing(group: &File) -> io::Result<OwnedFd> {
    let mut pidfd: i32 = -1;
    let mut no_stack = [0_u8; 16];
    let args = CloneArgs {
        flags: NAMESPACES as u64 | libc::CLONE_VM as u64 | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: no_stack.as_mut_ptr() as u64,
        stack_size: 16,
        cgroup: group.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    let result: i64;
    // SAFETY: the child runs only the loop between the labels, which touches no memory; the parent goes on behind it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            "3:",
            pause = const libc::SYS_pause,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Starts bare processes in groups below a directory.
pub(crate) struct Floor {
    root: PathBuf,
    next: u64,
}

impl Floor {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), next: 0 }
    }

    /// Times this many starts, each ended before the next.
    pub(crate) fn starts(&mut self, count: u64) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..count {
            let path = self.root.join(format!("floor-{}", self.next));
            self.next += 1;
            let begun = Instant::now();
            fs::create_dir(&path).expect("a group");
            let group = File::open(&path).expect("the group");
            let pidfd = clone_pausing(&group).expect("a child");
            took += begun.elapsed();
            fs::write(path.join("cgroup.kill"), "1").expect("killed");
            // SAFETY: waits for the child of this descriptor, and keeps nothing of what is written.
            let reaped = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as u32, &raw mut info, libc::WEXITED)
            };
            assert_eq!(reaped, 0, "{}", io::Error::last_os_error());
            fs::remove_dir(&path).expect("removed");
        }
        took
    }
}
