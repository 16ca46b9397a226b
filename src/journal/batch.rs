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
    changes: BTreeMap<Name, Word>,
}

/// The last word on one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    change: Change,
    /// Another of its name was removed before this one was defined: that has to be written even if this cannot be.
    removes: bool,
}

/// How much of a batch is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    All,
    /// All but what would make a sandbox known that was not.
    NoBeginnings,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// What is to be written of it.
    pub(super) fn iter(&self, extent: Extent) -> impl Iterator<Item = (&SandboxKey, &Change)> {
        self.changes.iter().filter_map(move |(name, word)| match (&word.change, extent) {
            (Change::Define(..), Extent::NoBeginnings) => {
                word.removes.then_some((&name.0, const { &Change::Remove }))
            }
            (change, _) => Some((&name.0, change)),
        })
    }

    /// Adds a change that comes after all that is in here.
    pub(super) fn add(&mut self, key: &SandboxKey, change: &Change) {
        let name = Name(*key);
        match (self.changes.get_mut(&name), change) {
            (
                Some(Word { change: Change::Define(_, known) | Change::State(known), .. }),
                Change::State(state),
            ) => {
                *known = *state;
            }
            // It is gone; a word about it that comes late does not bring it back.
            (Some(Word { change: Change::Remove, .. }), Change::State(_)) => {}
            (known, change) => {
                let removes = known.is_some_and(|word| word.removes || word.change == Change::Remove);
                self.changes.insert(name, Word { change: change.clone(), removes });
            }
        }
    }

    /// Takes out what has been written.
    pub(super) fn written(&mut self, extent: Extent) {
        match extent {
            Extent::All => self.changes.clear(),
            Extent::NoBeginnings => self.changes.retain(|_, word| {
                word.removes = false;
                matches!(word.change, Change::Define(..))
            }),
        }
    }

    /// Whether this change of a sandbox, or what came after it, has yet to be written.
    pub(super) fn owes(&self, key: &SandboxKey, change: &Change) -> bool {
        self.changes.get(&Name(*key)).is_some_and(|word| match change {
            Change::Remove => word.removes || word.change == Change::Remove,
            Change::Define(..) | Change::State(_) => true,
        })
    }
}
