//! What a group of changes comes to.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::id::SandboxKey;

use super::Change;

/// A key in an order that is quick to decide; which one does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name(pub(super) SandboxKey);

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.words().cmp(other.0.words())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The last word on each sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    changes: BTreeMap<Name, Change>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SandboxKey, &Change)> {
        self.changes.iter().map(|(name, change)| (&name.0, change))
    }

    /// Adds a change that comes after all that is in here.
    pub(super) fn add(&mut self, key: &SandboxKey, change: &Change) {
        self.put(Name(*key), change.clone());
    }

    /// Adds all of another that comes after this.
    pub(super) fn absorb(&mut self, later: Batch) {
        for (name, change) in later.changes {
            self.put(name, change);
        }
    }

    fn put(&mut self, name: Name, change: Change) {
        let Change::State(state) = change else {
            self.changes.insert(name, change);
            return;
        };
        match self.changes.get_mut(&name) {
            Some(Change::Define(_, known) | Change::State(known)) => *known = state,
            // It is gone; a word about it that comes late does not bring it back.
            Some(Change::Remove) => {}
            None => {
                self.changes.insert(name, change);
            }
        }
    }

    /// Takes out what would make a sandbox known that was not.
    pub(super) fn split_off_defines(&mut self) -> Batch {
        let (defines, others) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|(_, change)| matches!(change, Change::Define(..)));
        self.changes = others;
        Batch { changes: defines }
    }

    pub(super) fn contains(&self, key: &SandboxKey) -> bool {
        self.changes.contains_key(&Name(*key))
    }
}
