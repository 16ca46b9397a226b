//! The init: a freestanding program of some ten kilobytes. It runs as zygote, and a zygote's children go
//! straight on in it as builders of mount trees and as PID 1 of sandboxes, without executing anything.
//!
//! ```text
//! host ──SOCK_SEQPACKET── zygote ──clone3──┬── leader: sets itself up, then is the sandbox's init
//!                                          │      └─vfork── main process: gives up its rights, executes the program
//!                                          ├── builder: makes a mount tree, and is ended when a leader has copied it
//!                                          └── middle child: runs another program in a sandbox, and waits for it
//! ```
//!
//! There is one thread, no allocation and no unwinding. A zygote never waits for a child: whatever can hang,
//! a dead file system above all, hangs in a child of its own, and that child's host waits for it.

#![no_std]
#![no_main]
#![allow(missing_docs)]

mod builder;
mod children;
mod exec;
mod hosts;
mod leader;
mod line;
mod log;
#[allow(dead_code)]
#[path = "../log_format.rs"]
mod log_format;
mod loopback;
mod main_process;
mod orphan;
#[allow(dead_code)]
#[path = "../protocol.rs"]
mod protocol;
mod sys;
mod template;
mod users;
mod waiting;
mod zygote;

use protocol::{Report, Step};
use sys::Errno;

/// A step, and why it failed.
pub(crate) type Failure = (Step, Errno);

/// Says at which step a call failed.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|errno| (step, errno))
    }
}

pub(crate) fn report_of((step, errno): Failure) -> Report {
    Report { step: step as u32, errno }
}

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {start}",
    "ud2",
    start = sym start,
    options(att_syntax)
);

/// Begins with what the kernel puts on the stack: first of all the number of arguments.
extern "C" fn start(arguments: *const usize) -> ! {
    // SAFETY: the kernel has put it there.
    zygote::run(users::Users::of_arguments(unsafe { *arguments }))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nobody could read a message. The status is told in a report of the zygote's or sandbox's end.
    sys::exit(134)
}

/// Asked for by core's unwind tables when something is built without optimisation; never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
