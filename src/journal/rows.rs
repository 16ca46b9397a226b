//! What the tables hold, read in one go, and made into sandboxes.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::ReadableTable;

use super::fault::{Fault, Stop};
use super::record::{self, Quarantined, Shelf};
use super::{Recorded, SandboxRecord};

/// Keys and framed records of a table, in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Rows(pub(super) Vec<(String, Vec<u8>)>);

impl Rows {
    /// Reads a table that has to be whole.
    pub(super) fn read_all(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Self, Stop> {
        let mut rows = Vec::with_capacity(usize::try_from(table.len()?).unwrap_or(0).min(1 << 20));
        for row in table.iter()? {
            let (key, value) = row?;
            rows.push((key.value().to_owned(), value.value().to_owned()));
        }
        let (read, told) = (rows.len(), table.len()?);
        if read as u64 != told {
            return Err(Stop(Fault::Broken(format!("a table says that it has {told} rows, and has {read}"))));
        }
        Ok(Self(rows))
    }

    /// Reads as much of a damaged table as can be had: from its beginning up to the damage, and from its end down to it.
    pub(super) fn read_what_can_be(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Self {
        let mut rows = Vec::new();
        let whole = one_way(|| table.iter(), |key, last| key > last, &mut rows);
        if !whole {
            let mut from_the_end = Vec::new();
            one_way(|| Ok(table.iter()?.rev()), |key, last| key < last, &mut from_the_end);
            rows.append(&mut from_the_end);
            rows.sort_by(|(left, _), (right, _)| left.cmp(right));
            rows.dedup_by(|(left, _), (right, _)| left == right);
        }
        Self(rows)
    }

    /// Adds the rows of keys that are not in here.
    pub(super) fn fill_up(&mut self, others: Rows) {
        self.0.extend(others.0);
        // Stable: of two rows with one key, the one that was here comes first.
        self.0.sort_by(|(left, _), (right, _)| left.cmp(right));
        self.0.dedup_by(|(left, _), (right, _)| left == right);
    }
}

type Row<'a> =
    Result<(redb::AccessGuard<'a, &'static str>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

/// Reads rows until the end, the first that cannot be read, or the first that is out of order: pages that lead in a circle
/// give keys again. Whether it came to the end.
fn one_way<'a, I: Iterator<Item = Row<'a>>>(
    begin: impl FnOnce() -> Result<I, redb::StorageError>,
    in_order: impl Fn(&str, &str) -> bool,
    rows: &mut Vec<(String, Vec<u8>)>,
) -> bool {
    let read = catch_unwind(AssertUnwindSafe(|| -> Result<(), redb::StorageError> {
        for row in begin()? {
            let (key, value) = row?;
            let key = key.value().to_owned();
            if rows.last().is_some_and(|(last, _)| !in_order(&key, last)) {
                return Err(redb::StorageError::Corrupted("keys are out of order".to_owned()));
            }
            rows.push((key, value.value().to_owned()));
        }
        Ok(())
    }));
    matches!(read, Ok(Ok(())))
}

/// Sandboxes, and records that make none. Both in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) sandboxes: Vec<Recorded>,
    pub(super) damaged: Vec<Quarantined>,
}

/// Brings each spec together with its state.
pub(super) fn join(specs: Rows, states: Rows, boot: u64) -> Read {
    let mut read = Read { sandboxes: Vec::with_capacity(states.0.len()), damaged: Vec::new() };
    let (mut specs, mut states) = (specs.0.into_iter().peekable(), states.0.into_iter().peekable());
    loop {
        let order = match (specs.peek(), states.peek()) {
            (Some((spec, _)), Some((state, _))) => spec.cmp(state),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return read,
        };
        let spec = if order.is_le() { specs.next() } else { None };
        let state = if order.is_ge() { states.next() } else { None };
        read.take(spec, state, boot);
    }
}

impl Read {
    fn take(&mut self, spec: Option<(String, Vec<u8>)>, state: Option<(String, Vec<u8>)>, boot: u64) {
        let (why_spec, why_state) = match (&spec, &state) {
            (Some((key, spec)), Some((_, state))) => match readable(key, spec, state, boot) {
                Ok((key, spec, state)) => return self.sandboxes.push(Recorded { key, spec, state }),
                Err(why) => (why.clone(), why),
            },
            _ => ("there is a spec, and no state".to_owned(), "there is a state, and no spec".to_owned()),
        };
        let mut put_aside = |shelf: Shelf, row: Option<(String, Vec<u8>)>, why: String| {
            if let Some((key, value)) = row {
                self.damaged.push(Quarantined { shelf: shelf as u32, key, why, value });
            }
        };
        put_aside(Shelf::Spec, spec, why_spec);
        put_aside(Shelf::State, state, why_state);
    }
}

fn readable(
    key: &str,
    spec: &[u8],
    state: &[u8],
    boot: u64,
) -> Result<(crate::id::SandboxKey, std::sync::Arc<[u8]>, SandboxRecord), String> {
    let name = record::read_key(key)?;
    let spec = record::read_spec(key, spec).map_err(|why| format!("its spec: {why}"))?;
    let state = record::read_state(key, state, boot).map_err(|why| format!("its state: {why}"))?;
    Ok((name, spec, state))
}
