//! Ends sandboxes: one, all, and all for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::actor::waiters::Joined;
use crate::actor::{Call, Cell, Reply, Upward};
use crate::controller::Controller;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::Command;

use super::{Keeper, millis};

/// What an error of a Shutdown says was tried.
pub(super) const SHUT_DOWN: &str = "shut down";

impl Keeper {
    /// Shuts every sandbox down, all at once, each with `grace` or its spec's own; gives what would not go.
    pub async fn shutdown_all(&self, grace: Option<Duration>) -> Vec<(SandboxKey, Error)> {
        let shut_down = |cell: Arc<Cell>| {
            let (keeper, key) = (self.clone(), cell.key);
            (key, tokio::spawn(async move { keeper.shutdown(&key, grace).await }))
        };
        let calls: Vec<_> = self.inner.index.cells().map(shut_down).collect();
        let mut left = Vec::new();
        for (key, call) in calls {
            match call.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => left.push((key, error)),
                Err(panic) => {
                    let error = Error::new(ErrorKind::Internal, SHUT_DOWN, "the call itself failed");
                    left.push((key, error.on(&key).caused_by(panic)));
                }
            }
        }
        left
    }

    /// Closes the keeper: nothing is defined or started any more, and every sandbox is shut down as by
    /// [`shutdown_all`](Self::shutdown_all). Returns when none is left; gives what would not go.
    ///
    /// Waits and watches end with what they wait for. A second call does the same.
    pub async fn close(&self, grace: Option<Duration>) -> Vec<(SandboxKey, Error)> {
        self.inner.services.close();
        loop {
            let left = self.shutdown_all(grace).await;
            // What was on its way to the registry before the door was shut may have come in after the look.
            if self.is_empty() || !left.is_empty() {
                return left;
            }
        }
    }

    /// Shuts a sandbox down. Returns when it is gone.
    pub(super) async fn shut_down(
        &self,
        cell: Arc<Cell>,
        grace: Duration,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), Error> {
        let (key, services) = (cell.key, &self.inner.services);
        let (reply, answer) = Reply::new();
        // A flag that callers join: however many ask, one message is sent, and it needs no room in the mailbox.
        match cell.waiters(|waiters| waiters.join_shutdown(reply, millis(grace), services.bounds.waiters)) {
            Joined::Gone => return Ok(()),
            Joined::Later => {}
            Joined::First => {
                let (reply, _joined) = Reply::new();
                let command = Command::Shutdown { grace_millis: millis(grace) };
                let call = Call::new(key, command, deadline, reply);
                services.registry.send(Upward::Call(Box::new(call)));
            }
        }
        drop(cell);
        self.answer(&key, SHUT_DOWN, deadline, limit, answer).await?;
        Ok(())
    }
}
