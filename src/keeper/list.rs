//! Looks over all sandboxes at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::actor::Cell;
use crate::id::{Namespace, SandboxKey};
use crate::model::Phase;
use crate::model::Pong;
use crate::registry::index::Index;
use crate::wire::SandboxStatus;

use super::Keeper;
use super::status;

/// Which sandboxes to list. The default is all of them.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this namespace.
    pub namespace: Option<Namespace>,
    /// Only in one of these phases; empty for any.
    pub phases: Vec<Phase>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only those after this one, in the order of keys: where the last page ended.
    pub after: Option<SandboxKey>,
    /// At most this many; nothing for no limit.
    pub limit: Option<usize>,
}

/// Counts over all sandboxes at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    totals: [u64; 16],
    /// Everything with a mark, and what was last published of it.
    pub marked: Vec<(SandboxKey, Pong)>,
}

impl Sweep {
    /// How many are in this phase.
    pub fn count(&self, phase: Phase) -> u64 {
        self.totals[phase as usize]
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        Phase::ALL.into_iter().filter(|phase| *phase != Phase::Gone).map(|phase| self.count(phase)).sum()
    }
}

impl Keeper {
    /// Lists sandboxes by what is published of them, ordered by key. Asks nobody, and holds nothing while it looks.
    pub fn list(&self, filter: &Filter) -> Vec<SandboxStatus> {
        select(&self.inner.index, filter)
    }

    /// Counts all sandboxes by phase and gathers those with a mark, at well under a nanosecond or two each.
    pub fn sweep(&self) -> Sweep {
        let (totals, marked) = self.inner.index.sweep();
        Sweep { totals, marked }
    }
}

pub(super) fn select(index: &Index, filter: &Filter) -> Vec<SandboxStatus> {
    let wanted = |cell: &Arc<Cell>| {
        let phase = cell.pulse().phase();
        phase != Phase::Gone
            && (filter.phases.is_empty() || filter.phases.contains(&phase))
            && filter.namespace.is_none_or(|namespace| cell.key.namespace() == namespace)
            && filter.after.is_none_or(|after| cell.key > after)
            && filter.labels.iter().all(|(label, value)| cell.spec.labels.get(label) == Some(value))
    };
    let mut cells: Vec<_> = index.cells().filter(wanted).collect();
    if let Some(limit) = filter.limit.filter(|limit| *limit < cells.len()) {
        // A page of many: only what is on it is put in order.
        cells.select_nth_unstable_by_key(limit, |cell| cell.key);
        cells.truncate(limit);
    }
    cells.sort_unstable_by_key(|cell| cell.key);
    cells.iter().map(|cell| status::published(cell)).collect()
}
