//! What becomes of a file that is damaged: it is set aside, a new one takes its place, and what can be read of the old one
//! is written into it.
//!
//! The order is chosen for a kill between any two steps: there is a file at any time, the damaged one is never lost, and the
//! new one says that records may be missing before it says anything else.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{BackendError, ConcurrencyMode, ReadableDatabase, ReadableTable, StorageBackend};

use super::Change;
use super::fault::{Fault, guarded};
use super::record::{self, Meta, Quarantined};
use super::rows::{Rows, join};
use super::store::{self, FORMAT, Place, Store};
use crate::telemetry;

/// How many damaged files are kept: the first, and the latest.
const KEPT: usize = 8;

/// How often one damaged file is read, if reading it ends the program.
const MOST_TRIES: u32 = 2;

/// Sets the file aside and makes a new one with these numbers. What the old one holds is still to be [saved](save).
pub(super) fn replace(place: &Place, why: &str, numbers: Option<&Meta>) -> Result<Store, Fault> {
    let aside = set_aside(&place.dir, &place.file()).map_err(|error| Fault::of_io(&error))?;
    telemetry::journal_set_aside();
    tracing::error!(
        file = %place.file().display(),
        set_aside = %aside.display(),
        why,
        "the journal is damaged, is set aside, and is made anew from what can be read of it"
    );
    let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Which numbers were used the old file may not tell any more; the clock is beyond all of them.
    let beyond = || Meta { epoch: unix_millis(), life: unix_millis(), ..Meta::default() };
    let numbers = numbers.cloned().unwrap_or_else(beyond);
    let meta = Meta { format: FORMAT, incomplete: true, salvage: name, salvage_tries: 0, ..numbers };
    Store::create(place, meta)
}

pub(super) fn unix_millis() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// None where the clock stands before it: what counts from it then counts from the records alone.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Gives the file a second name, which says when; at most [`KEPT`] of them.
fn set_aside(dir: &Path, file: &Path) -> io::Result<PathBuf> {
    let name = |number: u128| dir.join(format!("journal.redb.damaged-{number:020}"));
    let mut number = since_1970().as_nanos();
    while name(number).try_exists()? {
        number += 1;
    }
    let aside = name(number);
    match fs::hard_link(file, &aside) {
        // Somebody took it away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A file system without hard links: for a moment there is no file, and a kill just then loses the mark that
        // records may be missing.
        linked => linked.or_else(|_| fs::rename(file, &aside))?,
    }
    let mut all: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("journal.redb.damaged-")
        })
        .collect();
    all.sort();
    let surplus = all.len().saturating_sub(KEPT);
    for path in all.iter().skip(1).take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(aside)
}

/// Writes into a new file what can be read of the one that was set aside for it, if that has not been done.
pub(super) fn save(place: &Place, store: &mut Store) -> Result<(), Fault> {
    let name = store.meta.salvage.clone();
    if name.is_empty() {
        return Ok(());
    }
    let mut found = Found::default();
    if store.meta.salvage_tries < MOST_TRIES {
        store.transact(|_, meta| {
            meta.salvage_tries += 1;
            Ok(())
        })?;
        found = read_damaged(&place.dir.join(&name));
    }
    let boot = place.boot;
    let of_this_boot = found.states.0.iter().any(|(key, state)| record::is_of_boot(key, state, boot));
    let (specs, states) = (found.specs.0.len(), found.states.0.len());
    let sound = Ok::<_, Infallible>;
    let Ok(read) =
        join(found.specs.0.into_iter().map(sound), found.states.0.into_iter().map(sound), states, boot);
    tracing::warn!(
        file = name,
        specs,
        states,
        sandboxes = read.sandboxes.len(),
        "read what can be read of a damaged file"
    );
    store.transact(|tables, meta| {
        // What was in quarantine there goes first, under numbers of its own: it takes out what else is written under its keys,
        // and some of them may have been defined anew since.
        tables.quarantine(&found.quarantine, meta)?;
        tables.quarantine(&read.damaged, meta)?;
        for sandbox in &read.sandboxes {
            let change = Change::Define(sandbox.spec.clone(), sandbox.state);
            tables.put(sandbox.key.as_str(), &change, meta)?;
        }
        let old = found.meta.unwrap_or_default();
        meta.epoch = meta.epoch.max(old.epoch);
        meta.life = meta.life.max(old.life);
        // If nobody can tell, there may be something alive.
        let known = old.boot != 0 || !read.sandboxes.is_empty();
        meta.boot = if of_this_boot || !known { boot } else { old.boot };
        meta.salvage.clear();
        meta.salvage_tries = 0;
        Ok(())
    })
}

/// What could be read of a damaged file.
#[derive(Default)]
struct Found {
    meta: Option<Meta>,
    specs: Rows,
    states: Rows,
    quarantine: Vec<Quarantined>,
}

fn read_damaged(path: &Path) -> Found {
    let image = match read_file(path) {
        Ok(image) if image.len() > HEADER_BYTES => image,
        Ok(_) => return Found::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a damaged file cannot be read at all");
            return Found::default();
        }
    };
    // First as its last commit left it, then as the one before did.
    let mut found = read_image(&image, 0);
    let before = read_image(&image, PRIMARY);
    found.specs.fill_up(before.specs);
    found.states.fill_up(before.states);
    found.meta = found.meta.or(before.meta);
    if found.quarantine.is_empty() {
        found.quarantine = before.quarantine;
    }
    found
}

/// The file's bytes; zeros where the system refuses to read them.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    const STEP: usize = 4096;
    let file = fs::File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(MOST_BYTES);
    let mut image = vec![0; length];
    if file.read_exact_at(&mut image, 0).is_err() {
        for at in (0..length).step_by(STEP) {
            let end = length.min(at + STEP);
            let _zeros_stay = file.read_exact_at(&mut image[at..end], at as u64);
        }
    }
    Ok(image)
}

/// More is not read of a damaged file.
const MOST_BYTES: usize = 1 << 30;
/// redb's header: how it begins, its length, where its flags are, and some of them. From its description of the file format,
/// version 3.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const HEADER_BYTES: usize = 320;
const FLAGS_AT: usize = 9;
const PRIMARY: u8 = 1;
const UNCLEAN: u8 = 2 | 8;

/// Reads an image as if it had been closed in order, with some flags turned: redb reads what is to be repaired only after it
/// has repaired it, which it cannot if a page is damaged. A reader beside a writer, which it takes itself for here, looks at
/// nothing but the pages on its way.
fn read_image(image: &[u8], turned: u8) -> Found {
    let mut found = Found::default();
    let mut image = image.to_vec();
    image[..MAGIC.len()].copy_from_slice(&MAGIC);
    image[FLAGS_AT] = (image[FLAGS_AT] & !UNCLEAN) ^ turned;
    let read = guarded(|| {
        let mut builder = store::builder();
        builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
        let database = builder.open_read_only_with_backend(Image(image))?;
        let txn = database.begin_read()?;
        if let Ok(table) = txn.open_table(store::SPECS) {
            found.specs = Rows::read_what_can_be(&table);
        }
        if let Ok(table) = txn.open_table(store::STATES) {
            found.states = Rows::read_what_can_be(&table);
        }
        if let Ok(table) = txn.open_table(store::META) {
            found.meta = table.get(store::NUMBERS)?.and_then(|row| record::read_meta(row.value()).ok());
        }
        if let Ok(table) = txn.open_table(store::QUARANTINE) {
            for row in table.iter()? {
                let (_, value) = row?;
                found.quarantine.extend(<Quarantined as prost::Message>::decode(value.value()).ok());
            }
        }
        Ok(())
    });
    if let Err(fault) = read {
        tracing::debug!(%fault, "a damaged file was read up to here");
    }
    found
}

/// What was read of a file. Nobody else has it, so every lock is to be had.
#[derive(Debug)]
struct Image(Vec<u8>);

impl StorageBackend for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        // Of a page that was cut, its beginning may do.
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let length = out.len().min(self.0.len() - begin);
        out[..length].copy_from_slice(&self.0[begin..begin + length]);
        out[length..].fill(0);
        Ok(())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
