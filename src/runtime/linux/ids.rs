//! Which host users and groups each sandbox gets.

use std::collections::{BTreeSet, VecDeque};

use parking_lot::Mutex;

use super::config::LinuxConfig;
use crate::error::{Error, ErrorKind};

/// Users and groups of one block: what a sandbox sees as 0 to 65,535.
pub(super) const BLOCK: u32 = 1 << 16;

/// Hands out blocks of IDs, each to one sandbox at a time.
pub(super) struct Ids {
    start: u32,
    blocks: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blocks that were never used begin here.
    fresh: u32,
    /// Given back, the oldest first: a block rests as long as possible before another sandbox gets it, so that a file
    /// that outlived its sandbox does not soon have a new owner.
    returned: VecDeque<u32>,
    /// In use by what an earlier backend has left, and not below `fresh`: numbers of blocks.
    held: BTreeSet<u32>,
}

impl Ids {
    /// The range of this configuration.
    pub(super) fn new(config: &LinuxConfig) -> Result<Self, Error> {
        let LinuxConfig { id_start, id_blocks, .. } = *config;
        // The last ID of all, -1, means "no change" to the kernel, and is no user.
        let end = u64::from(id_start) + u64::from(id_blocks) * u64::from(BLOCK);
        if id_start == 0 || id_blocks == 0 || end > u64::from(u32::MAX) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "set up the linux backend",
                format!(
                    "{id_blocks} blocks of {BLOCK} IDs from {id_start} are no range of host IDs past root's"
                ),
            )
            .remedy("change id_start and id_blocks"));
        }
        Ok(Self { start: id_start, blocks: id_blocks, state: Mutex::default() })
    }

    /// Notes that a block is in use already. One that is not in this range was given out under another configuration, and is
    /// nobody's here.
    pub(super) fn hold(&self, start: u32) {
        let mut state = self.state.lock();
        if let Some(block) = self.number(start)
            && block >= state.fresh
        {
            state.held.insert(block);
        }
    }

    /// Which block begins there.
    fn number(&self, start: u32) -> Option<u32> {
        let offset = start.checked_sub(self.start)?;
        (offset % BLOCK == 0 && offset / BLOCK < self.blocks).then_some(offset / BLOCK)
    }

    /// The first ID of a block that nobody has.
    pub(super) fn take(&self) -> Result<u32, Error> {
        let mut state = self.state.lock();
        while state.fresh < self.blocks {
            let block = state.fresh;
            state.fresh += 1;
            if !state.held.remove(&block) {
                return Ok(self.start + block * BLOCK);
            }
        }
        state.returned.pop_front().ok_or_else(|| {
            Error::new(
                ErrorKind::ResourceExhausted,
                "create",
                format!("all {} blocks of user IDs are in use", self.blocks),
            )
            .remedy("end other sandboxes, or set more id_blocks")
        })
    }

    /// Takes a block back.
    pub(super) fn give_back(&self, start: u32) {
        let mut state = self.state.lock();
        match self.number(start) {
            Some(block) if block < state.fresh => state.returned.push_back(start),
            Some(block) => {
                state.held.remove(&block);
            }
            None => {}
        }
    }

    /// How many blocks are in use.
    pub(super) fn in_use(&self) -> usize {
        let state = self.state.lock();
        state.fresh as usize - state.returned.len() + state.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(id_start: u32, id_blocks: u32) -> Result<Ids, Error> {
        Ids::new(&LinuxConfig { id_start, id_blocks, ..LinuxConfig::default() })
    }

    #[test]
    fn blocks_are_never_shared_and_rest_before_they_are_used_again() {
        let ids = ids(BLOCK, 3).unwrap();
        let blocks: Vec<u32> = (0..3).map(|_| ids.take().unwrap()).collect();
        assert_eq!(blocks, [BLOCK, 2 * BLOCK, 3 * BLOCK]);
        assert_eq!(ids.take().unwrap_err().kind(), ErrorKind::ResourceExhausted);
        ids.give_back(blocks[1]);
        ids.give_back(blocks[0]);
        assert_eq!(ids.in_use(), 1);
        assert_eq!(ids.take().unwrap(), blocks[1]);
        assert_eq!(ids.take().unwrap(), blocks[0]);
    }

    #[test]
    fn what_an_earlier_backend_has_given_out_is_not_given_out_again() {
        let ids = ids(BLOCK, 4).unwrap();
        ids.hold(2 * BLOCK);
        ids.hold(4 * BLOCK);
        ids.hold(BLOCK + 1);
        ids.hold(9 * BLOCK);
        assert_eq!(ids.in_use(), 2);
        ids.give_back(4 * BLOCK);
        assert_eq!(ids.take().unwrap(), BLOCK);
        assert_eq!(ids.take().unwrap(), 3 * BLOCK);
        assert_eq!(ids.take().unwrap(), 4 * BLOCK);
        assert_eq!(ids.in_use(), 4);
        assert!(ids.take().is_err());
        ids.give_back(2 * BLOCK);
        assert_eq!(ids.take().unwrap(), 2 * BLOCK);
    }

    #[test]
    fn a_range_with_root_or_past_the_last_id_is_refused() {
        assert!(ids(0, 1).is_err());
        assert!(ids(BLOCK, 65_535).is_err());
        assert!(ids(BLOCK, 65_534).is_ok());
    }

    #[test]
    fn the_default_range_ends_where_ids_would_turn_negative() {
        let LinuxConfig { id_start, id_blocks, .. } = LinuxConfig::default();
        assert_eq!(id_start + id_blocks * BLOCK, 1 << 31);
    }
}
