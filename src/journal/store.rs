//! The database: its tables, and how they are opened, read and written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::batch::{Batch, Extent};
use super::fault::{Fault, Stop, guarded};
use super::medium::{Chosen, Medium, New, Trial};
use super::record::{self, Meta, Quarantined, Shelf};
use super::rows::read_all;
use super::{Change, Damaged, Recorded, Recovered};

/// The format of the whole file: which tables there are and what is in them.
pub(super) const FORMAT: u32 = 1;

/// What a database of this program's may keep in memory. 10,000 sandboxes take some 5 MiB.
const CACHE_BYTES: usize = 8 << 20;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
pub(super) const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("states");
pub(super) const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");

/// The one row of `meta`.
pub(super) const NUMBERS: &str = "numbers";

/// Where a journal's file is, what it lies on, and in which boot.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) medium: Medium,
    pub(super) boot: u64,
}

impl Place {
    pub(super) fn file(&self) -> PathBuf {
        self.dir.join("journal.redb")
    }

    /// Where a file is made before it takes the other's place, so that there is a whole one at any time.
    pub(super) fn new_file(&self) -> PathBuf {
        self.dir.join("journal.redb.new")
    }
}

/// An open database.
pub(super) struct Store {
    /// Taken only to close it.
    database: Option<Database>,
    boot: u64,
    pub(super) meta: Meta,
    framed: Vec<u8>,
}

impl Drop for Store {
    fn drop(&mut self) {
        let database = self.database.take();
        if let Err(fault) = guarded(|| match database {
            Some(database) => Ok(database.close()?),
            None => Ok(()),
        }) {
            tracing::warn!(%fault, "the journal's file could not be closed in order; it is checked when it is opened");
        }
    }
}

impl Store {
    /// Opens the file that is there, every page of which is checked.
    pub(super) fn open(place: &Place) -> Result<Self, Fault> {
        if fs::metadata(place.file()).map_err(|error| Fault::of_io(&error))?.len() == 0 {
            return Err(Fault::Broken("it is empty".to_owned()));
        }
        let (database, trial) = open_database(place, &place.file(), New::No)?;
        let mut store =
            Self { database: Some(database), boot: place.boot, meta: Meta::default(), framed: Vec::new() };
        match store.read_meta() {
            Ok(meta) => {
                store.meta = meta;
                trial.accept();
                Ok(store)
            }
            Err(fault) => {
                // Closing writes to it too.
                drop(store);
                undo(&trial, &place.file());
                Err(fault)
            }
        }
    }

    fn read_meta(&self) -> Result<Meta, Fault> {
        let meta = guarded(|| {
            let txn = self.database().begin_read()?;
            let table = txn.open_table(META)?;
            let row = table.get(NUMBERS)?;
            let broken = |why: String| Stop(Fault::Broken(format!("its own numbers: {why}")));
            let row = row.ok_or_else(|| broken("they are missing".to_owned()))?;
            record::read_meta(row.value()).map_err(broken)
        })?;
        if meta.format != FORMAT {
            let found = meta.format;
            return Err(Fault::Broken(format!(
                "it is of format {found}, and this program reads format {FORMAT}"
            )));
        }
        Ok(meta)
    }

    /// Makes a file anew, with these numbers and nothing else, and puts it where the file is to be.
    pub(super) fn create(place: &Place, meta: Meta) -> Result<Self, Fault> {
        let path = place.new_file();
        let (database, trial) = open_database(place, &path, New::Yes)?;
        trial.accept();
        let mut store =
            Self { database: Some(database), boot: place.boot, meta: Meta::default(), framed: Vec::new() };
        store.transact(|_, numbers| {
            *numbers = meta;
            Ok(())
        })?;
        let moved = fs::rename(&path, place.file()).and_then(|()| sync_dir(&place.dir));
        moved.map_err(|error| Fault::of_io(&error))?;
        Ok(store)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("it is open until it is dropped")
    }

    /// Runs one transaction, which ends with the numbers written, durably.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Tables<'_>, &mut Meta) -> Result<T, Stop>,
    ) -> Result<T, Fault> {
        let database = self.database.as_ref().expect("it is open until it is dropped");
        let (boot, framed, known) = (self.boot, &mut self.framed, &self.meta);
        let (done, meta) = guarded(|| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            // Else a crash and a flipped bit after it would together pass for a commit that never was.
            txn.set_two_phase_commit(true);
            let mut meta = known.clone();
            let mut tables = Tables {
                specs: txn.open_table(SPECS)?,
                states: txn.open_table(STATES)?,
                txn: &txn,
                boot,
                framed,
            };
            let done = work(&mut tables, &mut meta)?;
            if meta != *known || meta.epoch == 0 {
                record::frame_meta(&meta, tables.framed);
                txn.open_table(META)?.insert(NUMBERS, tables.framed.as_slice())?;
            }
            drop(tables);
            txn.commit()?;
            Ok((done, meta))
        })?;
        self.meta = meta;
        Ok(done)
    }

    /// Writes a batch, or the part of it that there is room for. Before that, notes that records are missing, and up to which
    /// life numbers may have been used; and then accepts as lost what is, if asked.
    pub(super) fn write(
        &mut self,
        batch: &Batch,
        extent: Extent,
        (losses, accept): (Option<u64>, bool),
    ) -> Result<(), Fault> {
        self.transact(|tables, meta| {
            if let Some(life) = losses {
                meta.incomplete = true;
                meta.life = meta.life.max(life);
            }
            if accept {
                meta.incomplete = false;
                meta.accepted = meta.quarantined;
            }
            for (key, change) in batch.iter(extent) {
                tables.put(key.as_str(), change, meta)?;
            }
            Ok(())
        })
    }

    /// Writes into a new file all there is to write, and what is to lie in quarantine.
    pub(super) fn fill(
        &mut self,
        all: &[Recorded],
        apart: &[Quarantined],
        incomplete: bool,
    ) -> Result<(), Fault> {
        self.transact(|tables, meta| {
            // First, as it takes out what else is written under its keys.
            tables.quarantine(apart, meta)?;
            for sandbox in all {
                let change = Change::Define(sandbox.spec.clone(), sandbox.state);
                tables.put(sandbox.key.as_str(), &change, meta)?;
            }
            meta.incomplete = incomplete;
            meta.salvage.clear();
            meta.salvage_tries = 0;
            Ok(())
        })
    }

    /// Begins a new epoch: reads everything, and puts aside what cannot be read. Gives what is in quarantine, too.
    pub(super) fn begin_epoch(&mut self) -> Result<(Recovered, Vec<Quarantined>), Fault> {
        let boot = self.boot;
        self.transact(|tables, meta| {
            let read = read_all(&tables.specs, &tables.states, boot)?;
            tables.quarantine(&read.damaged, meta)?;
            let same_boot = meta.boot == boot;
            meta.boot = boot;
            meta.epoch += 1;
            let highest = read.sandboxes.iter().map(|sandbox| sandbox.state.record.life.0).max();
            meta.life = meta.life.max(highest.unwrap_or(0));
            let apart = tables.not_accepted(&read.sandboxes, meta)?;
            let damaged = apart
                .iter()
                .map(|record| Damaged { key: record::read_key(&record.key).ok(), why: record.why.clone() });
            let recovered = Recovered {
                sandboxes: read.sandboxes,
                damaged: damaged.collect(),
                incomplete: meta.incomplete,
                epoch: meta.epoch,
                next_life: meta.life + 1,
                same_boot,
            };
            Ok((recovered, apart))
        })
    }
}

/// The tables, within a transaction.
pub(super) struct Tables<'txn> {
    pub(super) specs: Table<'txn, &'static str, &'static [u8]>,
    pub(super) states: Table<'txn, &'static str, &'static [u8]>,
    txn: &'txn redb::WriteTransaction,
    boot: u64,
    framed: &'txn mut Vec<u8>,
}

impl Tables<'_> {
    pub(super) fn put(&mut self, key: &str, change: &Change, meta: &mut Meta) -> Result<(), Stop> {
        let (spec, state) = match change {
            Change::Define(spec, state) => (Some(spec), state),
            Change::State(state) => (None, state),
            Change::Remove => {
                self.specs.remove(key)?;
                self.states.remove(key)?;
                return Ok(());
            }
        };
        match spec {
            Some(spec) => {
                record::frame_spec(key, spec, self.framed);
                self.specs.insert(key, self.framed.as_slice())?;
            }
            // A word that comes after the end: alone it would be a damaged record.
            None if self.specs.get(key)?.is_none() => return Ok(()),
            None => {}
        }
        record::frame_state(key, state, self.boot, self.framed);
        self.states.insert(key, self.framed.as_slice())?;
        meta.life = meta.life.max(state.record.life.0);
        Ok(())
    }

    /// Moves damaged records to where they stay.
    pub(super) fn quarantine(&mut self, damaged: &[Quarantined], meta: &mut Meta) -> Result<(), Stop> {
        if damaged.is_empty() {
            return Ok(());
        }
        let mut table = self.txn.open_table(QUARANTINE)?;
        for record in damaged {
            meta.quarantined += 1;
            let number = meta.quarantined;
            let value = record.encode_to_vec();
            table.insert(number, value.as_slice())?;
            if record.shelf == Shelf::Spec as u32 {
                self.specs.remove(record.key.as_str())?;
            } else {
                self.states.remove(record.key.as_str())?;
            }
        }
        Ok(())
    }

    /// Which records are in quarantine that nobody has accepted as lost, and that no later record stands in for.
    fn not_accepted(&mut self, known: &[Recorded], meta: &Meta) -> Result<Vec<Quarantined>, Stop> {
        if meta.quarantined == meta.accepted {
            return Ok(Vec::new());
        }
        let mut apart = Vec::new();
        let table = self.txn.open_table(QUARANTINE)?;
        for row in table.range(meta.accepted + 1..)? {
            let (_, value) = row?;
            let record = Quarantined::decode(value.value()).unwrap_or_else(|_| Quarantined {
                why: "it was put aside, and is unreadable there too".to_owned(),
                value: value.value().to_owned(),
                ..Quarantined::default()
            });
            // What was read is in the order of the text of its keys.
            let is_known = known.binary_search_by(|sandbox| sandbox.key.as_str().cmp(&record.key)).is_ok();
            if !is_known {
                apart.push(record);
            }
        }
        Ok(apart)
    }
}

fn open_database(place: &Place, path: &Path, new: New) -> Result<(Database, Trial), Fault> {
    let backend = (place.medium)(path, new).and_then(Chosen::new);
    let (backend, trial) = backend.map_err(|error| Fault::of_io(&error))?;
    let opened = guarded(|| Ok(builder().set_check_integrity_on_open(true).create_with_backend(backend)?));
    match opened {
        Ok(database) => Ok((database, trial)),
        Err(fault) => {
            undo(&trial, path);
            Err(fault)
        }
    }
}

fn undo(trial: &Trial, path: &Path) {
    if let Err(error) = trial.undo(path) {
        tracing::warn!(path = %path.display(), %error, "a repair that failed cannot be undone");
    }
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
