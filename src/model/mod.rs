//! The pure heart: decides, and never acts.
//!
//! [`Lifecycle`] is a value. A caller's [`Command`] may be refused, a fact of the world ([`Observation`]) may not, so they
//! are two functions, [`Lifecycle::command`] and [`Lifecycle::observe`]; both give the next value and the [`Effect`]s that
//! lead there. Tests, simulation and production run the same two. No clock, no channel, no async.

mod effect;
mod event;
mod exit;
mod machine;
mod phase;
mod pong;
mod record;
mod refusal;
mod restart;
mod state;

#[cfg(test)]
mod search;
#[cfg(test)]
mod shadow;
#[cfg(test)]
mod table;

pub use effect::{Cause, Effect, Operation, Outcome};
pub use event::{Command, Found, Observation, OpId};
pub use exit::{BootMillis, Exit, ExitReason, Life};
pub use machine::{Answer, Lifecycle};
pub use phase::Phase;
pub use pong::{Marks, Pong};
pub use record::Record;
pub use refusal::{Because, Refusal};
pub use restart::Intensity;
