//! Who is at the other end of a connection.

use tokio::net::UnixStream;

use crate::error::{Error, ErrorKind};

/// Refuses whoever is neither the daemon's own user, nor root, nor a member of `group`.
///
/// The mode of the socket's file says the same; this holds where somebody has loosened it.
pub(super) fn admit(stream: &UnixStream, group: Option<u32>) -> Result<(), Error> {
    let refuse = |found: String| {
        Error::new(ErrorKind::PermissionDenied, "speak to the daemon", found)
            .remedy("ask as its own user, as root, or as a member of its group if it has one")
    };
    let peer = stream.peer_cred().map_err(|error| refuse(format!("who asks is unknown: {error}")))?;
    let owner = rustix::process::geteuid().as_raw();
    let in_group =
        group.is_some_and(|group| peer.gid() == group || peer.pid().is_some_and(|pid| is_member(pid, group)));
    if peer.uid() == owner || peer.uid() == 0 || in_group {
        return Ok(());
    }
    Err(refuse(format!("user {} may not", peer.uid())))
}

/// Whether a process has this among its supplementary groups, which the kernel does not say of a peer.
fn is_member(pid: i32, group: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().any(|member| member.parse() == Ok(group)))
}
