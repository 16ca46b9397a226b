//! What the tables hold, read in one go, and made into sandboxes.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::ReadableTable;

use super::Recorded;
use super::fault::{Fault, Stop};
use super::record::{self, Quarantined, Shelf};

/// Keys and framed records of a table, in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Rows(pub(super) Vec<(String, Vec<u8>)>);

impl Rows {
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

/// A row as redb gives it: it stays where it is in the page.
type InPage<'a> = (redb::AccessGuard<'a, &'static str>, redb::AccessGuard<'a, &'static [u8]>);

/// Reads tables that have to be whole, and brings each spec together with its state.
pub(super) fn read_all<T: ReadableTable<&'static str, &'static [u8]>>(
    specs: &T,
    states: &T,
    boot: u64,
) -> Result<Read, Stop> {
    let (mut read_specs, mut read_states) = (0, 0);
    let read = join(
        specs.iter()?.inspect(|_| read_specs += 1),
        states.iter()?.inspect(|_| read_states += 1),
        // It is a damaged file's word, perhaps.
        usize::try_from(states.len()?).unwrap_or(0).min(1 << 20),
        boot,
    )?;
    for (read, told) in [(read_specs, specs.len()?), (read_states, states.len()?)] {
        if read != told {
            return Err(Stop(Fault::Broken(format!("a table says that it has {told} rows, and has {read}"))));
        }
    }
    Ok(read)
}

/// Reads rows until the end, the first that cannot be read, or the first that is out of order: pages that lead in a circle
/// give keys again. Whether it came to the end.
fn one_way<'a, I: Iterator<Item = Result<InPage<'a>, redb::StorageError>>>(
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

/// A key and a framed record.
pub(super) trait Row {
    fn key(&self) -> &str;
    fn value(&self) -> &[u8];
}

impl Row for (String, Vec<u8>) {
    fn key(&self) -> &str {
        &self.0
    }

    fn value(&self) -> &[u8] {
        &self.1
    }
}

impl Row for InPage<'_> {
    fn key(&self) -> &str {
        self.0.value()
    }

    fn value(&self) -> &[u8] {
        self.1.value()
    }
}

/// Brings each spec together with its state. Both come in the order of their keys.
pub(super) fn join<R: Row, E>(
    mut specs: impl Iterator<Item = Result<R, E>>,
    mut states: impl Iterator<Item = Result<R, E>>,
    expected: usize,
    boot: u64,
) -> Result<Read, E> {
    let mut read = Read { sandboxes: Vec::with_capacity(expected), damaged: Vec::new() };
    let (mut spec, mut state) = (specs.next().transpose()?, states.next().transpose()?);
    loop {
        let order = match (&spec, &state) {
            (Some(spec), Some(state)) => spec.key().cmp(state.key()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok(read),
        };
        read.take(spec.as_ref().filter(|_| order.is_le()), state.as_ref().filter(|_| order.is_ge()), boot);
        if order.is_le() {
            spec = specs.next().transpose()?;
        }
        if order.is_ge() {
            state = states.next().transpose()?;
        }
    }
}

impl Read {
    fn take<R: Row>(&mut self, spec: Option<&R>, state: Option<&R>, boot: u64) {
        let why = match (spec, state) {
            (Some(spec), Some(state)) => match readable(spec.key(), spec.value(), state.value(), boot) {
                Ok(sandbox) => return self.sandboxes.push(sandbox),
                Err(why) => why,
            },
            (Some(_), None) => "there is a spec, and no state".to_owned(),
            _ => "there is a state, and no spec".to_owned(),
        };
        for (shelf, row) in [(Shelf::Spec, spec), (Shelf::State, state)] {
            self.damaged.extend(row.map(|row| Quarantined {
                shelf: shelf as u32,
                key: row.key().to_owned(),
                why: why.clone(),
                value: row.value().to_owned(),
            }));
        }
    }
}

fn readable(key: &str, spec: &[u8], state: &[u8], boot: u64) -> Result<Recorded, String> {
    Ok(Recorded {
        key: record::read_key(key)?,
        spec: record::read_spec(key, spec).map_err(|why| format!("its spec: {why}"))?,
        state: record::read_state(key, state, boot).map_err(|why| format!("its state: {why}"))?,
    })
}
