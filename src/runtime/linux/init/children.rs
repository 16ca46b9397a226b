//! Whose parent a zygote is: what the next host needs to know of each child that has not been reaped.

use core::mem::size_of;

use crate::protocol::{Child, MAX_CHILDREN, NO_LIFE, bytes_of};
use crate::sys;

/// The children, in no order. No child of ours has a copy: each would keep the pages that change with its own entry.
pub(crate) struct Children {
    table: &'static mut Table,
    count: usize,
    /// How many have been killed and are reaped as soon as they have ended.
    discarded: usize,
    /// How many are orphaned.
    orphans: usize,
}

#[repr(C, align(4096))]
struct Table([Child; MAX_CHILDREN]);
static mut TABLE: Table = Table([Child { life: 0, group: 0, pid: 0, ids: 0 }; MAX_CHILDREN]);

/// The life of a child that has been killed and is reaped as soon as it has ended.
const DISCARDED: u64 = u64::MAX;
/// That of one that is about to end by itself. If it has not at the next look, it is killed.
const ENDING: u64 = u64::MAX - 1;
/// That of a middle child whose program ends with the host that asked for it: it sees that by itself, and has its program to
/// end first.
pub(crate) const LEASHED: u64 = u64::MAX - 2;
/// That of a middle child whose program goes on, and that of one whose host has gone: nobody else will have it reaped.
pub(crate) const DETACHED: u64 = u64::MAX - 3;
const ORPHANED: u64 = u64::MAX - 4;
const _: () = assert!(ORPHANED >= NO_LIFE);

impl Children {
    /// The table of this process.
    ///
    /// # Safety
    /// Called once.
    pub(crate) unsafe fn new() -> Self {
        const DONT_FORK: usize = 10;
        // SAFETY: promised by the caller: this is the only reference ever made to it.
        let table = unsafe { &mut *(&raw mut TABLE) };
        let place = core::ptr::from_mut(table) as usize;
        // SAFETY: whole pages of a structure of this module, which no child of this process touches.
        let _ = unsafe { sys::call(sys::MADVISE, [place, size_of::<Table>(), DONT_FORK, 0, 0]) };
        Self { table, count: 0, discarded: 0, orphans: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn any_discarded(&self) -> bool {
        self.discarded > 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == MAX_CHILDREN
    }

    /// Notes a child; there must be room.
    pub(crate) fn add(&mut self, child: Child) {
        if let Some(place) = self.table.0.get_mut(self.count) {
            *place = child;
            self.count += 1;
        }
    }

    /// The bytes of so many children from one on, or of as many as there are.
    pub(crate) fn bytes(&self, from: usize, most: usize) -> (usize, &[u8]) {
        let from = from.min(self.count);
        let some = &self.table.0[from..self.count.min(from + most)];
        let bytes = some.first().map_or(&[][..], |first| {
            let first = bytes_of(first).as_ptr();
            // SAFETY: the children are `Plain`, lie one after the other, and are borrowed for as long as the bytes are.
            unsafe { core::slice::from_raw_parts(first, size_of_val(some)) }
        });
        (some.len(), bytes)
    }

    /// Reaps a child that has ended.
    pub(crate) fn reap(&mut self, pid: u32) {
        // Never 0 or above i32::MAX: those would mean any child.
        if i32::try_from(pid).is_ok_and(|pid| pid > 0) && !matches!(sys::wait(pid as i32, true), Ok((0, _))) {
            self.forget(pid);
        }
    }

    /// Kills a child, and reaps it as soon as it has ended.
    pub(crate) fn discard(&mut self, pid: u32) {
        if !i32::try_from(pid).is_ok_and(|pid| pid > 0) {
            return;
        }
        match sys::wait(pid as i32, true) {
            // Alive, and ours, so that the number is nobody else's.
            Ok((0, _)) => {
                let _ = sys::kill(pid, sys::SIGKILL);
                if let Some(at) = self.find(pid) {
                    self.become_of(at, DISCARDED);
                }
            }
            _ => self.forget(pid),
        }
    }

    /// Discards those that are of no use without the host that asked for them.
    pub(crate) fn discard_unkept(&mut self) {
        let mut at = self.count;
        // From the back: what is forgotten is replaced by what has been looked at.
        while at > 0 {
            at -= 1;
            match self.table.0[at].life {
                0 => self.discard(self.table.0[at].pid),
                LEASHED => self.become_of(at, ENDING),
                DETACHED => self.become_of(at, ORPHANED),
                _ => {}
            }
        }
    }

    /// Reaps those discarded that have ended.
    pub(crate) fn reap_discarded(&mut self) {
        let mut at = self.count;
        while at > 0 && self.discarded > 0 {
            at -= 1;
            let Child { life, pid, .. } = self.table.0[at];
            if !matches!(life, DISCARDED | ENDING) {
                continue;
            }
            self.reap(pid);
            // It may be another by now, in the place of one that has been reaped.
            if life == ENDING && self.table.0[at].pid == pid && at < self.count {
                self.become_of(at, DISCARDED);
            } else if self.table.0[at].pid == pid && at < self.count {
                let _ = sys::kill(pid, sys::SIGKILL);
            }
        }
    }

    /// Reaps those orphaned that have ended.
    pub(crate) fn reap_orphans(&mut self) {
        let mut at = self.count;
        while at > 0 && self.orphans > 0 {
            at -= 1;
            if self.table.0[at].life == ORPHANED {
                self.reap(self.table.0[at].pid);
            }
        }
    }

    /// Changes what becomes of a child, and what is counted with it.
    fn become_of(&mut self, at: usize, life: u64) {
        self.uncount(at);
        self.table.0[at].life = life;
        self.discarded += usize::from(matches!(life, DISCARDED | ENDING));
        self.orphans += usize::from(life == ORPHANED);
    }

    fn uncount(&mut self, at: usize) {
        let life = self.table.0[at].life;
        self.discarded -= usize::from(matches!(life, DISCARDED | ENDING));
        self.orphans -= usize::from(life == ORPHANED);
    }

    fn find(&self, pid: u32) -> Option<usize> {
        self.table.0[..self.count].iter().position(|child| child.pid == pid)
    }

    fn forget(&mut self, pid: u32) {
        let Some(at) = self.find(pid) else { return };
        self.uncount(at);
        self.count -= 1;
        self.table.0[at] = self.table.0[self.count];
    }
}
