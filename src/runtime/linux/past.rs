//! What an earlier backend on the same state has left, as long as nobody has asked for it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::config::AdoptBy;
use super::group;
use super::ids::Ids;
use super::mark::Mark;
use super::protocol::{Child, NO_LIFE};
use super::tree::Tree;
use super::zygote::{ZygoteId, Zygotes};
use crate::id::SandboxKey;
use crate::model::Life;

/// Everything that was found and is not known as a life of this backend's yet.
pub(super) struct Past {
    found: Mutex<Found>,
    zygotes: Arc<Zygotes>,
    ids: Arc<Ids>,
    pub(super) by: AdoptBy,
}

#[derive(Default)]
struct Found {
    /// Children of the zygotes that were taken over.
    children: HashMap<Life, (ZygoteId, Child), RandomState>,
    /// What is in each group, by its number.
    groups: HashMap<u64, Remains, RandomState>,
}

/// What is in a group.
#[derive(Default, Clone, Copy)]
struct Remains {
    /// The life that a child was born for in it.
    life: Option<Life>,
    /// The first of a block of IDs.
    ids: Option<u32>,
}

impl Past {
    /// Sorts what was found. Looks at groups that no child was born into, to learn which IDs are in use.
    pub(super) fn new(
        tree: &Tree,
        ids: Arc<Ids>,
        zygotes: Arc<Zygotes>,
        children: Vec<(ZygoteId, Child)>,
        by: AdoptBy,
    ) -> io::Result<Self> {
        let mut found = Found::default();
        for (zygote, child) in children {
            // Others are of no use, and their zygotes are ending them.
            if child.life != 0 && child.life < NO_LIFE {
                let life = Life(child.life);
                let remains = Remains { life: Some(life), ids: Some(child.ids).filter(|start| *start != 0) };
                found.groups.insert(child.group, remains);
                found.children.insert(life, (zygote, child));
            }
        }
        let mut without_group: HashSet<u64, RandomState> = found.groups.keys().copied().collect();
        for (number, name) in tree.groups()? {
            if without_group.remove(&number) {
                continue;
            }
            let Some(group) = tree.open_named(&name)? else { continue };
            if !group::is_marked(&group) && !group::is_populated(&group)? {
                // Its host came as far as making it. Nobody makes any at this moment.
                tree.remove_named(&name)?;
                continue;
            }
            let ids = Mark::of(&group).and_then(|mark| mark.ids);
            found.groups.insert(number, Remains { life: None, ids });
        }
        found.groups.values().filter_map(|remains| remains.ids).for_each(|start| ids.hold(start));
        let past = Self { found: Mutex::new(found), zygotes, ids, by };
        // Its deletion was under way, and had come as far as that.
        without_group.into_iter().for_each(|number| past.group_is_gone(number));
        Ok(past)
    }

    /// The child that leads a life.
    pub(super) fn child(&self, life: Life) -> Option<(ZygoteId, Child)> {
        self.found.lock().children.get(&life).copied()
    }

    /// The first of the block of IDs of what is in a group.
    pub(super) fn ids(&self, number: u64) -> Option<u32> {
        self.found.lock().groups.get(&number)?.ids
    }

    /// Forgets a life and its group, which are known otherwise from now on.
    pub(super) fn take(&self, life: Life, number: u64) -> Option<(ZygoteId, Child)> {
        let mut found = self.found.lock();
        found.groups.remove(&number);
        found.children.remove(&life)
    }

    /// Has the child reaped that led a life, and killed if need be.
    pub(super) fn discard(&self, life: Life) {
        let child = self.found.lock().children.remove(&life);
        if let Some((zygote, child)) = child {
            self.zygotes.discard(zygote, child.pid);
        }
    }

    /// Lets go of whatever was in a group that has been removed, and gives back what it had.
    pub(super) fn group_is_gone(&self, number: u64) {
        let Some(remains) = self.found.lock().groups.remove(&number) else { return };
        remains.life.into_iter().for_each(|life| self.discard(life));
        remains.ids.into_iter().for_each(|start| self.ids.give_back(start));
    }

    /// Whether all that was found is known otherwise by now, or gone.
    pub(super) fn is_empty(&self) -> bool {
        let found = self.found.lock();
        found.children.is_empty() && found.groups.is_empty()
    }

    /// The number of a key's group, if there can be anything in it that is not known yet.
    pub(super) fn number_of(&self, tree: &Tree, key: &SandboxKey) -> Option<u64> {
        if self.found.lock().groups.is_empty() {
            return None;
        }
        group::number(tree.open_named(&key.file_name(255)).ok()??).ok()
    }
}
