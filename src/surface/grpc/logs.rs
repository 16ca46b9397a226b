//! A sandbox's log, read a page at a time.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{self, Stream};

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::keeper::Keeper;
use crate::model::{Life, Phase};
use crate::runtime::{LogChunk, LogPage, unix_nanos};
use crate::wire::generated as wire;

/// How much is read at a time.
const PAGE_BYTES: usize = 64 * 1_024;
/// How long is waited before another look at a log that has not grown: at first, and at most.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A reading of one life's log.
struct Reading {
    keeper: Keeper,
    key: SandboxKey,
    life: Life,
    from: u64,
    read: VecDeque<LogChunk>,
    /// How many lines are still to be left out.
    skip: u64,
    /// What was read from the process later is not wanted; nothing if it is.
    until: Option<i64>,
    pause: Duration,
}

impl Reading {
    /// Whether the life may still write something.
    fn goes_on(&self) -> bool {
        let Ok(handle) = self.keeper.handle(&self.key) else { return false };
        let pulse = handle.pulse();
        let over = matches!(pulse.phase(), Phase::Stopped | Phase::Deleting | Phase::Gone);
        pulse.life() == self.life && !over
    }

    async fn page(&mut self) -> Result<LogPage, Error> {
        let page = self.keeper.logs(&self.key, self.from, PAGE_BYTES).await?;
        self.from = self.from.max(page.next);
        Ok(page)
    }

    /// Goes to where the last `lines` lines begin, and reads from there.
    async fn tail(&mut self, lines: u64) -> Result<(), Error> {
        let now = unix_nanos();
        // The last pages that have so many lines: where each begins, and how many it has.
        let mut pages = VecDeque::new();
        let mut total = 0;
        let mut last_byte = b'\n';
        loop {
            let start = self.from;
            let page = self.page().await?;
            let later = page.chunks.iter().any(|chunk| chunk.at_unix_nanos > now);
            if (page.chunks.is_empty() && self.from == start) || later {
                self.from = start;
                self.read = page.chunks.into();
                break;
            }
            let bytes = page.chunks.iter().flat_map(|chunk| &chunk.bytes);
            let ends = bytes.filter(|byte| **byte == b'\n').count() as u64;
            last_byte =
                page.chunks.iter().rev().find_map(|chunk| chunk.bytes.last().copied()).unwrap_or(last_byte);
            pages.push_back((start, ends));
            total += ends;
            while let Some((_, first)) = pages.front().copied()
                && pages.len() > 1
                && total - first > lines
            {
                pages.pop_front();
                total -= first;
            }
        }
        let unfinished = u64::from(last_byte != b'\n');
        if lines == 0 {
            self.read.clear();
            return Ok(());
        }
        if let Some((start, _)) = pages.front() {
            self.from = *start;
            self.read.clear();
            self.skip = (total + unfinished).saturating_sub(lines);
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<wire::LogsResponse, Error>> {
        loop {
            while let Some(mut chunk) = self.read.pop_front() {
                if self.until.is_some_and(|until| chunk.at_unix_nanos > until) {
                    return None;
                }
                leave_out(&mut self.skip, &mut chunk.bytes);
                if !chunk.bytes.is_empty() {
                    return Some(Ok(chunk.into()));
                }
            }
            // Asked before the look: what ends after it has written nothing that the look does not find.
            let goes_on = self.goes_on();
            let start = self.from;
            match self.page().await {
                Ok(page) if page.chunks.is_empty() && self.from == start => {
                    if self.until.is_some() || !goes_on {
                        return None;
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                Ok(page) => {
                    self.pause = PAUSE;
                    self.read = page.chunks.into();
                }
                // It was removed while it was read.
                Err(error) if !goes_on && is_gone(&error) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition)
}

/// Takes away as many lines as are to be left out.
fn leave_out(skip: &mut u64, bytes: &mut Vec<u8>) {
    while *skip > 0 {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            bytes.clear();
            return;
        };
        bytes.drain(..=end);
        *skip -= 1;
    }
}

/// A sandbox's log, from the beginning of the request on.
pub(super) async fn logs(
    keeper: Keeper,
    key: SandboxKey,
    request: &wire::LogsRequest,
) -> Result<impl Stream<Item = Result<wire::LogsResponse, Error>> + Send + 'static, Error> {
    let life = keeper.handle(&key).map_or(Life(0), |handle| handle.pulse().life());
    let until = (!request.follow).then(unix_nanos);
    let mut reading =
        Reading { keeper, key, life, from: 0, read: VecDeque::new(), skip: 0, until, pause: PAUSE };
    match request.tail_lines {
        Some(lines) => reading.tail(lines).await?,
        // The first page is read at once, so that the call itself says what is wrong.
        None => reading.read = reading.page().await?.chunks.into(),
    }
    Ok(stream::unfold(reading, async |mut reading| {
        let part = reading.next().await?;
        Some((part, reading))
    }))
}
