//! What actors say to whoever routes to them, and the link they say it through.

use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::cell::Cell;
use super::message::{Call, Reply, Restored, Settled};
use crate::error::Error;
use crate::model::Life;

/// What reaches the registry.
pub(crate) enum Upward {
    /// Route this. From callers, and from an actor whose sandbox is gone.
    Call(Box<Call>),
    /// A sandbox is gone: forget it, and then give these answers.
    Gone(Arc<Cell>, Vec<(Reply, Result<Settled, Error>)>),
    /// A life of this sandbox has ended and its record is kept.
    Stopped(Arc<Cell>, Life),
    /// This sandbox's actor is lost: the one with this number.
    Lost(Arc<Cell>, u64),
    /// The end of a life lies in this cell: its actor is to look.
    Exited(Arc<Cell>),
    /// This sandbox's actor has nothing to do, and may be dismissed when that has lasted.
    Resting(Weak<Cell>),
    /// Dismiss the actors that have had nothing to do for long enough.
    Dismiss,
    /// Go on with what an earlier keeper left under way.
    Restore(Vec<Arc<Cell>>),
    /// Make a sandbox known whose record was lost, and go on with it, unless its name is taken. Say whether the name is known.
    Rebuild(Box<Restored>, oneshot::Sender<bool>),
    /// Look after everything: this registry replaces one that was lost.
    Heal,
    /// Fail as a fault in the registry itself would.
    #[cfg(feature = "testing")]
    Panic,
}

/// The way to the registry, whichever actor it is at the moment.
#[derive(Default)]
pub(crate) struct Link(RwLock<Way>);

#[derive(Default)]
struct Way {
    registry: Option<ActorRef<Upward>>,
    /// What was said after a registry was lost and before the next one came.
    pending: Vec<Upward>,
}

impl Way {
    /// Gives the message back if nobody hears it.
    fn send(&self, message: Upward) -> Result<(), Upward> {
        match &self.registry {
            Some(registry) => registry.send_message(message).map_err(|error| match error {
                ractor::MessagingErr::SendErr(message) => message,
                _ => Upward::Heal,
            }),
            // Closed: the message is dropped, and with it whatever reply it carries.
            None => Ok(()),
        }
    }
}

impl Link {
    /// Leads to this registry from now on; it hears first to look after everything, then what was said meanwhile.
    pub(crate) fn reconnect(&self, registry: ActorRef<Upward>) {
        let mut way = self.0.write();
        way.registry = Some(registry);
        let pending = std::mem::take(&mut way.pending);
        for message in std::iter::once(Upward::Heal).chain(pending) {
            // If this one is lost already, its successor looks after everything again.
            let _ = way.send(message);
        }
    }

    /// Closes the way: no registry is coming any more.
    pub(crate) fn disconnect(&self) -> Option<ActorRef<Upward>> {
        let mut way = self.0.write();
        way.pending.clear();
        way.registry.take()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.read().registry.is_some()
    }

    /// Sends, or keeps for the next registry.
    pub(crate) fn send(&self, message: Upward) {
        let unheard = self.0.read().send(message);
        if let Err(message) = unheard {
            let mut way = self.0.write();
            if let Err(message) = way.send(message) {
                way.pending.push(message);
            }
        }
    }
}
