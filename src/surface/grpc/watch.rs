//! A watch, told as its reader takes it.

use std::iter::Peekable;
use std::vec;

use futures_util::stream::{self, Stream};
use tokio::sync::OwnedSemaphorePermit;

use super::list::take_part;
use crate::error::Error;
use crate::keeper::{Keeper, Watch, WatchItem};
use crate::wire::SandboxStatus;
use crate::wire::generated as wire;
use crate::wire::generated::watch_response::Item;

/// How many sandboxes a message of a snapshot has at most.
const SNAPSHOT_PART: usize = 1_000;
/// How large it is at most.
const SNAPSHOT_PART_BYTES: usize = 1_024 * 1_024;

struct Telling {
    watch: Watch,
    epoch: u64,
    /// What is still to be told of a snapshot, and where its events begin.
    snapshot: Option<(u64, Peekable<vec::IntoIter<SandboxStatus>>)>,
    _one_of_the_watches: OwnedSemaphorePermit,
}

impl Telling {
    async fn next(&mut self) -> Option<wire::WatchResponse> {
        if self.snapshot.is_none() {
            match self.watch.next().await? {
                WatchItem::Event(event) => {
                    let event = wire::Event::of_epoch(self.epoch, &event);
                    return Some(wire::WatchResponse { item: Some(Item::Event(event)) });
                }
                WatchItem::Snapshot { next_sequence, sandboxes, .. } => {
                    self.snapshot = Some((next_sequence, sandboxes.into_iter().peekable()));
                }
            }
        }
        let (next_sequence, left) = self.snapshot.as_mut()?;
        let next_sequence = *next_sequence;
        let sandboxes = take_part(left, SNAPSHOT_PART, SNAPSHOT_PART_BYTES);
        let last = left.peek().is_none();
        if last {
            self.snapshot = None;
        }
        let snapshot = wire::Snapshot { epoch: self.epoch, next_sequence, sandboxes, last };
        Some(wire::WatchResponse { item: Some(Item::Snapshot(snapshot)) })
    }
}

/// Everything there is, and then every change; or what follows an earlier watch.
pub(super) fn watch(
    keeper: &Keeper,
    request: wire::WatchRequest,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<wire::WatchResponse, Error>> + Send + 'static {
    let telling = Telling {
        watch: keeper.watch_from(request.epoch, request.next_sequence),
        epoch: keeper.epoch(),
        snapshot: None,
        _one_of_the_watches: permit,
    };
    stream::unfold(telling, async |mut telling| {
        let item = telling.next().await?;
        Some((Ok(item), telling))
    })
}
