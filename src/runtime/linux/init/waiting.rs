//! Waiting for more than one thing at a time: for descriptors, and for signals as one of them.

use crate::sys::{self, Errno, Fd, Outcome};

/// One descriptor to wait for. A negative number stands for none.
#[repr(C)]
pub(crate) struct Poll {
    pub(crate) fd: Fd,
    pub(crate) events: u16,
    pub(crate) found: u16,
}

impl Poll {
    /// Waits for something to read, or the end.
    pub(crate) fn input(fd: Fd) -> Self {
        const IN: u16 = 1;
        Self { fd, events: IN, found: 0 }
    }

    /// Whether there is something to read, or the end, or an error.
    pub(crate) fn is_ready(&self) -> bool {
        self.fd >= 0 && self.found != 0
    }
}

/// Waits until one of them is ready, for as long as that takes.
pub(crate) fn poll(polled: &mut [Poll]) -> Outcome {
    // SAFETY: as many structures as are told, writable; neither a time limit nor a mask is given.
    unsafe { sys::call(sys::PPOLL, [polled.as_mut_ptr() as usize, polled.len(), 0, 0, 8]) }
}

/// Whether the other end of a pipe is closed and nothing is left to read.
pub(crate) fn has_ended(pipe: Fd) -> bool {
    const HANG_UP: u16 = 0x10;
    let mut polled = [Poll::input(pipe)];
    let at_once = [0_u64; 2];
    // SAFETY: one structure, writable, and a time limit of two numbers.
    let asked = unsafe { sys::call(sys::PPOLL, [polled.as_mut_ptr() as usize, 1, at_once.as_ptr() as usize, 0, 8]) };
    asked.is_ok() && polled[0].found == HANG_UP
}

/// A descriptor to read these signals from, which are blocked.
pub(crate) fn signal_fd(mask: u64) -> Result<Fd, Errno> {
    // SAFETY: eight bytes to read.
    let fd = unsafe {
        sys::call(
            sys::SIGNALFD4,
            [usize::MAX, &raw const mask as usize, 8, sys::O_CLOEXEC | sys::O_NONBLOCK, 0],
        )
    };
    fd.map(|fd| fd as Fd)
}

/// The next signal of such a descriptor; nothing if none has come.
pub(crate) fn next_signal(fd: Fd) -> Option<u32> {
    // struct signalfd_siginfo: the signal comes first.
    let mut information = [0_u8; 128];
    match sys::read(fd, &mut information) {
        Ok(128) => information.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
        _ => None,
    }
}
