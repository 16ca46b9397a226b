//! Handles: a ping without a look-up.

use std::fmt;
use std::sync::Arc;

use crate::actor::Cell;
use crate::actor::pulse::Reader;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::Phase;
use crate::model::{Marks, Pong};
use crate::registry::not_found;

/// One sandbox, found once. It stays that sandbox: after a Shutdown it answers `NotFound`, even if the ID is used again.
#[derive(Clone)]
pub struct SandboxHandle {
    pulse: Reader<Cell>,
    /// Keeps the slot from being anybody else's.
    cell: Arc<Cell>,
}

impl SandboxHandle {
    pub(super) fn new(cell: Arc<Cell>) -> Self {
        Self { pulse: cell.lease().reader(), cell }
    }

    /// Whose handle it is.
    pub fn key(&self) -> &SandboxKey {
        &self.cell.key
    }

    /// As [`Controller::ping`](crate::Controller::ping), by one atomic load.
    ///
    /// # Errors
    /// Those of [`Controller::ping`](crate::Controller::ping).
    #[inline]
    pub fn ping(&self) -> Result<Pong, Error> {
        let pong = self.pulse.read();
        if pong.is_alive() { Ok(pong) } else { Err(not_alive(&self.cell.key, Some(pong))) }
    }

    /// What was last published, alive or not.
    #[inline]
    pub fn pulse(&self) -> Pong {
        self.pulse.read()
    }
}

impl fmt::Debug for SandboxHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.cell.key, self.pulse())
    }
}

/// Why a ping fails.
#[cold]
pub(super) fn not_alive(key: &SandboxKey, pong: Option<Pong>) -> Error {
    let Some(pong) = pong.filter(|pong| pong.phase() != Phase::Gone) else {
        return not_found(key, "ping");
    };
    if pong.phase().is_alive() && !pong.marks().contains(Marks::EXITED) {
        return Error::new(ErrorKind::Unavailable, "ping", "it does not answer").on(key);
    }
    let found = if pong.marks().contains(Marks::EXITED) {
        "its instance has ended"
    } else {
        pong.phase().not_running()
    };
    Error::new(ErrorKind::FailedPrecondition, "ping", found).on(key).remedy("start it first")
}
