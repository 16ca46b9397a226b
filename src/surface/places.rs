//! Where a daemon is that was told nothing else, and where it is looked for.
//!
//! A user who is logged in has a directory for the time of that, `XDG_RUNTIME_DIR`: their own daemon is there. Root's, and
//! that of a service without such a directory, is the machine's.

use std::path::{Path, PathBuf};

/// The state directory of the machine's daemon.
const MACHINES: &str = "/run/sandkeeper";
/// The socket's name within a state directory.
pub(super) const SOCKET: &str = "sandkeeper.sock";

/// Where this program's user has a daemon of their own, if that is not the machine's.
pub(super) fn own_state_dir() -> Option<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    own_state_dir_of(is_root, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

fn own_state_dir_of(is_root: bool, runtime_dir: Option<PathBuf>) -> Option<PathBuf> {
    // As the XDG base directories want it, a path that is not absolute is none.
    runtime_dir.filter(|dir| !is_root && dir.is_absolute()).map(|dir| dir.join("sandkeeper"))
}

/// The state directory of a daemon that begins.
pub(super) fn state_dir() -> PathBuf {
    own_state_dir().unwrap_or_else(|| MACHINES.into())
}

/// The socket to speak to: of the user's own daemon if that has one, else of the machine's.
pub(super) fn socket() -> PathBuf {
    socket_of(own_state_dir(), Path::exists)
}

fn socket_of(own: Option<PathBuf>, is_there: impl Fn(&Path) -> bool) -> PathBuf {
    let own = own.map(|dir| dir.join(SOCKET)).filter(|socket| is_there(socket));
    own.unwrap_or_else(|| Path::new(MACHINES).join(SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_user_with_a_runtime_directory_has_a_daemon_of_their_own() {
        let dir = |is_root, dir: &str| own_state_dir_of(is_root, Some(dir.into()));
        assert_eq!(dir(false, "/run/user/7"), Some("/run/user/7/sandkeeper".into()));
        assert_eq!(dir(true, "/run/user/0"), None);
        assert_eq!(dir(false, "here"), None);
        assert_eq!(own_state_dir_of(false, None), None);
    }

    #[test]
    fn the_machines_daemon_is_spoken_to_unless_there_is_one_of_the_users_own() {
        let own = || Some(PathBuf::from("/run/user/7/sandkeeper"));
        assert_eq!(socket_of(own(), |_| true), Path::new("/run/user/7/sandkeeper/sandkeeper.sock"));
        assert_eq!(socket_of(own(), |_| false), Path::new("/run/sandkeeper/sandkeeper.sock"));
        assert_eq!(socket_of(None, |_| true), Path::new("/run/sandkeeper/sandkeeper.sock"));
    }
}
