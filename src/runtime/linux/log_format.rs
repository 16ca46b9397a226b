//! The files of a log: two slots, written in turn. Compiled into both: the library, which makes and reads them, and the
//! freestanding init, which writes them.
//!
//! ```text
//! slot    0  8          16     24          32       40              48   256
//!         │  magic      │ life │ slot_bytes│ first  │ checksum, key length │ key … │ chunk │ chunk │ …
//! chunk   0     4        8        12         16          24             32
//!         │magic│ stream │ length │ checksum │ position  │ at_unix_nanos │ bytes …
//! ```
//!
//! Everything that was ever written has a position, counted in bytes of chunks from the beginning of the log. A slot says the
//! position of its first chunk, and each chunk says its own, so a chunk at position p is `p - first` bytes behind its slot's
//! header. What could not be written (a full disk) has its position too, and is a gap. When a slot is full the other is
//! emptied and gone on with: half of the log is kept at least.
//!
//! Numbers are little-endian.

/// The first bytes of a slot, with the version of this format.
pub(crate) const SLOT_MAGIC: u64 = u64::from_le_bytes(*b"sk-log\0\x01");
/// The size of what precedes the chunks of a slot.
pub(crate) const SLOT_HEADER: usize = 256;
/// The longest name of a sandbox that fits.
pub(crate) const KEY_BYTES: usize = SLOT_HEADER - 48;
/// The first bytes of a chunk.
pub(crate) const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"skch");
/// The size of what precedes the bytes of a chunk.
pub(crate) const CHUNK_HEADER: usize = 32;
/// The most bytes in one chunk, such that a chunk is a page.
pub(crate) const CHUNK_BYTES: usize = 4096 - CHUNK_HEADER;
/// The least size of a log, such that some chunks fit into each slot.
pub(crate) const LEAST_LOG_BYTES: u64 = 16 * 1024;
/// The greatest.
pub(crate) const MOST_LOG_BYTES: u64 = 1 << 40;

/// What a slot begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotHeader {
    pub(crate) life: u64,
    /// How large the slot may become, this header included.
    pub(crate) slot_bytes: u64,
    /// The position of its first chunk.
    pub(crate) first: u64,
    pub(crate) key_length: u32,
    /// The sandbox, as `namespace/id`.
    pub(crate) key: [u8; KEY_BYTES],
}

impl SlotHeader {
    pub(crate) fn encode(&self) -> [u8; SLOT_HEADER] {
        let mut bytes = [0; SLOT_HEADER];
        bytes[..8].copy_from_slice(&SLOT_MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.life.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.slot_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.key_length.to_le_bytes());
        bytes[48..].copy_from_slice(&self.key);
        let sum = checksum(checksum(BASIS, &bytes[..32]), &bytes[36..]);
        bytes[32..36].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Nothing for what is no header, or a damaged one.
    pub(crate) fn decode(bytes: &[u8; SLOT_HEADER]) -> Option<Self> {
        let sum = checksum(checksum(BASIS, &bytes[..32]), &bytes[36..]);
        let header = Self {
            life: word(bytes, 8)?,
            slot_bytes: word(bytes, 16)?,
            first: word(bytes, 24)?,
            key_length: half(bytes, 36)?,
            key: *bytes.last_chunk()?,
        };
        let bounds = LEAST_LOG_BYTES / 2..=MOST_LOG_BYTES / 2;
        let is_sound = word(bytes, 0)? == SLOT_MAGIC
            && half(bytes, 32)? == sum
            && bounds.contains(&header.slot_bytes)
            && header.first <= i64::MAX as u64
            && header.key_length as usize <= KEY_BYTES;
        is_sound.then_some(header)
    }

    /// The sandbox's name.
    pub(crate) fn key(&self) -> &[u8] {
        self.key.get(..self.key_length as usize).unwrap_or(&[])
    }
}

/// What a chunk begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    /// 1 for standard output, 2 for standard error.
    pub(crate) stream: u32,
    pub(crate) length: u32,
    pub(crate) position: u64,
    pub(crate) at_unix_nanos: i64,
}

impl ChunkHeader {
    pub(crate) fn encode(&self, content: &[u8]) -> [u8; CHUNK_HEADER] {
        let mut bytes = [0; CHUNK_HEADER];
        bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.at_unix_nanos.to_le_bytes());
        let sum = chunk_sum(&bytes, content);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The chunk at the front of these bytes, if a whole and sound one is there and has this position.
    pub(crate) fn decode(bytes: &[u8], position: u64) -> Option<(Self, &[u8])> {
        let (header, rest) = bytes.split_first_chunk::<CHUNK_HEADER>()?;
        if half(header, 0)? != CHUNK_MAGIC || word(header, 16)? != position {
            return None;
        }
        let this = Self {
            stream: half(header, 4)?,
            length: half(header, 8)?,
            position,
            at_unix_nanos: word(header, 24)? as i64,
        };
        let length = this.length as usize;
        if length == 0 || length > CHUNK_BYTES || !matches!(this.stream, 1 | 2) {
            return None;
        }
        let content = rest.get(..length)?;
        (half(header, 12)? == chunk_sum(header, content)).then_some((this, content))
    }
}

fn chunk_sum(header: &[u8; CHUNK_HEADER], content: &[u8]) -> u32 {
    checksum(checksum(checksum(BASIS, &header[..12]), &header[16..]), content)
}

const BASIS: u32 = 0x811c_9dc5;

/// FNV-1a, gone on with. It tells what is torn or stale, not what somebody has forged.
fn checksum(mut sum: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        sum = (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    sum
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
