//! The reader, against a writer that does what the init does, and against files of any content.

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::log_format::{KEY_BYTES, LEAST_LOG_BYTES, MOST_LOG_BYTES};
use super::*;

const LIFE: u64 = 7;

fn file() -> OwnedFd {
    memfd_create(c"slot", MemfdFlags::CLOEXEC).unwrap()
}

fn slot_header(slot_bytes: u64, first: u64) -> SlotHeader {
    SlotHeader { life: LIFE, slot_bytes, first, key_length: 3, key: [b'k'; KEY_BYTES] }
}

/// As `init/log.rs`.
struct Writer {
    files: [OwnedFd; 2],
    header: SlotHeader,
    current: usize,
    end: u64,
    /// All that was written, with where.
    chunks: Vec<(u64, LogChunk)>,
}

impl Writer {
    fn new(log_bytes: u64) -> Self {
        let files = [file(), file()];
        let header = slot_header(log_bytes / 2, 0);
        rustix::io::pwrite(&files[0], &header.encode(), 0).unwrap();
        Self { files, header, current: 0, end: 0, chunks: Vec::new() }
    }

    /// Writes a chunk. One that is lost only takes its place.
    fn write(&mut self, stream: u32, content: &[u8], lost: bool) {
        let size = (CHUNK_HEADER + content.len()) as u64;
        if SLOT_HEADER as u64 + (self.end - self.header.first) + size > self.header.slot_bytes {
            self.current ^= 1;
            self.header.first = self.end;
            rustix::fs::ftruncate(&self.files[self.current], 0).unwrap();
            rustix::io::pwrite(&self.files[self.current], &self.header.encode(), 0).unwrap();
        }
        let at_unix_nanos = self.end as i64;
        if !lost {
            let length = content.len() as u32;
            let header = ChunkHeader { stream, length, position: self.end, at_unix_nanos };
            let bytes = [&header.encode(content)[..], content].concat();
            let offset = SLOT_HEADER as u64 + (self.end - self.header.first);
            rustix::io::pwrite(&self.files[self.current], &bytes, offset).unwrap();
            let stream = if stream == 1 { LogStream::Stdout } else { LogStream::Stderr };
            self.chunks.push((self.end, LogChunk { at_unix_nanos, stream, bytes: content.to_vec() }));
        }
        self.end += size;
    }
}

fn writes() -> impl Strategy<Value = Vec<(u32, usize, bool, bool)>> {
    let length = prop_oneof![1..200_usize, 1..=CHUNK_BYTES];
    proptest::collection::vec((1..=2_u32, length, proptest::bool::weighted(0.1), any::<bool>()), 1..60)
}

/// Reads pages until nothing comes any more. Everything passed is counted.
fn read_all(files: &[OwnedFd], mut from: u64, most: usize) -> (Vec<LogChunk>, u64, u64) {
    let (mut chunks, mut dropped) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let page = page(files, LIFE, from, most).unwrap();
        assert!(page.next >= from);
        let read: u64 = page.chunks.iter().map(|chunk| (CHUNK_HEADER + chunk.bytes.len()) as u64).sum();
        assert_eq!(page.next, from + page.dropped + read, "what was passed is read or dropped");
        dropped += page.dropped;
        chunks.extend(page.chunks);
        if page.next == from {
            return (chunks, dropped, from);
        }
        from = page.next;
    }
    panic!("it never ends");
}

proptest! {
    /// Goal: a reader that comes along now and then sees what is there, in order, and knows how much it has missed.
    #[test]
    fn what_is_read_is_what_was_written_less_what_is_told_to_be_dropped(
        writes in writes(),
        log_bytes in LEAST_LOG_BYTES..4 * LEAST_LOG_BYTES,
        most in 1..20_000_usize,
    ) {
        let mut writer = Writer::new(log_bytes);
        let (mut read, mut dropped, mut from) = (Vec::new(), 0, 0);
        for (number, (stream, length, lost, look)) in writes.into_iter().enumerate() {
            writer.write(stream, &vec![number as u8; length], lost);
            if look {
                let (chunks, missed, next) = read_all(&writer.files, from, most);
                read.extend(chunks);
                dropped += missed;
                from = next;
            }
        }
        let (chunks, missed, next) = read_all(&writer.files, from, most);
        read.extend(chunks);
        dropped += missed;
        // In order and none twice; the last that was written is the last that is read.
        let mut written = writer.chunks.iter().map(|(_, chunk)| chunk);
        for chunk in &read {
            prop_assert!(written.any(|other| other == chunk));
        }
        prop_assert_eq!(read.last(), writer.chunks.last().map(|(_, chunk)| chunk));
        let sizes: u64 = read.iter().map(|chunk| (CHUNK_HEADER + chunk.bytes.len()) as u64).sum();
        prop_assert_eq!(sizes + dropped, next);
        for file in &writer.files {
            prop_assert!(rustix::fs::fstat(file).unwrap().st_size as u64 <= log_bytes / 2);
        }
    }

    /// Goal: damage costs what is damaged. Method: flip a byte, and cut the files anywhere.
    #[test]
    fn what_is_not_damaged_is_still_read(writes in writes(), at in any::<usize>(), cut in any::<bool>()) {
        let mut writer = Writer::new(1 << 20);
        for (stream, length, ..) in writes {
            writer.write(stream, &vec![b's'; length], false);
        }
        let size = rustix::fs::fstat(&writer.files[0]).unwrap().st_size as usize;
        let at = SLOT_HEADER + at % (size - SLOT_HEADER);
        if cut {
            rustix::fs::ftruncate(&writer.files[0], at as u64).unwrap();
        } else {
            let mut byte = [0];
            rustix::io::pread(&writer.files[0], &mut byte[..], at as u64).unwrap();
            rustix::io::pwrite(&writer.files[0], &[byte[0] ^ 0x40], at as u64).unwrap();
        }
        let position = (at - SLOT_HEADER) as u64;
        let is_hit = |start: u64, chunk: &LogChunk| {
            let end = start + (CHUNK_HEADER + chunk.bytes.len()) as u64;
            if cut { end > position } else { (start..end).contains(&position) }
        };
        let sound: Vec<_> =
            writer.chunks.iter().filter(|(start, chunk)| !is_hit(*start, chunk)).map(|(_, chunk)| chunk.clone()).collect();
        let (read, ..) = read_all(&writer.files, 0, 1 << 20);
        prop_assert_eq!(read, sound);
    }

    /// Goal: no file makes the reader panic, or keep on for ever.
    #[test]
    fn any_content_is_read_to_an_end(
        contents in proptest::array::uniform2(proptest::collection::vec(any::<u8>(), 0..3_000)),
        firsts in proptest::array::uniform2(prop_oneof![0..5_000_u64, any::<u64>()]),
        slot_bytes in prop_oneof![LEAST_LOG_BYTES / 2..LEAST_LOG_BYTES, Just(MOST_LOG_BYTES / 2), any::<u64>()],
        headers in any::<[bool; 2]>(),
        from in prop_oneof![0..10_000_u64, any::<u64>()],
        most in any::<usize>(),
    ) {
        let files = [file(), file()];
        for ((file, content), (first, has_header)) in files.iter().zip(&contents).zip(firsts.iter().zip(headers)) {
            rustix::io::pwrite(file, content, 0).unwrap();
            if has_header {
                rustix::io::pwrite(file, &slot_header(slot_bytes, *first).encode(), 0).unwrap();
            }
        }
        let first = page(&files, LIFE, from, most).unwrap();
        prop_assert!(first.chunks.len() <= 6_000);
        read_all(&files, first.next, most);
    }
}

#[test]
fn a_hole_is_passed_and_a_torn_end_waited_for() {
    let mut writer = Writer::new(64 << 20);
    writer.write(1, b"before", false);
    for _ in 0..5_000 {
        writer.write(1, &[0; CHUNK_BYTES], true);
    }
    let (read, dropped, next) = read_all(&writer.files, 0, 1 << 20);
    assert_eq!((read.len(), dropped), (1, 0), "nothing has come after it yet");
    writer.write(2, b"after", false);
    let (read, dropped, end) = read_all(&writer.files, next, 1 << 20);
    assert_eq!((read[0].bytes.as_slice(), dropped), (b"after".as_slice(), 5_000 * 4_096));
    assert_eq!(end, writer.end);
    // Half a chunk is not there yet.
    writer.write(1, b"whole in the end", false);
    let size = rustix::fs::fstat(&writer.files[0]).unwrap().st_size as u64;
    rustix::fs::ftruncate(&writer.files[0], size - 3).unwrap();
    assert_eq!(read_all(&writer.files, end, 1 << 20), (vec![], 0, end));
    rustix::io::pwrite(&writer.files[0], b"end", size - 3).unwrap();
    assert_eq!(read_all(&writer.files, end, 1 << 20).0[0].bytes, b"whole in the end");
}

#[test]
fn another_lifes_log_is_not_read() {
    let writer = Writer::new(1 << 20);
    assert_eq!(page(&writer.files, LIFE + 1, 5, 100).unwrap(), LogPage { next: 5, ..LogPage::default() });
    assert_eq!(page(&[], LIFE, 5, 100).unwrap(), LogPage { next: 5, ..LogPage::default() });
    // A position that has not been yet is the end.
    assert_eq!(page(&writer.files, LIFE, u64::MAX, 100).unwrap(), LogPage::default());
}
