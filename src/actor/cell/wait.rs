//! Waits for the end of a life.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Cell;
use crate::actor::message;
use crate::error::{Error, ErrorKind};
use crate::model::{Exit, Life};

/// What a wait comes to.
pub(crate) enum Wait {
    Ended(Exit),
    Pending(PendingWait),
}

/// A place among those who wait for the end of a life. Given up when dropped.
pub(crate) struct PendingWait {
    cell: Arc<Cell>,
    life: Life,
    number: usize,
    hears: Option<oneshot::Receiver<Exit>>,
}

impl PendingWait {
    pub(crate) async fn told(mut self) -> Result<Exit, Error> {
        let hears = self.hears.as_mut().expect("taken only when dropped");
        hears.await.map_err(|_closed| {
            let found = "its owner failed too often, or its keeper was closed";
            Error::new(ErrorKind::Unavailable, "wait for", found).on(&self.cell.key).remedy("shut it down")
        })
    }
}

impl Drop for PendingWait {
    fn drop(&mut self) {
        drop(self.hears.take());
        self.cell.waiters(|waiters| waiters.withdraw_exit(self.life, self.number));
    }
}

impl Cell {
    /// How the current life ended, or a place among those who wait for that.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] if there has been no life; [`ErrorKind::ResourceExhausted`] if too many wait.
    pub(crate) fn wait(self: &Arc<Self>) -> Result<Wait, Error> {
        // Under the lock: an end is told either before, and then it is in the facts, or after, and then to us.
        let mut waiters = self.waiters.lock();
        let (pulse, facts) = self.snapshot();
        let life = pulse.life();
        if let Some((_, exit)) = facts.exit.filter(|(of, _)| *of == life) {
            return Ok(Wait::Ended(exit));
        }
        if life == Life(0) {
            return Err(Error::new(ErrorKind::FailedPrecondition, "wait for", "it was never started")
                .on(&self.key)
                .remedy("start it first"));
        }
        match waiters.await_exit(life, self.services.bounds.waiters) {
            Some((number, hears)) => {
                Ok(Wait::Pending(PendingWait { cell: Arc::clone(self), life, number, hears: Some(hears) }))
            }
            None => Err(message::too_many_waiters().on(&self.key)),
        }
    }
}
