//! What of a sandbox is written down, and when that has to be written again.

use super::{Cell, Owned};
use crate::error::Error;
use crate::journal::{Change, Recorded, SandboxRecord};
use crate::model::{Phase, Record};

impl Owned {
    /// What is to be written, if that is not what was written last.
    fn changed(&self) -> Option<Record> {
        let record = self.lifecycle.record()?;
        let is_written = self.written.is_some_and(|written| written == record || covers(&written, &record));
        (!is_written).then_some(record)
    }
}

/// Whether what was written leads to the same recovery: a start goes on from the intent to create, or from what was created.
fn covers(written: &Record, record: &Record) -> bool {
    let begun = matches!(written.phase, Phase::Creating | Phase::Created);
    record.phase == Phase::Starting && begun && Record { phase: written.phase, ..*record } == *written
}

impl Cell {
    /// Whether what is going on is not what was last written. What is gone is for the registry to remove.
    pub(crate) fn has_changed(&self) -> bool {
        self.services.journal.is_some() && self.owned.lock().changed().is_some()
    }

    /// What is to be written, if what is going on has changed since the last time. It counts as written from then on.
    pub(crate) fn change(&self) -> Option<Change> {
        self.services.journal.as_ref()?;
        let (before, record) = {
            let mut owned = self.owned.lock();
            let record = owned.changed()?;
            (owned.written.replace(record), record)
        };
        let state = self.sandbox_record(record);
        Some(match before {
            None => Change::Define(crate::wire::encode_spec(&self.spec).into(), state),
            Some(_) => Change::State(state),
        })
    }

    /// The removal of what was written, if anything was.
    pub(crate) fn removal(&self) -> Option<Change> {
        self.owned.lock().written.take().map(|_| Change::Remove)
    }

    /// Gives a change to the journal, if there is one and a journal; `then` hears when it is durable, or at once.
    pub(crate) fn write(
        &self,
        change: Option<Change>,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        match (&self.services.journal, change) {
            (Some(journal), Some(change)) => {
                self.owned.lock().unwritten += 1;
                let myself = self.myself.clone();
                let then = move |result| {
                    if let Some(cell) = myself.upgrade() {
                        let mut owned = cell.owned.lock();
                        owned.unwritten -= 1;
                        owned.durable |= Result::is_ok(&result);
                    }
                    then(result);
                };
                journal.write(self.key, change, Some(Box::new(then)));
            }
            _ => then(Ok(())),
        }
    }

    /// Whether something that was given to the journal is not durable yet.
    pub(crate) fn is_being_written(&self) -> bool {
        self.owned.lock().unwritten > 0
    }

    /// What has to be durable so that its definition is: nothing if it is, and all that was said of it.
    pub(crate) fn definition_change(&self) -> Option<Change> {
        self.change().or_else(|| {
            let record = {
                let owned = self.owned.lock();
                owned.written.filter(|_| !owned.durable || owned.unwritten > 0)?
            };
            self.services.journal.as_ref().map(|_| Change::State(self.sandbox_record(record)))
        })
    }

    /// All that is to be written of it; nothing if there is nothing to write.
    pub(crate) fn recorded(&self) -> Option<Recorded> {
        let record = self.lifecycle().record()?;
        let spec = crate::wire::encode_spec(&self.spec).into();
        Some(Recorded { key: self.key, spec, state: self.sandbox_record(record) })
    }

    fn sandbox_record(&self, record: Record) -> SandboxRecord {
        let facts = self.facts.lock();
        SandboxRecord {
            record,
            created_at_unix_nanos: facts.created_at_unix_nanos,
            started_at_unix_nanos: facts.started_at_unix_nanos,
        }
    }
}

/// What a backend keeps beside a life, so that its record can be made anew.
pub(crate) struct Keepsake {
    pub(crate) created_at_unix_nanos: i64,
    pub(crate) kept: bool,
    pub(crate) spec: Vec<u8>,
}

impl Keepsake {
    pub(super) fn of(cell: &Cell) -> Self {
        Self {
            created_at_unix_nanos: cell.facts.lock().created_at_unix_nanos,
            kept: cell.lifecycle().keeps_its_definition(),
            spec: crate::wire::encode_spec(&cell.spec),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.created_at_unix_nanos.to_le_bytes().to_vec();
        bytes.push(u8::from(self.kept));
        bytes.extend(&self.spec);
        bytes
    }

    /// Nothing if it is not one.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (created_at, rest) = bytes.split_first_chunk()?;
        let (kept, spec) = rest.split_first()?;
        Some(Self {
            created_at_unix_nanos: i64::from_le_bytes(*created_at),
            kept: *kept != 0,
            spec: spec.to_vec(),
        })
    }
}
