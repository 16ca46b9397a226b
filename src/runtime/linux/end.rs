//! Ending a life, and giving back what it had.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::freeze::{self, Freezer};
use super::sandbox::{Busy, Sandbox, Stage};
use super::tree::Tree;
use super::{Inner, group, kernel_error, sys};
use crate::error::Error;

/// The first pause between two looks; the next are twice as long each, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// After so long, the log names what does not end.
const NOTEWORTHY: Duration = Duration::from_secs(5);

/// How long a delete waits for the zombie to go. If its zygote was killed, somebody else reaps it, in their own time.
const REAPING: Duration = Duration::from_secs(2);

/// What is to hold at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// No process is left.
    Ended,
    /// Nor is the group.
    Gone,
}

/// Asks the leader to end: TERM, which an init passes on to the main process.
pub(super) fn ask(sandbox: &Sandbox) -> Result<(), Error> {
    let Some(leader) = sandbox.running() else { return Ok(()) };
    match pidfd_send_signal(&leader.pidfd, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(kernel_error("stop", "its leader", error.into())),
    }
}

impl Inner {
    /// Ends every process of it. Returns when none is left and the end has been reported.
    pub(super) async fn stop_now(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        self.end(sandbox, Goal::Ended).await?;
        Ok(())
    }

    /// Ends and removes it. Returns when nothing is left of it.
    pub(super) async fn delete(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        sandbox.end();
        let busy = self.end(sandbox, Goal::Gone).await?;
        if let Stage::Ended(_, Some(leader)) = sandbox.state().stage {
            let start = Instant::now();
            while sys::is_unreaped(&leader.pidfd) && start.elapsed() < REAPING {
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
        if let Some(ids) = sandbox.change(|state| state.ids.take()) {
            self.ids.give_back(ids);
        }
        self.lives.remove(sandbox.instance.life);
        drop(busy);
        Ok(())
    }

    /// Kills until the goal is reached, however long that takes: the deadline is the caller's, who may drop this and call
    /// it again. An operation that is still at work ends of it, since its processes are killed as well.
    async fn end(&self, sandbox: &Arc<Sandbox>, goal: Goal) -> Result<Arc<Busy>, Error> {
        let start = Instant::now();
        let mut named = false;
        let mut pause = FIRST_PAUSE;
        let mut busy = sandbox.acquire_within(Duration::ZERO).await;
        loop {
            let reached = {
                let (tree, sandbox, busy) = (Arc::clone(&self.tree), Arc::clone(sandbox), busy.clone());
                let step = move || {
                    let _busy = busy;
                    step(&tree, &sandbox, goal, pause)
                };
                self.workers.run(step).await?.map_err(|error| kernel_error("end", "its cgroup", error))?
            };
            match busy {
                Some(busy) if reached && sandbox.is_told() => return Ok(busy),
                Some(_) if !sandbox.is_told() => sandbox.told_within(pause).await,
                Some(_) => tokio::time::sleep(pause).await,
                None => busy = sandbox.acquire_within(pause).await,
            }
            if !named && start.elapsed() > NOTEWORTHY {
                named = true;
                self.name_what_does_not_end(sandbox);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn name_what_does_not_end(&self, sandbox: &Sandbox) {
        let number = sandbox.state().group;
        let group = number.and_then(|number| self.tree.open(&sandbox.instance.key, number).ok().flatten());
        let processes = group.map(group::describe_processes).unwrap_or_default();
        tracing::warn!(sandbox = %sandbox.instance.key, life = %sandbox.instance.life, ?processes, "it does not end");
    }
}

/// Until the pause between two looks is so long, only the leader is killed, which takes its PID namespace along.
///
/// A program that was run inside is a child of somebody outside of the namespace but in the group. Killed together with it, it
/// would be for PID 1 of the machine to reap, and until that has done so the kernel does not let the leader go.
const LEADER_ONLY: Duration = Duration::from_millis(64);

/// Kills once, if there is anything to kill; `pause` is how long until the next look. Whether the goal is reached.
fn step(tree: &Tree, sandbox: &Sandbox, goal: Goal, pause: Duration) -> io::Result<bool> {
    let state = sandbox.state();
    let Some(number) = state.group else { return Ok(true) };
    let key = &sandbox.instance.key;
    let leader = sandbox.running();
    let Some(group) = tree.open(key, number)? else { return Ok(leader.is_none()) };
    if leader.is_none() {
        let reached = match goal {
            Goal::Ended => !group::is_populated(&group)?,
            Goal::Gone => tree.remove(key, number)?,
        };
        if reached {
            return Ok(true);
        }
    }
    // By itself: somebody may have moved it to another group. It takes its PID namespace along.
    let signalled = leader.map(|leader| pidfd_send_signal(&leader.pidfd, Signal::KILL));
    if signalled == Some(Ok(())) && pause < LEADER_ONLY {
        crate::failpoint::reach("linux.after-kill");
        // What is frozen dies of it all the same, but who is to reap it must run. By now the whole namespace is being killed.
        if pause > FIRST_PAUSE && freeze::is_asked(&group) {
            freeze::request(&group, Freezer::Thaw)?;
        }
        return Ok(false);
    }
    let killed = group::kill(&group);
    crate::failpoint::reach("linux.after-kill");
    match (killed, signalled) {
        (Ok(()), _) | (_, Some(Ok(()) | Err(Errno::SRCH))) => Ok(false),
        (Err(error), _) => Err(error),
    }
}
