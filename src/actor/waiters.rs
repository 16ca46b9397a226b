//! Callers who wait, kept beside the actor: ten thousand of them fill no mailbox.

use std::time::Duration;

use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Error;
use crate::model::{Exit, Life, OpId};

use super::message::{Reply, Settled};

/// A Shutdown that was sent this long ago is sent again by whoever joins it: it may have been lost with a registry.
const SEND_AGAIN: Duration = Duration::from_secs(1);

/// Everybody who waits for something of one sandbox.
#[derive(Default)]
pub(crate) struct Waiters {
    /// For an operation's end, by its number.
    parked: Vec<(OpId, Reply)>,
    /// For the end of a life.
    exits: Slab<(Life, oneshot::Sender<Exit>)>,
    /// For the sandbox to be gone.
    shutdowns: Vec<Reply>,
    /// Whether a Shutdown has been sent: with which grace, and when.
    shutdown_sent: Option<(u64, Instant)>,
    /// Whether the sandbox is gone, and nobody will be told anything here any more.
    closed: bool,
}

/// What somebody who wants to wait for a Shutdown does.
pub(crate) enum Joined {
    /// It is gone already.
    Gone,
    /// Send the Shutdown, and wait.
    First,
    /// Wait.
    Later,
}

impl Waiters {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.parked.len() + self.exits.len() + self.shutdowns.len()
    }

    fn has_room(&mut self, bound: usize) -> bool {
        if self.len() >= bound {
            self.parked.retain(|(_, reply)| !reply.is_closed());
            self.shutdowns.retain(|reply| !reply.is_closed());
        }
        self.len() < bound
    }

    /// Parks a caller until `op` is settled; gives the reply back if there is no room.
    pub(crate) fn park(&mut self, op: OpId, reply: Reply, bound: usize) -> Result<(), Reply> {
        if !self.has_room(bound) {
            return Err(reply);
        }
        self.parked.push((op, reply));
        Ok(())
    }

    /// Takes everybody who is parked under `op`.
    pub(crate) fn take(&mut self, op: OpId) -> Vec<Reply> {
        let (taken, kept) = std::mem::take(&mut self.parked).into_iter().partition(|(under, _)| *under == op);
        self.parked = kept;
        let taken: Vec<(OpId, Reply)> = taken;
        taken.into_iter().map(|(_, reply)| reply).collect()
    }

    /// Whether nobody is parked.
    pub(crate) fn is_idle(&self) -> bool {
        self.parked.is_empty()
    }

    /// Waits for the end of a life; the number takes it back. Nothing if there is no room.
    pub(crate) fn await_exit(
        &mut self,
        life: Life,
        bound: usize,
    ) -> Option<(usize, oneshot::Receiver<Exit>)> {
        if !self.has_room(bound) {
            return None;
        }
        let (told, hears) = oneshot::channel();
        Some((self.exits.insert((life, told)), hears))
    }

    /// Takes a wait back, if it is still that of `life`.
    pub(crate) fn withdraw_exit(&mut self, life: Life, number: usize) {
        if self.exits.get(number).is_some_and(|(of, told)| *of == life && told.is_closed()) {
            self.exits.remove(number);
        }
    }

    /// Tells everybody who waits for the end of this life.
    pub(crate) fn tell_exit(&mut self, life: Life, exit: Exit) {
        let numbers: Vec<usize> =
            self.exits.iter().filter(|(_, (of, _))| *of == life).map(|(at, _)| at).collect();
        for number in numbers {
            let (_, told) = self.exits.remove(number);
            // Whoever gave up waiting does not need to hear it.
            let _ = told.send(exit);
        }
        self.exits.shrink_to_fit();
    }

    /// Nobody will tell of an end any more: those who wait hear that.
    pub(crate) fn abandon_exits(&mut self) {
        self.exits.clear();
    }

    /// Joins a Shutdown. Without room the reply is dropped, and its caller hears that.
    pub(crate) fn join_shutdown(&mut self, reply: Reply, grace_millis: u64, bound: usize) -> Joined {
        if self.closed {
            return Joined::Gone;
        }
        if self.has_room(bound) {
            self.shutdowns.push(reply);
        } else {
            reply.fail(super::message::too_many_waiters());
        }
        match self.shutdown_sent {
            Some((sent, at)) if sent <= grace_millis && at.elapsed() < SEND_AGAIN => Joined::Later,
            sent => {
                let shortest = sent.map_or(grace_millis, |(sent, _)| sent.min(grace_millis));
                self.shutdown_sent = Some((shortest, Instant::now()));
                Joined::First
            }
        }
    }

    /// The grace of the Shutdown that has been sent, if one has.
    pub(crate) fn shutdown_grace_millis(&self) -> Option<u64> {
        self.shutdown_sent.map(|(grace_millis, _)| grace_millis)
    }

    /// Answers everybody who joined the Shutdown. The next one begins anew.
    pub(crate) fn settle_shutdown(&mut self, result: &Result<Settled, Error>) {
        self.shutdown_sent = None;
        for reply in std::mem::take(&mut self.shutdowns) {
            reply.send(result.clone());
        }
    }

    /// The sandbox is gone, and the index knows it.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.abandon_exits();
        self.settle_shutdown(&Ok(Settled::default()));
    }

    /// Fails everybody who waits for something to be done, for an owner that was lost with it in its hands.
    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, reply) in std::mem::take(&mut self.parked) {
            reply.fail(error.clone());
        }
        self.settle_shutdown(&Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExitReason;

    #[test]
    fn whoever_stops_waiting_leaves_nothing_behind() {
        let mut waiters = Waiters::default();
        let (number, hears) = waiters.await_exit(Life(1), 2).unwrap();
        drop(hears);
        waiters.withdraw_exit(Life(1), number);
        assert_eq!(waiters.len(), 0);
        assert!(waiters.await_exit(Life(1), 2).is_some());
        assert!(waiters.await_exit(Life(1), 2).is_some());
        assert!(waiters.await_exit(Life(1), 2).is_none(), "the bound holds");
    }

    #[test]
    fn only_those_who_wait_for_this_life_are_told() {
        let mut waiters = Waiters::default();
        let (_, mut first) = waiters.await_exit(Life(1), 9).unwrap();
        let (_, mut second) = waiters.await_exit(Life(2), 9).unwrap();
        let exit = Exit { reason: ExitReason::Exited(7), at_unix_nanos: 1 };
        waiters.tell_exit(Life(1), exit);
        assert_eq!(first.try_recv(), Ok(exit));
        assert!(second.try_recv().is_err());
    }
}
