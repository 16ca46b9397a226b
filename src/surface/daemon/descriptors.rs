//! How many descriptors there are, and how many sandboxes that allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the daemon itself has open: the journal, sockets, threads' own.
const OWN: u64 = 128;
/// What a start has open while it lasts.
const PER_START: u64 = 8;
/// The most connections.
const MOST_CONNECTIONS: u64 = 1_024;

/// What the limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// How many descriptors there may be.
    pub(super) descriptors: u64,
    /// How many connections.
    pub(super) connections: usize,
    /// How many sandboxes, of a descriptor each.
    pub(super) sandboxes: usize,
}

/// Raises the soft limit to the hard one; gives the limit then in force.
pub(super) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit on descriptors cannot be raised");
            soft
        }
    }
}

/// What so many descriptors allow, where `starts` run at a time and `networks` are kept ready.
pub(super) fn room(descriptors: u64, starts: usize, networks: usize) -> Room {
    let connections = MOST_CONNECTIONS.min(descriptors / 8);
    let reserve = OWN + PER_START * starts as u64 + networks as u64 + connections;
    // Of few descriptors the sandboxes get half; starts then wait for some to be free.
    let sandboxes = descriptors - reserve.min(descriptors / 2);
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Room { descriptors, connections: whole(connections), sandboxes: whole(sandboxes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_leaves_room_for_the_daemon_itself() {
        let sandboxes = |descriptors| room(descriptors, 8, 64).sandboxes;
        assert_eq!(sandboxes(512), 256);
        assert_eq!(sandboxes(1_048_576), 1_048_576 - 128 - 64 - 64 - 1_024);
        for descriptors in [0, 1, 64, 1_024, 4_096, u64::MAX] {
            assert!(sandboxes(descriptors) as u64 <= descriptors);
        }
    }
}
