//! One atomic word per sandbox, in memory that never moves: what Ping, Sweep and handles read.
//!
//! Only a sandbox's actor writes phase and life. An exit observer sets one mark, and only on the life it observed.

use std::array;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::id::SandboxKey;
use crate::model::{Life, Marks, Phase, Pong};

/// Words in a chunk: 32 KiB of them.
const CHUNK: usize = 4_096;
/// Chunks at most, hence 4 M sandboxes.
const CHUNKS: usize = 1_024;

/// A slot as those see it who come by the lane of hints: its key and its word side by side, so that one cache miss brings
/// both. The key is in words that one thread may write while others read.
#[repr(C, align(64))]
struct Plate {
    word: AtomicU64,
    name: [AtomicU64; SandboxKey::MOST_WORDS],
}

impl Plate {
    fn new() -> Self {
        Self { word: AtomicU64::new(0), name: array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn write_name(&self, key: &SandboxKey) {
        for (to, word) in self.name.iter().zip(key.words()) {
            to.store(word, Ordering::Release);
        }
    }

    #[inline]
    fn is_of(&self, key: &SandboxKey) -> bool {
        self.name.iter().zip(key.words()).all(|(word, wanted)| word.load(Ordering::Acquire) == wanted)
    }

    /// Brings the word up to date with the slot's. Several writers may do so at once: each replaces only what it has seen
    /// before it read the newer word, so the plate never goes back.
    fn follow(&self, source: &AtomicU64) {
        loop {
            let shown = self.word.load(Ordering::Acquire);
            let current = source.load(Ordering::Acquire);
            if shown == current {
                return;
            }
            // Whether it worked or another was faster, look again.
            let _ = self.word.compare_exchange(shown, current, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// 4,096 words, and what each is the pulse of.
pub(crate) struct Chunk<T> {
    words: [AtomicU64; CHUNK],
    // Boxed: they are large, and would be built on the stack.
    plates: Box<[Plate; CHUNK]>,
    tenants: Box<[Mutex<Option<Arc<T>>>; CHUNK]>,
    /// Vacant slots of all chunks.
    vacant: Arc<Mutex<Vec<u32>>>,
}

fn boxed<E>(make: impl Fn() -> E) -> Box<[E; CHUNK]> {
    let made: Vec<E> = std::iter::repeat_with(make).take(CHUNK).collect();
    made.into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!("as many were made"))
}

/// The words of all sandboxes.
pub(crate) struct Slab<T> {
    chunks: Box<[OnceLock<Arc<Chunk<T>>>; CHUNKS]>,
    used_chunks: AtomicUsize,
    vacant: Arc<Mutex<Vec<u32>>>,
}

/// The right to a slot. Vacates it when dropped, so a slot is never another sandbox's while somebody holds a handle.
pub(crate) struct Lease<T> {
    chunk: Arc<Chunk<T>>,
    slot: u32,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            chunks: Box::new(array::from_fn(|_| OnceLock::new())),
            used_chunks: AtomicUsize::new(0),
            vacant: Arc::default(),
        }
    }

    /// Takes a vacant slot, growing by a chunk if there is none; nothing if every chunk is full.
    pub(crate) fn lease(&self) -> Option<Lease<T>> {
        let mut vacant = self.vacant.lock();
        if vacant.is_empty() {
            let at = self.used_chunks.load(Ordering::Relaxed);
            let chunk = self.chunks.get(at)?;
            chunk.get_or_init(|| {
                Arc::new(Chunk {
                    words: array::from_fn(|_| AtomicU64::new(0)),
                    plates: boxed(Plate::new),
                    tenants: boxed(|| Mutex::new(None)),
                    vacant: Arc::clone(&self.vacant),
                })
            });
            self.used_chunks.store(at + 1, Ordering::Release);
            let first = (at * CHUNK) as u32;
            vacant.extend((first..first + CHUNK as u32).rev());
        }
        let slot = vacant.pop()?;
        let chunk = Arc::clone(self.chunk(slot)?);
        Some(Lease { chunk, slot })
    }

    #[inline]
    fn chunk(&self, slot: u32) -> Option<&Arc<Chunk<T>>> {
        self.chunks.get(slot as usize / CHUNK)?.get()
    }

    /// What was last published in a slot.
    #[inline]
    pub(crate) fn read(&self, slot: u32) -> Option<Pong> {
        Some(Pong::from_word(self.chunk(slot)?.words[slot as usize % CHUNK].load(Ordering::Acquire)))
    }

    /// What was last published in a slot, if it is that of this key. Whoever asks without having held off a change of
    /// tenant must make sure afterwards that the slot was this key's all the time.
    #[inline]
    pub(crate) fn read_as(&self, slot: u32, key: &SandboxKey) -> Option<Pong> {
        let plate = &self.chunk(slot)?.plates[slot as usize % CHUNK];
        let word = plate.word.load(Ordering::Acquire);
        plate.is_of(key).then(|| Pong::from_word(word))
    }

    /// Whose slot it is.
    pub(crate) fn tenant(&self, slot: u32) -> Option<Arc<T>> {
        self.chunk(slot)?.tenants[slot as usize % CHUNK].lock().clone()
    }

    /// Everybody who has moved in, in the order of their slots.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = Arc<T>> + '_ {
        let used = (self.used_chunks.load(Ordering::Acquire) * CHUNK) as u32;
        (0..used).filter_map(|slot| self.tenant(slot))
    }

    /// Counts the words by phase and by mark. `marked` gets the slot of each word with a mark.
    pub(crate) fn sweep(&self, mut marked: impl FnMut(u32, Pong)) -> [u64; 16] {
        let mut totals = [0; 16];
        let used = self.used_chunks.load(Ordering::Acquire);
        for (at, chunk) in self.chunks[..used].iter().enumerate() {
            let Some(chunk) = chunk.get() else { continue };
            // Thirteen counters of four bits in one register, emptied before the largest can overflow: counting costs
            // no memory access, and no counter waits for the last store to itself.
            for (group, words) in chunk.words.chunks(15).enumerate() {
                let (mut counters, mut seen) = (0_u64, 0);
                for word in words {
                    let word = word.load(Ordering::Relaxed);
                    counters += 1 << ((word & 15) * 4);
                    seen |= word;
                }
                // Marks are rare: one look for fifteen words, and a second at those of a group that has any.
                if seen & Pong::MARKS != 0 {
                    for (offset, word) in words.iter().enumerate() {
                        let pong = Pong::from_word(word.load(Ordering::Relaxed));
                        if !pong.marks().is_empty() {
                            marked((at * CHUNK + group * 15 + offset) as u32, pong);
                        }
                    }
                }
                for (phase, total) in totals.iter_mut().enumerate() {
                    *total += counters >> (phase * 4) & 15;
                }
            }
        }
        totals
    }
}

impl<T> Lease<T> {
    /// The slot's number.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Moves in: from now on the slot leads to this.
    pub(crate) fn occupy(&self, key: &SandboxKey, tenant: Arc<T>) {
        self.plate().write_name(key);
        *self.chunk.tenants[self.slot as usize % CHUNK].lock() = Some(tenant);
    }

    /// Moves out. The slot stays leased.
    pub(crate) fn leave(&self) {
        self.chunk.tenants[self.slot as usize % CHUNK].lock().take();
    }

    /// The chunk and the place in it, for those who read often.
    pub(crate) fn reader(&self) -> Reader<T> {
        Reader { chunk: Arc::clone(&self.chunk), at: (self.slot as usize % CHUNK) as u16 }
    }

    fn word(&self) -> &AtomicU64 {
        &self.chunk.words[self.slot as usize % CHUNK]
    }

    fn plate(&self) -> &Plate {
        &self.chunk.plates[self.slot as usize % CHUNK]
    }

    /// What was last published.
    pub(crate) fn read(&self) -> Pong {
        Pong::from_word(self.word().load(Ordering::Acquire))
    }

    /// Publishes phase, life and marks. A mark that an exit observer has set on this life stays.
    pub(crate) fn publish(&self, phase: Phase, life: Life, marks: Marks) {
        let update = |old: u64| {
            let old = Pong::from_word(old);
            let exited = old.life() == life && old.marks().contains(Marks::EXITED);
            Some(
                Pong::new(phase, life, marks.with(Marks::EXITED, exited || marks.contains(Marks::EXITED)))
                    .word(),
            )
        };
        let updated = self.word().fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        debug_assert!(updated.is_ok(), "the update never declines");
        self.plate().follow(self.word());
    }

    /// Marks a life as ended, if it is still the slot's; says whether it was.
    pub(crate) fn mark_exited(&self, life: Life) -> bool {
        let update = |old: u64| {
            let old = Pong::from_word(old);
            (old.life() == life)
                .then(|| Pong::new(old.phase(), life, old.marks().with(Marks::EXITED, true)).word())
        };
        let marked = self.word().fetch_update(Ordering::AcqRel, Ordering::Acquire, update).is_ok();
        self.plate().follow(self.word());
        marked
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.word().store(0, Ordering::Release);
        self.plate().follow(self.word());
        self.leave();
        self.chunk.vacant.lock().push(self.slot);
    }
}

/// Reads one word with nothing in between. Somebody else must keep the lease alive.
pub(crate) struct Reader<T> {
    chunk: Arc<Chunk<T>>,
    at: u16,
}

impl<T> Reader<T> {
    #[inline]
    pub(crate) fn read(&self) -> Pong {
        Pong::from_word(self.chunk.words[usize::from(self.at) % CHUNK].load(Ordering::Acquire))
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self { chunk: Arc::clone(&self.chunk), at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observer_marks_only_the_life_it_observed() {
        let slab = Slab::<()>::new();
        let lease = slab.lease().unwrap();
        lease.publish(Phase::Running, Life(2), Marks::default());
        assert!(!lease.mark_exited(Life(1)));
        assert!(lease.read().is_alive());
        assert!(lease.mark_exited(Life(2)));
        lease.publish(Phase::Stopping, Life(2), Marks::default());
        assert!(lease.read().marks().contains(Marks::EXITED), "the mark stays with its life");
        lease.publish(Phase::Creating, Life(3), Marks::default());
        assert!(lease.read().marks().is_empty(), "a new life begins unmarked");
    }

    /// Goal: by whichever way a word is read, it ends up the same, and an end once shown is not taken back. Method: an actor
    /// publishes life after life while an observer marks each as ended; a reader by key watches.
    #[test]
    fn both_ways_to_a_word_agree_and_never_go_back() {
        let slab = Slab::<()>::new();
        let lease = slab.lease().unwrap();
        let key = SandboxKey::new("default", "a").unwrap();
        lease.occupy(&key, Arc::new(()));
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = (Life(0), false);
                while !done.load(Ordering::Acquire) {
                    let pong = slab.read_as(lease.slot(), &key).unwrap();
                    let seen = (pong.life(), pong.marks().contains(Marks::EXITED));
                    assert!(seen >= last, "{seen:?} after {last:?}");
                    last = seen;
                }
            });
            for life in 1..100_000 {
                lease.publish(Phase::Creating, Life(life), Marks::default());
                std::thread::scope(|observers| {
                    // One in a hundred with a thread of its own: the rest would only measure thread starts.
                    if life % 100 == 0 {
                        observers.spawn(|| lease.mark_exited(Life(life)));
                    } else {
                        lease.mark_exited(Life(life));
                    }
                    lease.publish(Phase::Running, Life(life), Marks::default());
                });
                assert_eq!(slab.read_as(lease.slot(), &key), slab.read(lease.slot()));
                assert!(!lease.read().is_alive());
            }
            done.store(true, Ordering::Release);
        });
    }

    #[test]
    fn a_sweep_counts_every_word_once() {
        let slab = Slab::<()>::new();
        let leases: Vec<_> = (0..2 * CHUNK + 7).map(|_| slab.lease().unwrap()).collect();
        for (at, lease) in leases.iter().enumerate() {
            lease.publish(Phase::ALL[at % 12], Life(at as u64 + 1), Marks::default());
        }
        leases[5_000].mark_exited(Life(5_001));
        let mut marked = Vec::new();
        let totals = slab.sweep(|slot, pong| marked.push((slot, pong.life())));
        assert_eq!(marked, [(leases[5_000].slot(), Life(5_001))]);
        for phase in Phase::ALL {
            let expected = (0..leases.len()).filter(|at| Phase::ALL[at % 12] == phase).count();
            assert_eq!(totals[phase as usize], expected as u64, "{phase}");
        }
        assert_eq!(totals.iter().sum::<u64>(), 3 * CHUNK as u64);
    }

    #[test]
    fn a_vacated_slot_is_leased_again_and_reads_as_gone() {
        let slab = Slab::<()>::new();
        let lease = slab.lease().unwrap();
        let slot = lease.slot();
        lease.publish(Phase::Running, Life(1), Marks::default());
        drop(lease);
        assert_eq!(slab.read(slot).unwrap().phase(), Phase::Gone);
        assert_eq!(slab.lease().unwrap().slot(), slot);
    }
}
