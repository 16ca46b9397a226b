//! How a record is written down, and what is wrong with one that cannot be read.
//!
//! ```text
//! byte 0      1..5                5..
//! version     CRC-32, little      payload: of a spec the bytes its owner gave, of a state and of the journal's own
//! of this     endian              numbers a protobuf message
//! ```
//! The checksum covers the version, the table, the key and the payload, so that no record passes for another's.

use std::sync::Arc;

use prost::Message;

use crate::id::SandboxKey;
use crate::model::{BootMillis, Exit, ExitReason, Life, Phase, Record};

use super::SandboxRecord;

/// The version of what is written here. A field that older programs may ignore is added under a new tag; whatever they
/// must not ignore needs a new version.
pub(super) const VERSION: u8 = 1;

const HEAD: usize = 5;

/// Where a record stands. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shelf {
    Spec = 1,
    State = 2,
    Meta = 3,
}

fn checksum(version: u8, shelf: Shelf, key: &str, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[version, shelf as u8]);
    crc.update(key.as_bytes());
    crc.update(&[0]);
    crc.update(payload);
    crc.finalize()
}

/// Frames what `payload` appends; `into` is emptied first.
fn frame(shelf: Shelf, key: &str, into: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    into.clear();
    into.extend_from_slice(&[0; HEAD]);
    payload(into);
    let crc = checksum(VERSION, shelf, key, &into[HEAD..]);
    into[0] = VERSION;
    into[1..HEAD].copy_from_slice(&crc.to_le_bytes());
}

/// The payload of a framed record, or what is wrong with it.
fn unframe<'a>(shelf: Shelf, key: &str, framed: &'a [u8]) -> Result<&'a [u8], String> {
    let Some((head, payload)) = framed.split_first_chunk::<HEAD>() else {
        return Err(format!("it has {} bytes, and its frame alone has {HEAD}", framed.len()));
    };
    let [version, crc @ ..] = *head;
    if u32::from_le_bytes(crc) != checksum(version, shelf, key, payload) {
        return Err("its checksum does not fit".to_owned());
    }
    if version != VERSION {
        return Err(format!("it is of version {version}, and this program reads version {VERSION}"));
    }
    Ok(payload)
}

pub(super) fn frame_spec(key: &str, spec: &[u8], into: &mut Vec<u8>) {
    frame(Shelf::Spec, key, into, |into| into.extend_from_slice(spec));
}

pub(super) fn read_spec(key: &str, framed: &[u8]) -> Result<Arc<[u8]>, String> {
    unframe(Shelf::Spec, key, framed).map(Arc::from)
}

pub(super) fn frame_state(key: &str, state: &SandboxRecord, boot: u64, into: &mut Vec<u8>) {
    let written = Written::from(state, boot);
    frame(Shelf::State, key, into, |into| written.encode(into).expect("a vector grows"));
}

/// Reads a state. A deadline that was set in another boot is of a clock that is gone, and is left out.
pub(super) fn read_state(key: &str, framed: &[u8], boot: u64) -> Result<SandboxRecord, String> {
    read_written(key, framed)?.state(boot)
}

/// Whether a state can be read and was written in this boot.
pub(super) fn is_of_boot(key: &str, framed: &[u8], boot: u64) -> bool {
    read_written(key, framed).is_ok_and(|written| written.boot == boot)
}

fn read_written(key: &str, framed: &[u8]) -> Result<Written, String> {
    let payload = unframe(Shelf::State, key, framed)?;
    Written::decode(payload).map_err(|error| format!("it is no state: {error}"))
}

pub(super) fn frame_meta(meta: &Meta, into: &mut Vec<u8>) {
    frame(Shelf::Meta, "", into, |into| meta.encode(into).expect("a vector grows"));
}

pub(super) fn read_meta(framed: &[u8]) -> Result<Meta, String> {
    let payload = unframe(Shelf::Meta, "", framed)?;
    Meta::decode(payload).map_err(|error| format!("it is none of a journal: {error}"))
}

pub(super) fn read_key(key: &str) -> Result<SandboxKey, String> {
    key.parse().map_err(|error| format!("its key is no name of a sandbox: {error}"))
}

/// What the journal knows of itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Meta {
    /// The format of the whole file; see [`super::store::FORMAT`].
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    /// The boot in which it was last open.
    #[prost(fixed64, tag = "2")]
    pub(super) boot: u64,
    /// How often it was opened.
    #[prost(uint64, tag = "3")]
    pub(super) epoch: u64,
    /// The highest life that was ever written.
    #[prost(uint64, tag = "4")]
    pub(super) life: u64,
    /// Records may be missing.
    #[prost(bool, tag = "5")]
    pub(super) incomplete: bool,
    /// Damaged records up to this number have been seen and accepted as lost.
    #[prost(uint64, tag = "6")]
    pub(super) accepted: u64,
    /// The number of the damaged record put aside last.
    #[prost(uint64, tag = "7")]
    pub(super) quarantined: u64,
    /// The file that was set aside for this one, while what it holds has yet to be saved.
    #[prost(string, tag = "8")]
    pub(super) salvage: String,
    /// How often that was tried. What kills the program each time must not do so for ever.
    #[prost(uint32, tag = "9")]
    pub(super) salvage_tries: u32,
}

/// A damaged record, as it is kept.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Quarantined {
    /// The table it was in: a [`Shelf`].
    #[prost(uint32, tag = "1")]
    pub(super) shelf: u32,
    #[prost(string, tag = "2")]
    pub(super) key: String,
    #[prost(string, tag = "3")]
    pub(super) why: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Written {
    #[prost(uint32, tag = "1")]
    phase: u32,
    #[prost(uint64, tag = "2")]
    life: u64,
    #[prost(bool, tag = "3")]
    ran: bool,
    #[prost(bool, tag = "4")]
    kept: bool,
    #[prost(bool, tag = "5")]
    shutdown: bool,
    #[prost(message, optional, tag = "6")]
    exit: Option<WrittenExit>,
    #[prost(uint64, optional, tag = "7")]
    until_boot_millis: Option<u64>,
    #[prost(sfixed64, tag = "8")]
    created_at_unix_nanos: i64,
    #[prost(sfixed64, tag = "9")]
    started_at_unix_nanos: i64,
    /// The boot it was written in.
    #[prost(fixed64, tag = "10")]
    boot: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WrittenExit {
    #[prost(uint32, tag = "1")]
    reason: u32,
    /// The status or the signal.
    #[prost(uint32, tag = "2")]
    value: u32,
    #[prost(sfixed64, tag = "3")]
    at_unix_nanos: i64,
}

impl Written {
    fn from(state: &SandboxRecord, boot: u64) -> Self {
        let Record { phase, life, ran, kept, shutdown, exit, until } = state.record;
        Self {
            phase: phase as u32,
            life: life.0,
            ran,
            kept,
            shutdown,
            exit: exit.map(WrittenExit::from),
            until_boot_millis: until.map(|until| until.0),
            created_at_unix_nanos: state.created_at_unix_nanos,
            started_at_unix_nanos: state.started_at_unix_nanos,
            boot,
        }
    }

    fn state(&self, boot: u64) -> Result<SandboxRecord, String> {
        let phase = u8::try_from(self.phase).ok().and_then(Phase::from_number);
        let phase = phase.ok_or_else(|| format!("its phase has number {}, which is none", self.phase))?;
        if phase == Phase::Gone {
            return Err("it says that it is gone".to_owned());
        }
        let until = self.until_boot_millis.filter(|_| self.boot == boot);
        let record = Record {
            phase,
            life: Life(self.life),
            ran: self.ran,
            kept: self.kept,
            shutdown: self.shutdown,
            exit: self.exit.as_ref().map(WrittenExit::exit).transpose()?,
            until: until.map(BootMillis),
        };
        Ok(SandboxRecord {
            record,
            created_at_unix_nanos: self.created_at_unix_nanos,
            started_at_unix_nanos: self.started_at_unix_nanos,
        })
    }
}

impl From<Exit> for WrittenExit {
    fn from(exit: Exit) -> Self {
        let (reason, value) = match exit.reason {
            ExitReason::Exited(status) => (1, status),
            ExitReason::Signalled(signal) => (2, signal),
            ExitReason::OomKilled => (3, 0),
            ExitReason::Lost => (4, 0),
            ExitReason::NeverRan => (5, 0),
        };
        Self { reason, value: value.into(), at_unix_nanos: exit.at_unix_nanos }
    }
}

impl WrittenExit {
    fn exit(&self) -> Result<Exit, String> {
        let value = u8::try_from(self.value);
        let reason = match (self.reason, value) {
            (1, Ok(status)) => ExitReason::Exited(status),
            (2, Ok(signal)) => ExitReason::Signalled(signal),
            (3, _) => ExitReason::OomKilled,
            (4, _) => ExitReason::Lost,
            (5, _) => ExitReason::NeverRan,
            (reason, _) => return Err(format!("its exit is {reason} with {}, which is none", self.value)),
        };
        Ok(Exit { reason, at_unix_nanos: self.at_unix_nanos })
    }
}

/// Makes a framed record one of the next version, and otherwise sound.
#[cfg(test)]
pub(super) fn make_newer(shelf: Shelf, key: &str, framed: &mut [u8]) {
    let (head, payload) = framed.split_at_mut(HEAD);
    let crc = checksum(VERSION + 1, shelf, key, payload);
    head[0] = VERSION + 1;
    head[1..].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase, exit: Option<ExitReason>) -> SandboxRecord {
        SandboxRecord {
            record: Record {
                phase,
                life: Life(7),
                ran: true,
                kept: false,
                shutdown: true,
                exit: exit.map(|reason| Exit { reason, at_unix_nanos: -3 }),
                until: Some(BootMillis(99)),
            },
            created_at_unix_nanos: 1_700_000_000_000_000_000,
            started_at_unix_nanos: i64::MIN,
        }
    }

    #[test]
    fn every_state_reads_as_it_was_written() {
        let exits = [
            None,
            Some(ExitReason::Exited(255)),
            Some(ExitReason::Signalled(9)),
            Some(ExitReason::OomKilled),
            Some(ExitReason::Lost),
            Some(ExitReason::NeverRan),
        ];
        let mut framed = Vec::new();
        for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Gone) {
            for exit in exits {
                let state = state(phase, exit);
                frame_state("a/b", &state, 5, &mut framed);
                assert_eq!(read_state("a/b", &framed, 5), Ok(state));
                let elsewhere = read_state("a/b", &framed, 6).unwrap();
                assert_eq!(elsewhere.record.until, None, "a deadline of another boot is not one of this");
            }
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes_unseen() {
        let mut framed = Vec::new();
        frame_state("a/b", &state(Phase::Running, Some(ExitReason::Exited(3))), 5, &mut framed);
        for bit in 0..framed.len() * 8 {
            let mut flipped = framed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read_state("a/b", &flipped, 5).is_err(), "bit {bit}");
        }
        for length in 0..framed.len() {
            assert!(read_state("a/b", &framed[..length], 5).is_err(), "cut to {length}");
        }
        assert!(read_state("a/c", &framed, 5).is_err(), "it is another's");
        assert!(read_spec("a/b", &framed).is_err(), "it is of another table");
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_and_what_it_changes_is_refused() {
        let mut framed = Vec::new();
        let state = state(Phase::Paused, None);
        let mut payload = Written::from(&state, 5).encode_to_vec();
        payload.extend_from_slice(&[0xf8, 0x01, 0x2a]); // field 31, a number: 42
        frame(Shelf::State, "a/b", &mut framed, |into| into.extend_from_slice(&payload));
        assert_eq!(read_state("a/b", &framed, 5), Ok(state));

        make_newer(Shelf::State, "a/b", &mut framed);
        assert!(read_state("a/b", &framed, 5).unwrap_err().contains("version 2"));
    }
}
