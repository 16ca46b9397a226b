//! The door: what a request names and how long it may take, and how errors go out and come back.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Response, Status};

use super::{Parts, RETRY_AFTER};
use crate::error::{Error, ErrorKind};
use crate::id::{Namespace, SandboxId, SandboxKey};
use crate::keeper::Keeper;
use crate::spec::SandboxSpec;
use crate::wire::generated as wire;

/// A message goes out in a header, percent-encoded: this much of it always fits.
const MESSAGE_BYTES: usize = 4_096;

/// A caller's clock begins to run before ours: the answer is to be there before it gives up.
const EARLIER: Duration = Duration::from_millis(50);

/// Hears that the daemon ends.
#[derive(Clone)]
pub(super) struct Ending(pub(super) watch::Receiver<bool>);

impl Ending {
    /// Returns when the daemon begins to end.
    pub(super) async fn begun(&mut self) {
        // Whoever would say so being gone is as good as having said so.
        let _gone_or_ending = self.0.wait_for(|ending| *ending).await;
    }
}

/// What a call is told that cannot be waited for when the daemon ends.
pub(super) fn daemon_ends(verb: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, verb, "the daemon is ending; its sandboxes go on")
        .remedy("ask again when it is back")
}

/// One call.
pub(super) struct Call {
    /// What is asked of it, as a verb in the infinitive.
    pub(super) verb: &'static str,
    /// How long it may take, if its caller says.
    pub(super) limit: Option<Duration>,
    deadline: Option<Instant>,
}

impl Call {
    pub(super) fn new(verb: &'static str, metadata: &MetadataMap) -> Result<Self, Error> {
        let limit = match metadata.get("grpc-timeout") {
            None => None,
            Some(text) => {
                let limit = text.to_str().ok().and_then(timeout).ok_or_else(|| {
                    let found =
                        format!("its grpc-timeout is {text:?}; at most 8 digits and a unit are needed");
                    Error::new(ErrorKind::InvalidArgument, verb, found)
                })?;
                Some(limit - EARLIER.min(limit / 10))
            }
        };
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Self { verb, limit, deadline })
    }

    /// The keeper, with this call's deadline.
    pub(super) fn keeper(&self, keeper: &Keeper) -> Keeper {
        self.limit.map_or_else(|| keeper.clone(), |limit| keeper.within(limit))
    }

    fn refuse(&self, found: String) -> Error {
        Error::new(ErrorKind::InvalidArgument, self.verb, found)
    }

    /// The sandbox that a request names.
    pub(super) fn key(&self, name: Option<wire::SandboxName>) -> Result<SandboxKey, Error> {
        let name = name.ok_or_else(|| self.refuse("the request names no sandbox".to_owned()))?;
        let id = SandboxId::new(&name.id)
            .map_err(|error| self.refuse(format!("the sandbox ID is invalid: {error}")))?;
        Ok(SandboxKey::from_parts(self.namespace(&name.namespace)?, id))
    }

    pub(super) fn namespace(&self, name: &str) -> Result<Namespace, Error> {
        Namespace::new(name).map_err(|error| self.refuse(format!("the namespace is invalid: {error}")))
    }

    /// The spec that a request must bring.
    pub(super) fn spec(
        &self,
        key: &SandboxKey,
        spec: Option<wire::SandboxSpec>,
    ) -> Result<SandboxSpec, Error> {
        let spec = spec.ok_or_else(|| self.refuse("the request has no spec".to_owned()).on(key))?;
        spec.try_into().map_err(|error| self.refuse(format!("its spec is malformed: {error}")).on(key))
    }

    /// A grace that a request may bring.
    pub(super) fn grace(
        &self,
        key: &SandboxKey,
        grace: Option<prost_types::Duration>,
    ) -> Result<Option<Duration>, Error> {
        let grace = grace.map(|grace| crate::wire::positive_duration(&grace, "its grace")).transpose();
        grace.map_err(|error| self.refuse(error.to_string()).on(key))
    }

    fn too_late(&self) -> Error {
        let limit = self.limit.unwrap_or_default();
        Error::new(ErrorKind::DeadlineExceeded, self.verb, format!("not done within {limit:?}"))
    }

    /// Returns why a call ends before it is done: its deadline, or the daemon's end.
    pub(super) async fn cut_short(&self, mut ending: Ending) -> Error {
        let passed = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ending.begun() => daemon_ends(self.verb),
            () = passed => self.too_late(),
        }
    }

    /// These parts, until the deadline or the daemon's end.
    pub(super) fn parts<T: Send + 'static>(
        self,
        ending: Ending,
        parts: impl Stream<Item = Result<T, Error>> + Send + 'static,
    ) -> Parts<T> {
        struct Open<T> {
            parts: Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>,
            cut_short: Pin<Box<dyn Future<Output = Error> + Send>>,
        }
        let cut_short = Box::pin(async move { self.cut_short(ending).await });
        let open = Open { parts: Box::pin(parts), cut_short };
        Box::pin(stream::unfold(Some(open), async |open| {
            let mut open = open?;
            let part = tokio::select! {
                biased;
                error = &mut open.cut_short => Err(error),
                part = open.parts.next() => part?,
            };
            match part {
                Ok(part) => Some((Ok(part), Some(open))),
                Err(error) => Some((Err(status(&error)), None)),
            }
        }))
    }
}

/// Reads a `grpc-timeout`: at most 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What a call comes to, as it goes out.
pub(super) fn answer<T>(result: Result<T, Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

/// An error as it goes out.
pub(super) fn status(error: &Error) -> Status {
    let code = Code::from_i32(error.kind().grpc_code());
    let mut message = error.to_string();
    if message.len() > MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.push('…');
    }
    let mut metadata = MetadataMap::new();
    if let Some(pause) = error.retry_hint() {
        let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        metadata.insert(RETRY_AFTER, MetadataValue::from(millis));
    }
    Status::with_metadata(code, message, metadata)
}

/// An error as it comes back.
pub(super) fn error(status: &Status) -> Error {
    if let Some(source) = std::error::Error::source(status) {
        let mut deepest = source;
        while let Some(deeper) = deepest.source() {
            deepest = deeper;
        }
        // It was made on this side, because the other did not answer; the transport wraps it.
        if deepest.is::<tonic::TimeoutExpired>() {
            return Error::from_remote(
                ErrorKind::DeadlineExceeded,
                "the daemon did not answer in time; what was begun goes on; ask for its status",
                None,
            );
        }
        let found = format!("the connection to the daemon was lost: {deepest}; is it still running?");
        return Error::from_remote(ErrorKind::Unavailable, found, None);
    }
    let kind = ErrorKind::from_grpc_code(status.code() as i32).unwrap_or(match status.code() {
        Code::OutOfRange => ErrorKind::InvalidArgument,
        Code::Unauthenticated => ErrorKind::PermissionDenied,
        _ => ErrorKind::Internal,
    });
    let retry_after =
        status.metadata().get(RETRY_AFTER).and_then(|millis| millis.to_str().ok()?.parse().ok());
    Error::from_remote(kind, status.message(), retry_after.map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "5", "-1S", "+1S", "1s", "123456789S", "1é", "é"] {
            assert_eq!(timeout(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn an_error_comes_back_as_it_went_out() {
        let key = SandboxKey::new("default", "web-7").unwrap();
        let there = Error::new(ErrorKind::ResourceExhausted, "start", "its mailbox is full ✂")
            .on(&key)
            .remedy("try again")
            .retry_after(Duration::from_millis(70));
        let back = error(&status(&there));
        assert_eq!(back.to_string(), there.to_string());
        assert_eq!(back.kind(), there.kind());
        assert_eq!(back.retry_hint(), there.retry_hint());
        let long = Error::new(ErrorKind::InvalidArgument, "start", "é".repeat(100_000));
        assert!(status(&long).message().len() <= MESSAGE_BYTES + 3);
    }
}
