//! A list in pages, each within the size of a message.

use prost::Message as _;

use super::PART_BYTES;
use super::door::Call;
use crate::error::{Error, ErrorKind};
use crate::keeper::{Filter, Keeper};
use crate::model::Phase;
use crate::wire::generated as wire;
use crate::wire::phase_named;

/// How many sandboxes a page has if its caller does not say.
const PAGE: usize = 1_000;
/// How many it has at most.
const LARGEST_PAGE: usize = 10_000;

/// Takes messages until they fill a part. At least one is taken, if there is one.
pub(super) fn take_part<M: prost::Message>(
    messages: &mut std::iter::Peekable<impl Iterator<Item = M>>,
    most: usize,
    most_bytes: usize,
) -> Vec<M> {
    let mut part = Vec::new();
    let mut bytes = 0;
    while part.len() < most {
        let Some(size) = messages.peek().map(M::encoded_len) else { break };
        // A tag and a length go with each.
        bytes += size + 8;
        if bytes > most_bytes && !part.is_empty() {
            break;
        }
        part.extend(messages.next());
    }
    part
}

/// What to list, and how much of it.
pub(super) fn filter(call: &Call, request: wire::ListRequest) -> Result<(Filter, usize), Error> {
    let refuse = |found| Error::new(ErrorKind::InvalidArgument, call.verb, found);
    let phase = |name: String| {
        phase_named(&name).filter(|phase| *phase != Phase::Gone).ok_or_else(|| {
            let names: Vec<_> =
                Phase::ALL.iter().take(Phase::ALL.len() - 1).map(|phase| phase.name()).collect();
            refuse(format!("there is no phase {name:?}; there are {}", names.join(", ")))
        })
    };
    let namespace = Some(request.namespace.as_str()).filter(|name| !name.is_empty());
    let after = match request.page_token.as_str() {
        "" => None,
        token => {
            Some(token.parse().map_err(|_| refuse("its page token is none that a page gave".to_owned()))?)
        }
    };
    let size = match request.page_size as usize {
        0 => PAGE,
        size => size.min(LARGEST_PAGE),
    };
    let filter = Filter {
        namespace: namespace.map(|name| call.namespace(name)).transpose()?,
        phases: request.phases.into_iter().map(phase).collect::<Result<_, _>>()?,
        labels: request.labels,
        after,
        // One more says whether there is another page.
        limit: Some(size + 1),
    };
    Ok((filter, size))
}

/// A page.
pub(super) fn page(keeper: &Keeper, filter: &Filter, size: usize) -> wire::ListResponse {
    let mut all = keeper.list(filter).into_iter().peekable();
    let sandboxes = take_part(&mut all, size, PART_BYTES);
    let last = sandboxes.last().filter(|_| all.peek().is_some());
    let next_page_token = last.map_or_else(String::new, |last| format!("{}/{}", last.namespace, last.id));
    debug_assert!(
        sandboxes.len() <= 1 || sandboxes.iter().map(|one| one.encoded_len()).sum::<usize>() <= PART_BYTES
    );
    wire::ListResponse { sandboxes, next_page_token }
}
