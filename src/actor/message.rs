//! Everything that is said to a sandbox's actor, and how it answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::journal::SandboxRecord;
use crate::model::{Command, Found, Life, OpId};
use crate::runtime::{Runtime, Started};
use crate::spec::SandboxSpec;

use super::InFlight;
use super::cell::MailboxPermit;

/// One message to an actor. Small: it travels in a box, but the box is made for each.
pub(crate) enum Message {
    /// A caller asks.
    Call(Box<Call>),
    /// An operation came to its end.
    Ended(Box<Ended>),
    /// The end of a life lies in the cell.
    Exited,
    /// The armed moment has come.
    Due,
    /// This actor replaces one that was lost.
    Replaces(Lost),
    /// There has been nothing to do for a while: end, until the next call or exit needs an actor again.
    Dismissed,
    /// Fail as a fault in the actor itself would.
    #[cfg(feature = "testing")]
    Panic,
}

/// When an actor's predecessor was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Just now: whoever waits, waits for what it was doing.
    JustNow,
    /// Before the quarantine that a Shutdown ends: whoever waits, waits for that Shutdown.
    LongAgo,
    /// With the keeper that it was an actor of: this one goes on from what was written down.
    WithItsKeeper,
}

/// A caller's command, on its way.
pub(crate) struct Call {
    pub(crate) key: SandboxKey,
    pub(crate) command: Command,
    /// What the sandbox is to be, if the call says so.
    pub(crate) definition: Option<Definition>,
    /// When nobody waits for it any more. An expired call is dropped unexecuted.
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
    /// Room in the mailbox; a Shutdown needs none.
    pub(crate) permit: Option<MailboxPermit>,
    /// Its place among the calls on their way.
    pub(crate) in_flight: Option<InFlight>,
    /// Drop it unless this holds: the keeper's own, and about the past.
    pub(crate) only_if: Option<OnlyIf>,
}

impl Call {
    /// A command by itself; what else goes with it is added by who sends it.
    pub(crate) fn new(key: SandboxKey, command: Command, deadline: Instant, reply: Reply) -> Self {
        Self { key, command, deadline, reply, definition: None, permit: None, in_flight: None, only_if: None }
    }
}

/// What has to hold when the turn of a call comes. Nothing may be under way then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnlyIf {
    /// This life is stopped.
    Stopped(Life),
    /// Nothing has come of it, and of its definition nothing was written.
    Unwritten,
}

/// What a sandbox is to be, checked.
#[derive(Clone)]
pub(crate) struct Definition {
    pub(crate) spec: Arc<SandboxSpec>,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Whether it stays if a start of it fails.
    pub(crate) kept: bool,
}

/// A sandbox that an earlier keeper has left, to be gone on with.
pub(crate) struct Restored {
    pub(crate) key: SandboxKey,
    pub(crate) state: SandboxRecord,
    pub(crate) definition: Definition,
    /// Whether the journal has its record.
    pub(crate) written: bool,
}

/// What an operation came to.
pub(crate) struct Ended {
    pub(crate) op: OpId,
    pub(crate) result: Result<Done, Error>,
    /// A start permit that the next operation of the same start may use.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// What a successful operation has to tell.
pub(crate) enum Done {
    Nothing,
    Started(Started),
    Found(Found, Option<Started>),
}

/// What a caller whose command was carried out is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    pub(crate) life: Life,
    pub(crate) started: Option<Arc<Started>>,
}

/// Where an answer goes.
pub(crate) struct Reply(oneshot::Sender<Result<Settled, Error>>);

impl Reply {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<Settled, Error>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    pub(crate) fn send(self, result: Result<Settled, Error>) {
        // A caller that gave up changes nothing but its own wait.
        let _ = self.0.send(result);
    }

    pub(crate) fn fail(self, error: Error) {
        self.send(Err(error));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A bound is reached that others will make room under in a moment.
pub(crate) fn full(verb: &'static str, found: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::ResourceExhausted, verb, found)
        .remedy("try again in a moment")
        .retry_after(Duration::from_millis(100))
}

pub(crate) fn too_many_waiters() -> Error {
    full("wait for", "too many callers wait for it already")
}
