//! What a group of changes comes to.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::SandboxKey;

use super::{Change, SandboxRecord};

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

/// What is to become of one sandbox's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Net {
    Define(Arc<[u8]>, SandboxRecord),
    State(SandboxRecord),
    Remove,
}

/// The last word on each sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    nets: BTreeMap<Name, Net>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.nets.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.nets.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SandboxKey, &Net)> {
        self.nets.iter().map(|(name, net)| (&name.0, net))
    }

    /// Adds a change that comes after all that is in here.
    pub(super) fn add(&mut self, key: &SandboxKey, change: &Change) {
        let net = match change {
            Change::Define(spec, state) => Net::Define(Arc::clone(spec), *state),
            Change::State(state) => Net::State(*state),
            Change::Remove => Net::Remove,
        };
        self.put(Name(*key), net);
    }

    /// Adds all of another that comes after this.
    pub(super) fn absorb(&mut self, later: Batch) {
        for (name, net) in later.nets {
            self.put(name, net);
        }
    }

    fn put(&mut self, name: Name, net: Net) {
        let Net::State(state) = net else {
            self.nets.insert(name, net);
            return;
        };
        match self.nets.get_mut(&name) {
            Some(Net::Define(_, known) | Net::State(known)) => *known = state,
            // It is gone; a word about it that comes late does not bring it back.
            Some(Net::Remove) => {}
            None => {
                self.nets.insert(name, net);
            }
        }
    }

    /// Takes out what would make a sandbox known that was not.
    pub(super) fn split_off_defines(&mut self) -> Batch {
        let (defines, others) =
            std::mem::take(&mut self.nets).into_iter().partition(|(_, net)| matches!(net, Net::Define(..)));
        self.nets = others;
        Batch { nets: defines }
    }

    pub(super) fn contains(&self, key: &SandboxKey) -> bool {
        self.nets.contains_key(&Name(*key))
    }
}
