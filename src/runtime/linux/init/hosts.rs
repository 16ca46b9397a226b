//! How a zygote stays when its host is gone: it waits for the next one, and ends when there is nothing to stay for.

use core::ffi::CStr;

use crate::children::Children;
use crate::orphan;
use crate::protocol::{Reader, Stay, Step};
use crate::sys::{self, Errno, Fd};
use crate::zygote::{CONTROL, LISTEN, NULL, ROOT, SOCKETS};
use crate::{At, Failure};

/// The longest name of a socket, its NUL included.
const NAME: usize = 64;
/// How often a zygote looks whether a child that it has killed has ended.
const LOOK_MILLISECONDS: u32 = 10;
/// How often a zygote that is ending tries to lock the root.
const LOCK_TRIES: u32 = 20;
/// `LOCK_EX | LOCK_NB`.
const TRY_EXCLUSIVE: usize = 2 | 4;

/// What a zygote that stays needs for it.
pub(crate) struct Staying {
    linger_milliseconds: u32,
    name: [u8; NAME],
    /// The socket file's inode, so that no other of the same name is ever taken for it.
    inode: u64,
}

impl Staying {
    /// Reads the body of a SetUp whose descriptors are in place, and begins to listen.
    pub(crate) fn new(mut body: Reader<'_>) -> Result<Self, Failure> {
        let stay: Stay = body.value().ok_or((Step::Understand, sys::EINVAL))?;
        let text = body.text().ok_or((Step::Understand, sys::EINVAL))?;
        let mut name = [0; NAME];
        name.get_mut(..text.len()).ok_or((Step::Understand, sys::EINVAL))?.copy_from_slice(text);
        let mut staying = Self { linger_milliseconds: stay.linger_milliseconds, name, inode: 0 };
        staying.inode = orphan::inode(SOCKETS, staying.name()).at(Step::Listen)?;
        // Here and not by the host: who comes is told by the kernel who it was that listened.
        sys::plain(sys::LISTEN, [LISTEN as usize, 8, 0, 0, 0]).at(Step::Listen)?;
        Ok(staying)
    }

    fn name(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.name).unwrap_or(c"")
    }

    fn socket_is_there(&self) -> bool {
        orphan::inode(SOCKETS, self.name()).is_ok_and(|inode| inode == self.inode)
    }

    /// Waits for the next host, and comes back with its connection in place.
    pub(crate) fn wait_for_host(&self, children: &mut Children, retired: bool) {
        // Whoever has asked for something may see that nobody does it any more.
        let _ = sys::duplicate(NULL, CONTROL, sys::O_CLOEXEC);
        children.discard_unkept();
        loop {
            children.reap_discarded();
            children.reap_orphans();
            if retired && children.count() == 0 {
                self.end();
            }
            let looking = children.any_discarded();
            let milliseconds = if looking { LOOK_MILLISECONDS } else { self.linger_milliseconds };
            if sys::wait_readable(LISTEN, milliseconds) {
                if accept().is_ok() {
                    return;
                }
            } else if !looking && children.count() == 0 {
                self.end();
            } else if !looking && !self.socket_is_there() {
                // No host will ever come. The sandboxes go on, and whoever inherits them reaps them.
                sys::exit(0);
            }
        }
    }

    /// Ends, and takes along what was made for it.
    pub(crate) fn end(&self) -> ! {
        if self.socket_is_there() {
            let _ = orphan::unlink(SOCKETS, self.name(), 0);
        }
        orphan::leave_own_group();
        if let Ok(root) = orphan::open_dir(ROOT, c".") {
            // Not while a host is at work there, which holds the lock, as another that is ending does for a moment. It goes with
            // this process.
            for _ in 0..LOCK_TRIES {
                if sys::plain(sys::FLOCK, [root as usize, TRY_EXCLUSIVE, 0, 0, 0]).is_ok() {
                    orphan::remove_own_groups();
                    break;
                }
                sys::sleep_milliseconds(LOOK_MILLISECONDS.into());
            }
        }
        sys::exit(0)
    }
}

/// Takes the next connection, if it is of this process's own user.
fn accept() -> Result<(), Errno> {
    const CLOSE_ON_EXEC: usize = 0o2_000_000;
    // SAFETY: the address of who connects is not asked for.
    let fd = unsafe { sys::call(sys::ACCEPT4, [LISTEN as usize, 0, 0, CLOSE_ON_EXEC, 0]) }? as Fd;
    let taken = match peer_user(fd) {
        Ok(user) if sys::plain(sys::GETUID, [0; 5]) == Ok(user as usize) => {
            sys::duplicate(fd, CONTROL, sys::O_CLOEXEC).map(drop)
        }
        Ok(_) => Err(sys::EPERM),
        Err(errno) => Err(errno),
    };
    sys::close(fd);
    taken
}

fn peer_user(fd: Fd) -> Result<u32, Errno> {
    const SOL_SOCKET: usize = 1;
    const SO_PEERCRED: usize = 17;
    // struct ucred: process, user, group.
    let mut credentials = [0_u32; 3];
    let mut length = size_of_val(&credentials) as u32;
    let place = [credentials.as_mut_ptr() as usize, &raw mut length as usize];
    // SAFETY: room for as many bytes as the length says, which is written back.
    unsafe { sys::call(sys::GETSOCKOPT, [fd as usize, SOL_SOCKET, SO_PEERCRED, place[0], place[1]]) }?;
    Ok(credentials[1])
}
