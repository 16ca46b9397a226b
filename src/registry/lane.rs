//! A fast lane past the map: finds the slot of a known key by plain loads, without a lock and without a write to memory
//! that other cores read.
//!
//! It is a hint, and every hint is checked. A hit is confirmed by the key that stands in the slot, and by a second look at
//! the entry after the slot was read; a miss means nothing, and the map is asked. So the one writer may move entries about
//! while others read, and the lane need not grow: what does not fit is found by the map.
//!
//! An entry is 32 bits, so that the lane of 100,000 sandboxes fits into a core's cache: ten bits of the key's hash, and the
//! slot plus one. Entries lie at or shortly after the place that other bits of the hash name (linear probing).

use std::sync::atomic::{AtomicU32, Ordering};

/// An entry is at most this far from its place; what would be farther is left to the map.
const REACH: usize = 16;

pub(super) struct Lane {
    entries: Box<[AtomicU32]>,
    mask: usize,
}

const VACANT: u32 = 0;
/// Slots below this have an entry.
const SLOTS: u32 = (1 << SLOT_BITS) - 1;
const SLOT_BITS: u32 = 22;

/// The ten upper bits of the hash, and the slot plus one.
fn entry(hash: u64, slot: u32) -> u32 {
    tag(hash) | (slot + 1)
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 & !SLOTS
}

/// The slot of an entry that is not vacant.
#[inline]
fn slot_of(entry: u32) -> u32 {
    (entry & SLOTS).wrapping_sub(1)
}

impl Lane {
    /// A lane for this many keys, at most half full then.
    pub(super) fn new(expected: usize) -> Self {
        let places = (2 * expected).next_power_of_two().clamp(1 << 10, 1 << 24);
        Self { entries: (0..places).map(|_| AtomicU32::new(VACANT)).collect(), mask: places - 1 }
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU32> {
        (0..REACH).map(move |offset| &self.entries[(hash as usize).wrapping_add(offset) & self.mask])
    }

    /// Finds what `read` makes of a slot that is this key's: it says nothing if the slot is another's.
    #[inline]
    pub(super) fn find<R>(&self, hash: u64, read: impl Fn(u32) -> Option<R>) -> Option<R> {
        for place in self.places(hash) {
            let found = place.load(Ordering::Acquire);
            if found == VACANT {
                return None;
            }
            if found & !SLOTS == tag(hash)
                && let Some(answer) = read(slot_of(found))
                // A slot changes hands only after its entry is gone, and what was read in between was read before this.
                && place.load(Ordering::Acquire) == found
            {
                return Some(answer);
            }
        }
        None
    }

    /// Adds an entry if there is room near its place. One writer at a time.
    pub(super) fn insert(&self, hash: u64, slot: u32) {
        if slot >= SLOTS {
            return;
        }
        if let Some(place) = self.places(hash).find(|place| place.load(Ordering::Relaxed) == VACANT) {
            place.store(entry(hash, slot), Ordering::Release);
        }
    }

    /// Removes an entry. `hash_of` gives the hash of the key in a slot, so that entries behind it can move up: a vacant place
    /// ends a search. One writer at a time.
    pub(super) fn remove(&self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> Option<u64>) {
        let wanted = entry(hash, slot);
        let at = |offset: usize| (hash as usize).wrapping_add(offset) & self.mask;
        let Some(offset) =
            (0..REACH).find(|offset| self.entries[at(*offset)].load(Ordering::Relaxed) == wanted)
        else {
            return;
        };
        let mut hole = at(offset);
        self.entries[hole].store(VACANT, Ordering::Release);
        for step in 1..self.entries.len() {
            let next = at(offset + step);
            let moved = self.entries[next].load(Ordering::Relaxed);
            if moved == VACANT {
                return;
            }
            // Without its hash it cannot be placed; the map finds it.
            let home = hash_of(slot_of(moved)).map(|hash| hash as usize & self.mask);
            let distance = |to: usize, home: usize| to.wrapping_sub(home) & self.mask;
            if home.is_none_or(|home| distance(hole, home) < distance(next, home)) {
                if home.is_some() {
                    self.entries[hole].store(moved, Ordering::Release);
                }
                self.entries[next].store(VACANT, Ordering::Release);
                hole = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use proptest::prelude::*;

    use super::*;

    /// Hashes that collide often: few places, few upper halves.
    fn hash(key: u32) -> u64 {
        u64::from(key % 5) << 54 | u64::from(key % 11)
    }

    /// What tells keys apart when their hashes do not: the slot's own key, as in the slab.
    fn find(lane: &Lane, keys: &HashMap<u32, u32>, key: u32) -> Option<u32> {
        lane.find(hash(key), |slot| (keys.get(&slot) == Some(&key)).then_some(slot))
    }

    proptest! {
        /// Goal: an entry that went in and did not come out is found, or was never taken in for want of room; one that came
        /// out is not found. Method: keys with colliding hashes come and go; a plain map knows who is there.
        #[test]
        fn what_is_there_is_found_and_what_is_gone_is_not(keys in proptest::collection::vec(0_u32..40, 1..200)) {
            let lane = Lane::new(1);
            // Slot to key; here a key's slot is its own number.
            let mut present: HashMap<u32, u32> = HashMap::new();
            let mut taken_in: Vec<u32> = Vec::new();
            for key in keys {
                if present.remove(&key).is_some() {
                    let still = present.clone();
                    lane.remove(hash(key), key, |slot| still.get(&slot).map(|key| hash(*key)));
                    taken_in.retain(|other| *other != key);
                    prop_assert_eq!(find(&lane, &present, key), None);
                } else {
                    // With fewer others than places within reach, one of those is vacant.
                    if present.len() < REACH {
                        taken_in.push(key);
                    }
                    present.insert(key, key);
                    lane.insert(hash(key), key);
                }
                for key in &taken_in {
                    prop_assert_eq!(find(&lane, &present, *key), Some(*key));
                }
            }
        }
    }

    /// Goal: a reader never takes one key's slot for another's, whatever the writer moves meanwhile. Method: one slot passes
    /// from key to key, and each tenant writes its own number into it; a reader who asks for a key must see that number.
    #[test]
    fn a_hit_is_always_the_right_slots() {
        let lane = Lane::new(1);
        let name = AtomicU64::new(0);
        let word = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let hash = |key: u64| (key << 54) | 3;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut hits = 0_u64;
                    let mut key = 0;
                    while !done.load(Ordering::Relaxed) {
                        key = key % 4 + 1;
                        let read = |_slot| {
                            (name.load(Ordering::Acquire) == key).then(|| word.load(Ordering::Acquire))
                        };
                        if let Some(seen) = lane.find(hash(key), read) {
                            assert_eq!(seen, key, "another key's word");
                            hits += 1;
                        }
                    }
                    hits
                });
            }
            for round in 0..200_000_u64 {
                let key = round % 4 + 1;
                name.store(key, Ordering::Release);
                word.store(key, Ordering::Release);
                lane.insert(hash(key), 0);
                lane.remove(hash(key), 0, |_| None);
                word.store(99, Ordering::Release);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
