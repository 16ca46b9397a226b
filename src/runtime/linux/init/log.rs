//! Keeps what the main process writes: its init reads it from pipes and writes it into two files, which the host has opened.
//!
//! Nothing is held back, so that nothing is lost when this process is killed but what is still in the pipes. A file that
//! cannot be written to costs output, never the main process its progress: what was read is dropped, and leaves a gap.

use crate::leader::{self, LOG_SLOTS};
use crate::log_format::{CHUNK_BYTES, CHUNK_HEADER, ChunkHeader, SLOT_HEADER, SlotHeader};
use crate::protocol::{Decoded, Step, flag};
use crate::sys::{self, Fd};
use crate::waiting::{self, Poll};
use crate::{At, Failure};

/// After the main process's end, at most so much is read: more than fits into both pipes. Whatever else still holds them may
/// go on writing for ever.
const MOST_DRAINED: usize = 2 * 1024 * 1024;

/// Room for one chunk. A page that only an init with a log touches.
#[repr(align(4096))]
struct Room([u8; CHUNK_HEADER + CHUNK_BYTES]);
static mut ROOM: Room = Room([0; CHUNK_HEADER + CHUNK_BYTES]);

/// A log that is being written.
pub(crate) struct Log {
    header: SlotHeader,
    /// Which slot is being written, and whether its header still has to be.
    current: usize,
    header_pending: bool,
    /// Where the log ends: the position of the next chunk.
    end: u64,
    signals: Fd,
    /// Where standard output and error are read; -1 for none.
    sources: [Fd; 2],
    /// The other ends, until the main process has them.
    write_ends: [Fd; 2],
}

impl Log {
    /// Makes the pipes, and puts their ends where the main process inherits them.
    pub(crate) fn open(plan: &Decoded<'_>) -> Result<Self, Failure> {
        let mut bytes = [0; SLOT_HEADER];
        read_from(LOG_SLOTS[0], &mut bytes, 0).at(Step::LogPipes)?;
        let header = SlotHeader::decode(&bytes).ok_or((Step::LogPipes, sys::EINVAL))?;
        let signals = waiting::signal_fd(u64::MAX).at(Step::LogPipes)?;
        let mut this = Self {
            header,
            current: 0,
            header_pending: false,
            end: header.first,
            signals,
            sources: [-1; 2],
            write_ends: [-1; 2],
        };
        for (number, given) in [flag::STDOUT, flag::STDERR].into_iter().enumerate() {
            if plan.has(given) {
                continue;
            }
            let [read, write] = sys::pipe().at(Step::LogPipes)?;
            // Whoever runs there may open them again, through /dev/stdout.
            let owner = [write as usize, plan.fixed.uid as usize, plan.fixed.gid as usize, 0, 0];
            sys::plain(sys::FCHOWN, owner).at(Step::LogPipes)?;
            // Nor can anybody who reads from it as well keep this process waiting.
            do_not_block(read).at(Step::LogPipes)?;
            sys::duplicate(write, number as Fd + 1, 0).at(Step::LogPipes)?;
            this.sources[number] = read;
            this.write_ends[number] = write;
        }
        Ok(this)
    }

    /// So that a pipe ends when nobody in the sandbox holds it any more.
    pub(crate) fn close_write_ends(&mut self) {
        for fd in &mut self.write_ends {
            if *fd >= 0 {
                sys::close(*fd);
            }
            *fd = -1;
        }
    }

    /// The init of a sandbox with a log: reaps, passes signals on, writes, and ends with the main process.
    pub(crate) fn serve(mut self, main: Option<u32>) -> ! {
        loop {
            let [out, err] = self.sources;
            let mut polled = [Poll::input(self.signals), Poll::input(out), Poll::input(err)];
            if waiting::poll(&mut polled).is_err() {
                continue;
            }
            while let Some(signal) = waiting::next_signal(self.signals) {
                if let Some(status) = leader::heed(signal, main) {
                    self.drain();
                    leader::end_as(status);
                }
            }
            for (number, poll) in polled[1..].iter().enumerate() {
                if poll.is_ready() {
                    self.copy(number);
                }
            }
        }
    }

    /// Takes what is in the pipes, without waiting for anybody who still holds them.
    fn drain(&mut self) {
        let mut drained = 0;
        loop {
            let copied = self.copy(0) + self.copy(1);
            drained += copied;
            if copied == 0 || drained > MOST_DRAINED {
                return;
            }
        }
    }

    /// Copies what there is, up to a chunk. How much that was.
    fn copy(&mut self, number: usize) -> usize {
        let source = self.sources[number];
        if source < 0 {
            return 0;
        }
        // SAFETY: there is one thread, and this is the only reference there is at a time.
        let room = unsafe { &mut (*(&raw mut ROOM)).0 };
        match sys::read(source, &mut room[CHUNK_HEADER..]) {
            Ok(0) => {
                sys::close(source);
                self.sources[number] = -1;
                0
            }
            Ok(length) => {
                self.append(number as u32 + 1, room, length);
                length
            }
            Err(_) => 0,
        }
    }

    fn append(&mut self, stream: u32, room: &mut [u8; CHUNK_HEADER + CHUNK_BYTES], length: usize) {
        let size = (CHUNK_HEADER + length) as u64;
        if SLOT_HEADER as u64 + (self.end - self.header.first) + size > self.header.slot_bytes {
            self.turn();
        }
        let header =
            ChunkHeader { stream, length: length as u32, position: self.end, at_unix_nanos: unix_nanos() };
        let (front, content) = room.split_at_mut(CHUNK_HEADER);
        front.copy_from_slice(&header.encode(&content[..length]));
        if self.header_pending {
            let written = write_to(LOG_SLOTS[self.current], &self.header.encode(), 0);
            self.header_pending = written != Ok(SLOT_HEADER);
        }
        if !self.header_pending {
            let offset = SLOT_HEADER as u64 + (self.end - self.header.first);
            // What does not go in is a gap, whose end the next chunk tells.
            let _ = write_to(LOG_SLOTS[self.current], &room[..CHUNK_HEADER + length], offset);
        }
        self.end += size;
    }

    /// Goes on in the other slot, whose content is dropped.
    fn turn(&mut self) {
        self.current ^= 1;
        self.header.first = self.end;
        self.header_pending = true;
        // If it fails, what is left there has positions that no longer belong to the slot, and is not taken for its content.
        let _ = sys::plain(sys::FTRUNCATE, [LOG_SLOTS[self.current] as usize, 0, 0, 0, 0]);
    }
}

/// Makes reading from this open file return at once.
fn do_not_block(fd: Fd) -> sys::Outcome {
    const SET_FLAGS: usize = 4;
    sys::plain(sys::FCNTL, [fd as usize, SET_FLAGS, sys::O_NONBLOCK, 0, 0])
}

fn read_from(fd: Fd, bytes: &mut [u8], offset: u64) -> sys::Outcome {
    // SAFETY: the bytes are writable and borrowed for the call.
    unsafe {
        sys::call(sys::PREAD64, [fd as usize, bytes.as_mut_ptr() as usize, bytes.len(), offset as usize, 0])
    }
}

fn write_to(fd: Fd, bytes: &[u8], offset: u64) -> sys::Outcome {
    // SAFETY: the bytes are readable.
    unsafe {
        sys::call(sys::PWRITE64, [fd as usize, bytes.as_ptr() as usize, bytes.len(), offset as usize, 0])
    }
}

/// The time of day, in nanoseconds since the Unix epoch.
fn unix_nanos() -> i64 {
    let mut time = [0_i64; 2];
    // SAFETY: a timespec to write. It cannot fail with clock 0.
    let _ = unsafe { sys::call(sys::CLOCK_GETTIME, [0, time.as_mut_ptr() as usize, 0, 0, 0]) };
    time[0].saturating_mul(1_000_000_000).saturating_add(time[1])
}
