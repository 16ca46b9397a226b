//! The loopback device of a network namespace that was made on this side.

use crate::sys;

/// Brings up the loopback device of this process's network namespace.
pub(crate) fn bring_up() -> Result<(), sys::Errno> {
    const INET: usize = 2;
    const DATAGRAM: usize = 2;
    const SET_FLAGS: usize = 0x8914;
    /// `IFF_UP | IFF_RUNNING`.
    const UP: u16 = 1 | 0x40;
    /// `struct ifreq`: a name, and a union of 24 bytes.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; 16], flags: UP, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let socket = sys::plain(sys::SOCKET, [INET, DATAGRAM | sys::O_CLOEXEC, 0, 0, 0])?;
    // SAFETY: a structure of the kind that this request reads.
    let done = unsafe { sys::call(sys::IOCTL, [socket, SET_FLAGS, &raw const request as usize, 0, 0]) };
    sys::close(socket as sys::Fd);
    done.map(drop)
}
