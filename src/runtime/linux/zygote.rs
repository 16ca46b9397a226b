//! Zygotes: small processes that stand ready to become sandboxes.
//!
//! ```text
//! host                         zygote                       child
//!  │ Build, trees, report pipe    │                            │      only for a root or mounts of its own
//!  ├─────────────────────────────▶│ clone3 ───────────────────▶│ builder: mounts, reports, waits for its end
//!  │◀── Answer: pidfd ────────────┤                            │
//!  │◀──────────────── Built ──────┼────────────────────────────┤
//!  │ Spawn, cgroup, report pipe   │                            │
//!  ├─────────────────────────────▶│ clone3 ───────────────────▶│ leader: waits for its maps
//!  │◀── Answer: pidfd ────────────┤ maps ─────────────────────▶│ sets itself up, executes
//!  │◀──────────────── Ready ──────┼────────────────────────────┤
//!  │ Reap, once all is read       │                            ┴ ends, and stays a zombie until then
//!  ├─────────────────────────────▶│ wait4
//! ```
//! A program that is run in a sandbox later has a child of its own: see `exec`.
//!
//! Zygotes that have a state directory outlive their host, keep its sandboxes' remains, and wait for the next one (`greet`).
//! The others end everything when it is gone.
//!
//! A zygote is single-threaded and waits for no child. One per core is as fast as it gets; the kernel's work
//! is all there is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;

use super::channel::{Newborn, Process, Unasked};
use super::failure;
use super::greet::Greeting;
use super::launch::{Launching, init_file};
use super::plan::Plan;
use super::protocol::{Child, Kind, Reader, Report, Step, bytes_of};
use super::state_dir::Sockets;
use crate::error::{Error, ErrorKind};

/// A zygote that lived for less long is replaced only after a pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Which zygote, of all that a [`Zygotes`] ever had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ZygoteId(u64);

/// Directories in the cgroup file system.
#[derive(Debug)]
pub(super) struct Groups {
    /// The keeper's root, which holds a group for each sandbox.
    pub(super) root: OwnedFd,
    /// The group in it where the zygotes are.
    pub(super) leaf: OwnedFd,
    /// Where the zygotes go when all is over, so that leaf and root can be removed: the root's own parent, or
    /// any other that may hold processes. Where controllers are enabled below the parent, as on pure cgroup
    /// v2, it may not; the group that this program is in always may.
    pub(super) parent: OwnedFd,
}

/// What a start needs beside its plan.
pub(super) struct Files {
    /// The sandbox's cgroup.
    pub(super) group: Arc<OwnedFd>,
    /// What its zygote tells the next host of it.
    pub(super) child: Child,
    /// The network namespace to join; nothing for what the plan says.
    pub(super) network: Option<Arc<OwnedFd>>,
}

/// A child that was found, and whose it is.
pub(super) type Found = (ZygoteId, Child);

/// A sandbox that runs.
#[derive(Debug)]
pub(super) struct Spawned {
    /// Its PID 1, by its number on the host.
    pub(super) pid: u32,
    /// The same, as a descriptor. Readable when it has ended.
    pub(super) pidfd: OwnedFd,
    /// Who keeps its remains until [`Zygotes::reap`].
    pub(super) zygote: ZygoteId,
}

/// The zygotes of one keeper. When it is dropped they end every sandbox of theirs, and themselves; those that stay wait for the
/// next host instead.
pub(super) struct Zygotes {
    slots: Box<[RwLock<Arc<Process>>]>,
    /// Of another version than this program, or with other rights. They keep the children they have, and end with the last.
    old: RwLock<Vec<Arc<Process>>>,
    init: OwnedFd,
    groups: Groups,
    /// Whether they are to have the rights of an ordinary user, in a user namespace of their own.
    one_user: bool,
    /// Where they stay, if they do.
    sockets: Option<Arc<Sockets>>,
    next_slot: AtomicUsize,
    next_id: AtomicU64,
    closing: AtomicBool,
}

impl Zygotes {
    /// Starts zygotes that end with this program.
    #[cfg(test)]
    pub(super) fn launch(count: usize, groups: Groups) -> Result<Arc<Self>, Error> {
        Ok(Self::take_over(count, groups, false, None, Vec::new(), super::protocol::VERSION)?.0)
    }

    /// Takes over those that an earlier host has left, starts what is missing of `count`, and waits until they are ready, some ten
    /// milliseconds. What children there are comes back beside it. Must be called inside a tokio runtime, which then watches
    /// them.
    ///
    /// With `sockets` they outlive this program. Those of another version than `version`, or with other rights, are only waited for. After an error without
    /// `sockets` the groups may be gone: a zygote that was ready has cleaned up.
    ///
    /// # Errors
    /// - [`ErrorKind::PermissionDenied`]: a right is missing.
    /// - [`ErrorKind::FailedPrecondition`]: the machine refuses a step, which the error names.
    pub(super) fn take_over(
        count: usize,
        groups: Groups,
        one_user: bool,
        sockets: Option<Arc<Sockets>>,
        left: Vec<Greeting>,
        version: u32,
    ) -> Result<(Arc<Self>, Vec<Found>), Error> {
        let init = init_file()?;
        let serves = |greeting: &Greeting| {
            greeting.version == version && greeting.one_user == one_user && !greeting.retired
        };
        let ours = left.iter().filter(|greeting| serves(greeting)).count();
        let launching: Vec<_> = (ours..count.max(1))
            .map(|_| Launching::start(&init, &groups, one_user, sockets.as_ref()))
            .collect::<Result<_, _>>()?;
        let (mut slots, mut old, mut children) = (Vec::new(), Vec::new(), Vec::new());
        let mut others = Vec::new();
        let mut ids = (0..).map(ZygoteId);
        for (greeting, id) in left.into_iter().zip(&mut ids) {
            let (serves, version, its) = (serves(&greeting), greeting.version, greeting.one_user);
            let process = Process::new(id, greeting.connection)?;
            children.extend(greeting.children.into_iter().map(|child| (id, child)));
            if serves {
                slots.push(RwLock::new(process));
            } else {
                others.push((process, version, its));
            }
        }
        for (launching, id) in launching.into_iter().zip(&mut ids) {
            slots.push(RwLock::new(launching.finish(id)?));
        }
        // Only now: one without children ends at once, and takes their cgroup along if it is alone in it.
        for (process, version, its) in others {
            if process.retire().is_ok() {
                tracing::info!(
                    zygote_pid = process.pid,
                    version,
                    one_user = its,
                    "zygote of another version, or with other rights"
                );
                old.push(process);
            }
        }
        let this = Arc::new(Self {
            slots: slots.into(),
            old: RwLock::new(old),
            init,
            groups,
            one_user,
            sockets,
            next_slot: AtomicUsize::new(0),
            next_id: AtomicU64::new(ids.next().map_or(u64::MAX, |id| id.0)),
            closing: AtomicBool::new(false),
        });
        for slot in 0..this.slots.len() {
            tokio::spawn(watch(Arc::downgrade(&this), slot, Arc::clone(&this.slots[slot].read())));
        }
        for process in this.old.read().iter() {
            tokio::spawn(watch_old(Arc::downgrade(&this), Arc::clone(process)));
        }
        Ok((this, children))
    }

    /// Starts a sandbox. Returns when it runs: for a process, when it has been executed.
    ///
    /// If the future is dropped, whatever has come of it is ended and reaped in the background.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidArgument`]: the program, its working directory or a mount's target is not there.
    /// - [`ErrorKind::FailedPrecondition`], [`ErrorKind::PermissionDenied`],
    ///   [`ErrorKind::ResourceExhausted`]: the kernel refuses a step, which the error names. Nothing is left.
    /// - [`ErrorKind::Unavailable`]: the zygote has ended meanwhile. Another takes its place.
    pub(super) async fn spawn(&self, plan: &Plan, files: Files) -> Result<Spawned, Error> {
        let zygote = self.pick().ok_or_else(|| lost(plan))?;
        let builder = match &plan.build {
            Some(body) => Some(build(&zygote, plan, body, &files).await?),
            None => None,
        };
        let (report, write) = report_pipe(plan)?;
        let mut fds: Vec<BorrowedFd<'_>> = vec![files.group.as_fd(), write.as_fd()];
        fds.extend(network(plan, &files)?);
        fds.extend(builder.as_ref().and_then(Newborn::pidfd));
        fds.extend(plan.stdio());
        let answer = zygote.request(Kind::Spawn, [bytes_of(&files.child), &plan.spawn], &fds).await;
        drop(fds);
        drop(write);
        // The leader has a copy of its mounts, or never will. It ends by itself from here.
        drop(builder);
        let leader = answer
            .map_err(|unasked| not_asked(plan, unasked))?
            .map_err(|report| failure::start_failed(plan, report))?;
        finish(plan, report, leader).await
    }

    /// Lets the remains of an ended leader go: to be called once its pidfd is readable and `/proc/PID/stat`
    /// has been read. Does not block, and does nothing for a zygote that is gone: its children are reaped by
    /// whoever inherited them.
    pub(super) fn reap(&self, zygote: ZygoteId, pid: u32) {
        if let Some(process) = self.find(zygote) {
            process.reap(pid);
        }
    }

    /// Has a child killed and reaped by its zygote. As [`reap`](Self::reap), it does not block.
    pub(super) fn discard(&self, zygote: ZygoteId, pid: u32) {
        if let Some(process) = self.find(zygote) {
            process.discard(pid);
        }
    }

    /// Whether a zygote lives, as the kernel says: then none of its unreaped children's numbers is another process's.
    pub(super) fn lives(&self, zygote: ZygoteId) -> bool {
        self.find(zygote).is_some_and(|process| !process.has_ended())
    }

    /// One of them, also if it has ended.
    pub(super) fn find(&self, zygote: ZygoteId) -> Option<Arc<Process>> {
        let mut slots = self.slots.iter().map(|slot| Arc::clone(&slot.read()));
        let found = slots.find(|process| process.id == zygote);
        found.or_else(|| self.old.read().iter().find(|process| process.id == zygote).cloned())
    }

    /// The living zygotes.
    pub(super) fn pids(&self) -> Vec<u32> {
        let slots = self.slots.iter().map(|slot| Arc::clone(&slot.read()));
        let processes = slots.chain(self.old.read().iter().cloned().collect::<Vec<_>>());
        processes.filter(|process| process.is_alive()).map(|process| process.pid).collect()
    }

    /// The living zygote with the least to do; among equals, each in turn.
    pub(super) fn pick(&self) -> Option<Arc<Process>> {
        let first = self.next_slot.fetch_add(1, Ordering::Relaxed);
        (0..self.slots.len())
            .map(|offset| Arc::clone(&self.slots[(first + offset) % self.slots.len()].read()))
            .filter(|process| process.is_alive())
            .min_by_key(|process| process.load())
    }

    /// Puts another zygote into a slot. Blocks for some milliseconds.
    fn replace(&self, slot: usize) -> Result<Arc<Process>, Error> {
        let id = ZygoteId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (groups, sockets) = (&self.groups, self.sockets.as_ref());
        let process = Launching::start(&self.init, groups, self.one_user, sockets)?.finish(id)?;
        *self.slots[slot].write() = Arc::clone(&process);
        Ok(process)
    }
}

impl Drop for Zygotes {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Zygotes {
    /// Reaps those that were killed. Blocks for a moment.
    pub(super) fn reap_own(&self) {
        let slots = self.slots.iter().map(|slot| Arc::clone(&slot.read()));
        slots
            .chain(self.old.read().iter().cloned().collect::<Vec<_>>())
            .for_each(|process| process.reap_self());
    }

    /// Lets go of all of them. Those that do not stay end every sandbox of theirs, and themselves.
    pub(super) fn hang_up(&self) {
        self.closing.store(true, Ordering::Release);
        self.slots.iter().for_each(|slot| slot.read().hang_up());
        self.old.read().iter().for_each(|process| process.hang_up());
    }
}

/// Waits for the end of a zygote that is not replaced.
async fn watch_old(zygotes: Weak<Zygotes>, process: Arc<Process>) {
    process.run().await;
    if let Some(owner) = zygotes.upgrade() {
        owner.old.write().retain(|other| !Arc::ptr_eq(other, &process));
    }
}

/// Reads one slot's answers, and replaces its zygote whenever it ends, until the [`Zygotes`] are dropped.
async fn watch(zygotes: Weak<Zygotes>, slot: usize, mut process: Arc<Process>) {
    let mut pause = Duration::from_millis(10);
    loop {
        let born = Instant::now();
        process.run().await;
        let Some(owner) = zygotes.upgrade().filter(|owner| !owner.closing.load(Ordering::Acquire)) else {
            return;
        };
        tracing::warn!(zygote_pid = process.pid, "zygote ended");
        drop(owner);
        if born.elapsed() < SHORT_LIFE {
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        } else {
            pause = Duration::from_millis(10);
        }
        process = loop {
            let Some(owner) = zygotes.upgrade() else { return };
            match tokio::task::spawn_blocking(move || owner.replace(slot)).await {
                Ok(Ok(process)) => break process,
                Ok(Err(error)) => tracing::error!(%error, "zygote not replaced"),
                // The runtime is shutting down.
                Err(_) => return,
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        };
    }
}

fn lost(plan: &Plan) -> Error {
    Error::new(ErrorKind::Unavailable, "start", "its zygote has ended")
        .on(&plan.key)
        .remedy("start it again")
        .retry_after(Duration::from_millis(20))
}

fn not_asked(plan: &Plan, unasked: Unasked) -> Error {
    match unasked {
        Unasked::Lost => lost(plan),
        Unasked::Refused(error) => {
            let found = "the request to its zygote was refused";
            Error::new(ErrorKind::ResourceExhausted, "start", found)
                .caused_by(error)
                .remedy("raise net.core.wmem_max, or give this program CAP_NET_ADMIN")
                .on(&plan.key)
        }
    }
}

fn network<'a>(plan: &Plan, files: &'a Files) -> Result<Option<BorrowedFd<'a>>, Error> {
    match (plan.takes_network, &files.network) {
        (true, Some(network)) => Ok(Some(network.as_fd())),
        (false, None) => Ok(None),
        (planned, _) => {
            let found = format!("its plan takes a network: {planned}, its files have one: {}", !planned);
            Err(Error::new(ErrorKind::Internal, "start", found).on(&plan.key))
        }
    }
}

/// A pipe for a child's report: whatever becomes of the child, it ends.
fn report_pipe(plan: &Plan) -> Result<(pipe::Receiver, OwnedFd), Error> {
    let refuse = |error: std::io::Error| {
        Error::new(ErrorKind::ResourceExhausted, "start", "a pipe was refused").caused_by(error).on(&plan.key)
    };
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|errno| refuse(errno.into()))?;
    Ok((pipe::Receiver::from_owned_fd_unchecked(read).map_err(refuse)?, write))
}

/// Has a mount tree built. What comes back holds it until it is dropped.
async fn build(zygote: &Process, plan: &Plan, body: &[u8], files: &Files) -> Result<Newborn, Error> {
    let (report, write) = report_pipe(plan)?;
    let mut fds: Vec<BorrowedFd<'_>> = vec![files.group.as_fd(), write.as_fd()];
    fds.extend(network(plan, files)?);
    fds.extend(plan.trees());
    let answer = zygote.request(Kind::Build, [body, &[]], &fds).await;
    drop(fds);
    drop(write);
    let builder = answer
        .map_err(|unasked| not_asked(plan, unasked))?
        .map_err(|report| failure::start_failed(plan, report))?;
    match read_report(&report).await {
        Some(report) if report.step == Step::Built as u32 => Ok(builder),
        report => {
            builder.end().await;
            Err(report.map_or_else(|| ended_early(plan), |report| failure::start_failed(plan, report)))
        }
    }
}

/// Waits until a leader's set-up is done.
async fn finish(plan: &Plan, report: pipe::Receiver, leader: Newborn) -> Result<Spawned, Error> {
    let mut last = read_report(&report).await;
    if last.is_some_and(|last| last.step == Step::Executing as u32) {
        // The pipe ends with the execution, unless there is more to say.
        last = read_report(&report).await.or(Some(Report { step: Step::Ready as u32, errno: 0 }));
    }
    if last.is_some_and(|last| last.step == Step::Ready as u32) {
        let (pid, zygote) = (leader.pid, leader.zygote.id);
        let pidfd = leader.keep().ok_or_else(|| ended_early(plan))?;
        return Ok(Spawned { pid, pidfd, zygote });
    }
    leader.end().await;
    Err(last.map_or_else(|| ended_early(plan), |report| failure::start_failed(plan, report)))
}

/// The next report; nothing at the pipe's end.
pub(super) async fn read_report(pipe: &pipe::Receiver) -> Option<Report> {
    let mut bytes = [0; size_of::<Report>()];
    loop {
        pipe.readable().await.ok()?;
        match pipe.try_read(&mut bytes) {
            // A report is written at once, so it is never read in parts.
            Ok(length) => return Reader::new(&bytes[..length]).value(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

fn ended_early(plan: &Plan) -> Error {
    Error::new(ErrorKind::Aborted, "start", "it was killed while it was being set up").on(&plan.key)
}

#[cfg(test)]
#[path = "zygote_tests.rs"]
mod tests;
