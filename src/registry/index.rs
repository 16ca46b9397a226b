//! From a sandbox's key to its slot: the only file that names a map.
//!
//! A ping of a known key goes by the [`Lane`]: plain loads, no lock. All else, and whatever the lane does not find, goes by
//! the map: a look-up takes the read lock of one of many shards for the length of one atomic load. It can wait there for a
//! writer of the same shard, which holds it for the length of one insert or remove. Nothing is held across an await, a log
//! line, or a second look at the map.

use std::hash::BuildHasher;
use std::sync::Arc;

use dashmap::DashMap;

use crate::actor::Cell;
use crate::actor::pulse::{Lease, Slab};
use crate::id::SandboxKey;
use crate::model::Pong;

use super::lane::Lane;

/// Where each sandbox is.
pub(crate) struct Index {
    slots: DashMap<SandboxKey, u32, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    lane: Lane,
    slab: Slab<Cell>,
}

impl Index {
    /// An index with room for `expected` sandboxes before it has to grow.
    pub(crate) fn new(expected: usize) -> Self {
        // Sixteen shards a core: a writer is in the way of few readers. More of them cost readers cache misses.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (16 * cores).next_power_of_two();
        let hasher = foldhash::fast::RandomState::default();
        let slots = DashMap::with_capacity_and_hasher_and_shard_amount(expected, hasher.clone(), shards);
        Self { slots, hasher, lane: Lane::new(expected), slab: Slab::new() }
    }

    /// What was last published of a sandbox.
    #[inline]
    pub(crate) fn ping(&self, key: &SandboxKey) -> Option<Pong> {
        let hash = self.hasher.hash_one(key);
        self.lane.find(hash, |slot| self.slab.read_as(slot, key)).or_else(|| self.ping_by_map(key))
    }

    #[cold]
    fn ping_by_map(&self, key: &SandboxKey) -> Option<Pong> {
        // The word is read under the shard's lock: after it, the slot may be another sandbox's.
        let slot = self.slots.get(key)?;
        self.slab.read(*slot)
    }

    /// The sandbox itself.
    pub(crate) fn cell(&self, key: &SandboxKey) -> Option<Arc<Cell>> {
        let slot = self.slots.get(key)?;
        self.slab.tenant(*slot)
    }

    /// A vacant slot; nothing if there is none left.
    pub(crate) fn lease(&self) -> Option<Lease<Cell>> {
        self.slab.lease()
    }

    /// Makes a sandbox known. Called by the registry only, for keys that are not known.
    pub(crate) fn insert(&self, cell: &Arc<Cell>) {
        let slot = cell.lease().slot();
        cell.lease().occupy(&cell.key, Arc::clone(cell));
        self.slots.insert(cell.key, slot);
        self.lane.insert(self.hasher.hash_one(cell.key), slot);
    }

    /// Forgets a sandbox, if the key still leads to this one.
    pub(crate) fn remove(&self, cell: &Arc<Cell>) {
        let hash_of = |slot| self.slab.tenant(slot).map(|cell| self.hasher.hash_one(cell.key));
        self.lane.remove(self.hasher.hash_one(cell.key), cell.lease().slot(), hash_of);
        self.slots.remove_if(&cell.key, |_, slot| *slot == cell.lease().slot());
        cell.lease().leave();
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Every sandbox, copied out first: nothing is held while the caller looks at one.
    pub(crate) fn cells(&self) -> impl Iterator<Item = Arc<Cell>> + '_ {
        self.slab.tenants()
    }

    /// Counts by phase, and the key and word of everything marked.
    pub(crate) fn sweep(&self) -> ([u64; 16], Vec<(SandboxKey, Pong)>) {
        let mut slots = Vec::new();
        let totals = self.slab.sweep(|slot, pong| slots.push((slot, pong)));
        let named =
            slots.into_iter().filter_map(|(slot, pong)| Some((self.slab.tenant(slot)?.key, pong))).collect();
        (totals, named)
    }
}
