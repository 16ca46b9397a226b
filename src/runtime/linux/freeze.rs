//! Freezing and thawing a group, and knowing that it happened.
//!
//! The kernel freezes in its own time. The file that says so is read right after asking, when it mostly holds already (some
//! 7 µs later), and then again after short pauses: the notification of a change may come 10 ms late, so it is no help.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::sandbox::{Busy, Leader, Sandbox};
use super::tree::Tree;
use super::workers::Workers;
use super::{group, kernel_error};
use crate::error::{Error, ErrorKind};

/// The pause before the first further look; the next are each longer by as much, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// How often the file is read at once, without a pause, before going over to pauses.
const LOOKS: usize = 4;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freezer {
    /// Freeze.
    Freeze,
    /// Thaw.
    Thaw,
}

impl Freezer {
    fn tried(self) -> &'static str {
        match self {
            Self::Freeze => "pause",
            Self::Thaw => "resume",
        }
    }
}

/// Freezes or thaws, and waits until the kernel says that it is done.
///
/// If the future is dropped while it waits for the kernel to freeze, the request stands, and [`Freezer::Thaw`] takes it
/// back. `busy` goes along with each write, so that a late one of a dropped call cannot overtake a later call.
pub(super) async fn set(
    sandbox: &Arc<Sandbox>,
    tree: &Arc<Tree>,
    workers: &Workers,
    busy: &Arc<Busy>,
    to: Freezer,
) -> Result<(), Error> {
    let key = &sandbox.instance.key;
    let leader = running(sandbox, to)?;
    let mut ask = true;
    let mut pause = FIRST_PAUSE;
    loop {
        let job = {
            let (sandbox, tree, busy) = (Arc::clone(sandbox), Arc::clone(tree), Arc::clone(busy));
            let leader = Arc::clone(&leader);
            move || {
                let _busy = busy;
                look(&sandbox, &tree, &leader, to, ask)
            }
        };
        if workers.run(job).await?.map_err(|error| error.on(key))? {
            return Ok(());
        }
        ask = false;
        tokio::time::sleep(pause).await;
        pause = (pause + FIRST_PAUSE).min(LONGEST_PAUSE);
    }
}

/// The leader, where freezing makes sense.
fn running(sandbox: &Sandbox, to: Freezer) -> Result<Arc<Leader>, Error> {
    match sandbox.running() {
        Some(leader) if !leader.has_ended() => Ok(leader),
        _ => Err(not_running(to).on(&sandbox.instance.key)),
    }
}

pub(super) fn not_running(to: Freezer) -> Error {
    Error::new(ErrorKind::FailedPrecondition, to.tried(), "it does not run, or not any more")
}

/// Asks, if that is still to be done, and looks whether it has happened.
fn look(sandbox: &Sandbox, tree: &Tree, leader: &Leader, to: Freezer, ask: bool) -> Result<bool, Error> {
    let failed = |error| kernel_error(to.tried(), "its cgroup", error);
    let group = match sandbox.state().group {
        Some(number) => tree.open(&sandbox.instance.key, number).map_err(failed)?,
        None => None,
    };
    let Some(group) = group else { return Err(not_running(to)) };
    if ask {
        request(&group, to).map_err(failed)?;
        crate::failpoint::reach(match to {
            Freezer::Freeze => "linux.after-freeze",
            Freezer::Thaw => "linux.after-thaw",
        });
    }
    let wanted = to == Freezer::Freeze;
    let mut there = false;
    for look in 0..if ask { LOOKS } else { 1 } {
        if look > 0 {
            std::thread::yield_now();
        }
        there = group::is_frozen(&group).map_err(failed)? == wanted;
        if there {
            break;
        }
    }
    // Once thawed it may end at once: it was thawed all the same.
    if to == Freezer::Freeze && leader.has_ended() {
        // An empty group counts as frozen, and the next one to look should not find it so.
        request(&group, Freezer::Thaw).map_err(failed)?;
        return Err(not_running(to));
    }
    Ok(there)
}

/// Whether a group is asked to be frozen, as it will be as soon as something is in it.
pub(super) fn is_asked(group: impl AsFd) -> bool {
    group::read(group, "cgroup.freeze").is_ok_and(|value| value.trim() == "1")
}

/// Asks for it, and does not wait.
pub(super) fn request(group: impl AsFd, to: Freezer) -> std::io::Result<()> {
    let value = if to == Freezer::Freeze { "1" } else { "0" };
    match group::write(group, "cgroup.freeze", value) {
        Err(error) if group::is_gone(&error) => Ok(()),
        result => result,
    }
}

/// Whether its group is frozen. One that is gone is not.
pub(super) fn is_frozen(tree: &Tree, sandbox: &Sandbox) -> bool {
    let number = sandbox.state().group;
    let group = number.and_then(|number| tree.open(&sandbox.instance.key, number).ok().flatten());
    group.is_some_and(|group| group::is_frozen(&group).unwrap_or(false))
}
