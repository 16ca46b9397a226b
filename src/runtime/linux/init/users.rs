//! How the zygote of an ordinary user comes to rights: in a user namespace of its own, in which that user is root and nobody
//! else is anybody.
//!
//! It executes itself once more in there. Else the kernel would count its memory as the outer namespace's, and neither could
//! it write its children's maps nor could a middle child join a sandbox.

use core::ffi::{CStr, c_char};
use core::ptr::null;

use crate::line::Line;
use crate::protocol::Step;
use crate::sys::{self, AT_FDCWD, Errno, ns};
use crate::{At, Failure};

/// Whose rights a zygote has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// All that its host has.
    Hosts,
    /// It is to make a user namespace of its own.
    ToBeOne,
    /// It is in that namespace.
    One,
}

impl Users {
    /// The host asks by one argument beside the name; the zygote itself, executing once more, gives two.
    pub(crate) fn of_arguments(count: usize) -> Self {
        match count {
            0 | 1 => Self::Hosts,
            2 => Self::ToBeOne,
            _ => Self::One,
        }
    }
}

/// Enters a user namespace with its own user and group in it, and begins anew there. Returns only why it could not.
pub(crate) fn enter_own() -> Failure {
    match enter() {
        Ok(()) => (Step::OwnUsers, execute_again()),
        Err(failure) => failure,
    }
}

fn enter() -> Result<(), Failure> {
    let user = sys::plain(sys::GETEUID, [0; 5]).at(Step::OwnUsers)? as u32;
    let group = sys::plain(sys::GETEGID, [0; 5]).at(Step::OwnUsers)? as u32;
    sys::unshare(ns::USER).at(Step::OwnUsers)?;
    // Whoever could give up groups could get at files that are closed to them; so the kernel wants this first.
    sys::write_at(AT_FDCWD, c"/proc/self/setgroups", b"deny").at(Step::OwnUsers)?;
    map(c"/proc/self/gid_map", group).at(Step::OwnUsers)?;
    map(c"/proc/self/uid_map", user).at(Step::OwnUsers)?;
    Ok(())
}

fn map(path: &CStr, outside: u32) -> Result<(), Errno> {
    let mut line = Line::new();
    line.bytes(b"0 ");
    line.number(outside);
    line.bytes(b" 1");
    sys::write_at(AT_FDCWD, path, line.text()).map(drop)
}

fn execute_again() -> Errno {
    let text = |text: &'static CStr| text.as_ptr();
    let arguments: [*const c_char; 4] = [text(c"sandkeeper-zygote"), text(c"of-one-user"), text(c"inside"), null()];
    let variables: [*const c_char; 1] = [null()];
    let path = c"/proc/self/exe".as_ptr() as usize;
    // SAFETY: a NUL-terminated path, and two lists of such strings, each closed by a null.
    let done = unsafe {
        sys::call(sys::EXECVE, [path, arguments.as_ptr() as usize, variables.as_ptr() as usize, 0, 0])
    };
    done.err().unwrap_or(sys::EINVAL)
}
