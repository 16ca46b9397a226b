//! Reads a page of a log while its init may be writing it.

use std::io;
use std::os::fd::OwnedFd;

use super::log::header;
use super::log_format::{CHUNK_BYTES, CHUNK_HEADER, CHUNK_MAGIC, ChunkHeader, SLOT_HEADER, SlotHeader};
use crate::runtime::{LogChunk, LogPage, LogStream};

/// The most bytes of output in one page, whatever is asked for.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// How much of what is no chunk is searched in one page.
const MOST_SEARCHED: u64 = 8 * 1024 * 1024;
/// How much is read from a file at a time. A chunk fits many times.
const WINDOW: usize = 64 * 1024;
/// How often a page is begun anew because the writer went over to the other slot meanwhile.
const ATTEMPTS: usize = 16;

/// A slot and what its header said.
struct Slot<'a> {
    file: &'a OwnedFd,
    header: SlotHeader,
    /// The position where the slot ends, and where its file does, which may be before.
    end: u64,
    file_end: u64,
}

/// Reads what a life has written from a position on. At least a chunk, if there is one.
pub(super) fn page(files: &[OwnedFd], life: u64, from: u64, most_bytes: usize) -> io::Result<LogPage> {
    for _ in 0..ATTEMPTS {
        let slots = slots(files, life)?;
        let Some((page, used)) = read(&slots, from, most_bytes.clamp(1, MOST_BYTES))? else {
            return Ok(LogPage { next: from, ..LogPage::default() });
        };
        // What was read from a slot whose header is the same afterwards was the slot's.
        if slots[..used].iter().all(|slot| header(slot.file) == Some(slot.header)) {
            return Ok(page);
        }
    }
    // The writer is so much faster that a page is gone before it is read. The next call finds what there is then.
    Ok(LogPage { next: from, ..LogPage::default() })
}

/// The slots of this life, the older first.
fn slots(files: &[OwnedFd], life: u64) -> io::Result<Vec<Slot<'_>>> {
    let mut slots = Vec::with_capacity(2);
    for file in files {
        if let Some(header) = header(file).filter(|header| header.life == life) {
            let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0).min(header.slot_bytes);
            let end = header.first + size.saturating_sub(SLOT_HEADER as u64);
            slots.push(Slot { file, header, end, file_end: end });
        }
    }
    slots.sort_by_key(|slot| slot.header.first);
    // The older one reaches to where the newer begins, though its last chunks may be missing.
    if let [older, newer] = &mut slots[..] {
        older.end = newer.header.first;
        older.file_end = older.file_end.min(older.end);
    }
    Ok(slots)
}

/// Reads from the slots. Says how many of them the page depends on; nothing where there is no slot.
fn read(slots: &[Slot<'_>], from: u64, most_bytes: usize) -> io::Result<Option<(LogPage, usize)>> {
    let (Some(oldest), Some(newest)) = (slots.first(), slots.last()) else { return Ok(None) };
    // A position that has not been yet is none; the end is the nearest that is.
    let from = from.min(newest.end);
    let start = from.max(oldest.header.first);
    let mut reading = Reading {
        page: LogPage { chunks: Vec::new(), next: start, dropped: start - from },
        left: most_bytes,
        search_left: MOST_SEARCHED,
        window: Vec::new(),
        window_at: 0,
        window_is_last: false,
    };
    let mut used = 0;
    for slot in slots {
        used += 1;
        let is_newest = used == slots.len();
        if reading.page.next < slot.end && !reading.slot(slot, is_newest)? {
            break;
        }
    }
    // Where nothing was taken from a slot, that it is the older one was still believed.
    Ok(Some((reading.page, used)))
}

/// A page that is being put together.
struct Reading {
    page: LogPage,
    /// How much more output fits, and how much more may be searched.
    left: usize,
    search_left: u64,
    /// What was read of the slot, from this offset on.
    window: Vec<u8>,
    window_at: u64,
    /// Whether the file ends with it.
    window_is_last: bool,
}

impl Reading {
    /// Takes chunks from a slot, as long as they fit. Whether the next slot is to be gone on with.
    fn slot(&mut self, slot: &Slot<'_>, is_newest: bool) -> io::Result<bool> {
        self.window.clear();
        self.window_is_last = false;
        while self.page.next < slot.end {
            match self.chunk_at(slot, self.page.next)? {
                Some(_) if self.left == 0 => return Ok(false),
                Some(chunk) => self.take(chunk),
                None => match self.search(slot, is_newest)? {
                    Found::Chunk(position) | Found::Nothing(position) => self.drop_until(position),
                    Found::TornEnd => return Ok(false),
                    Found::TooFar(position) => {
                        self.drop_until(position);
                        return Ok(false);
                    }
                },
            }
        }
        Ok(true)
    }

    fn take(&mut self, chunk: LogChunk) {
        let length = chunk.bytes.len();
        self.left = self.left.saturating_sub(length);
        self.page.next += (CHUNK_HEADER + length) as u64;
        self.page.chunks.push(chunk);
    }

    fn drop_until(&mut self, position: u64) {
        self.page.dropped += position - self.page.next;
        self.page.next = position;
    }

    /// The sound chunk at a position, if there is one.
    fn chunk_at(&mut self, slot: &Slot<'_>, position: u64) -> io::Result<Option<LogChunk>> {
        let offset = SLOT_HEADER as u64 + (position - slot.header.first);
        let Some((header, content)) = ChunkHeader::decode(self.bytes_at(slot, offset)?, position) else {
            return Ok(None);
        };
        if position + (CHUNK_HEADER + content.len()) as u64 > slot.end {
            return Ok(None);
        }
        let stream = if header.stream == 1 { LogStream::Stdout } else { LogStream::Stderr };
        Ok(Some(LogChunk { at_unix_nanos: header.at_unix_nanos, stream, bytes: content.to_vec() }))
    }

    /// What is in the slot from an offset on: at least a chunk's size, unless the file ends before.
    fn bytes_at(&mut self, slot: &Slot<'_>, offset: u64) -> io::Result<&[u8]> {
        let end = self.window_at + self.window.len() as u64;
        let holds_chunk = offset + (CHUNK_HEADER + CHUNK_BYTES) as u64 <= end || self.window_is_last;
        if self.window.is_empty() || offset < self.window_at || !holds_chunk {
            self.window.resize(WINDOW, 0);
            let window = &mut self.window[..];
            let length = rustix::io::retry_on_intr(|| rustix::io::pread(slot.file, &mut *window, offset))?;
            self.window.truncate(length);
            self.window_at = offset;
            self.window_is_last = length < WINDOW;
        }
        let skip = usize::try_from(offset - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(skip..).unwrap_or(&[]))
    }

    /// Looks for the next chunk, where there is none at the position that was reached.
    fn search(&mut self, slot: &Slot<'_>, is_newest: bool) -> io::Result<Found> {
        let mut position = self.page.next + 1;
        while position < slot.file_end {
            let ahead = self.bytes_at(slot, SLOT_HEADER as u64 + (position - slot.header.first))?;
            // On to where a chunk may begin: a hole is passed quickly.
            let skipped = ahead.iter().position(|byte| *byte == CHUNK_MAGIC.to_le_bytes()[0]);
            let skipped = skipped.unwrap_or(ahead.len().max(1)) as u64;
            let Some(left) = self.search_left.checked_sub(skipped + 1) else {
                return Ok(Found::TooFar(position));
            };
            self.search_left = left;
            position += skipped;
            if position < slot.file_end && self.chunk_at(slot, position)?.is_some() {
                return Ok(Found::Chunk(position));
            }
            position += 1;
        }
        // At the end of all, it may be a chunk that is being written.
        Ok(if is_newest { Found::TornEnd } else { Found::Nothing(slot.end) })
    }
}

/// What a search came to.
enum Found {
    /// A chunk, here.
    Chunk(u64),
    /// None in this slot, which ends here.
    Nothing(u64),
    /// None, and one may yet come.
    TornEnd,
    /// None up to here. It goes on there with the next page.
    TooFar(u64),
}

#[cfg(test)]
#[path = "log_reader_tests.rs"]
mod tests;
