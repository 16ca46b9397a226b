//! One zygote process, and the socket to it.
//!
//! Requests are packets, sent without waiting for earlier ones; a reader task joins answers to requests.
//! Whatever arrives that nobody waits for any more is ended and reaped: a start whose future was dropped
//! leaves nothing behind.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::shutdown;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::message::{Incoming, receive, send};
use super::protocol::{Kind, MAX_REAPS, Report, Step};
use super::readiness::{Ending, watched};
use super::state_dir::Doorbell;
use super::zygote::ZygoteId;
use crate::error::{Error, ErrorKind};

/// A zygote that answers, and what leads to it.
pub(super) struct Connection {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) socket: OwnedFd,
    /// For one of our own making, which nobody else reaps.
    pub(super) child: Option<Child>,
    /// Where the next host finds it, if it is to stay.
    pub(super) doorbell: Option<Doorbell>,
}

/// A zygote that is ready.
pub(super) struct Process {
    pub(super) id: ZygoteId,
    pub(super) pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    socket: AsyncFd<OwnedFd>,
    child: Mutex<Option<Child>>,
    /// Where the next host finds it. One without ends everything when its host is gone.
    doorbell: Option<Doorbell>,
    /// Whether requests make sense. Never true again once false.
    alive: AtomicBool,
    /// Whether it was told to clean up and end.
    hung_up: AtomicBool,
    next_request: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Newborn, Report>>>>,
    /// Children whose remains may go, and those that are to be killed, as soon as the socket takes it.
    reaps: Mutex<Leavings>,
    reaps_left: Notify,
    /// Where what nobody waits for any more is ended.
    pub(super) runtime: Handle,
}

/// Children that this program is done with.
#[derive(Default)]
struct Leavings {
    ended: Vec<u32>,
    unwanted: Vec<u32>,
}

impl Process {
    pub(super) fn new(id: ZygoteId, connection: Connection) -> Result<Arc<Self>, Error> {
        let Connection { pid, pidfd, socket, child, doorbell } = connection;
        let refuse = |error: io::Error| {
            Error::new(ErrorKind::FailedPrecondition, "start a zygote", "its socket cannot be watched")
                .caused_by(error)
        };
        // Of this end only: a zygote has nothing to do but wait.
        fcntl_setfl(&socket, OFlags::NONBLOCK).map_err(|errno| refuse(errno.into()))?;
        let pidfd = watched(pidfd, Interest::READABLE).map_err(refuse)?;
        let socket = watched(socket, Interest::READABLE | Interest::WRITABLE).map_err(refuse)?;
        Ok(Arc::new(Self {
            id,
            pid,
            pidfd,
            socket,
            child: Mutex::new(child),
            doorbell,
            alive: AtomicBool::new(true),
            hung_up: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
            waiting: Mutex::default(),
            reaps: Mutex::default(),
            reaps_left: Notify::new(),
            runtime: Handle::current(),
        }))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Requests that have not been answered yet.
    pub(super) fn load(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Asks for a child. The outer error says that nobody was asked, the inner what the zygote could not do.
    ///
    /// If the future is dropped, the child that may come of it is ended and reaped.
    pub(super) async fn request(
        &self,
        kind: Kind,
        body: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<Newborn, Report>, Unasked> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(request, sender);
        // Checked after the entry is made: whoever declares the zygote dead clears the entries afterwards.
        if !self.is_alive() {
            self.waiting.lock().remove(&request);
            return Err(Unasked::Lost);
        }
        let unsent = Waiting { process: self, request };
        let send = |socket: &OwnedFd| Ok(send(socket.as_fd(), kind, request, body, fds)?);
        self.socket.async_io(Interest::WRITABLE, send).await.map_err(Unasked::of)?;
        let answer = receiver.await.map_err(|_| Unasked::Lost);
        drop(unsent);
        answer
    }

    /// Lets the remains of a child go. Its pidfd must have been seen readable. Does not block.
    pub(super) fn reap(&self, pid: u32) {
        self.leave(|leavings| leavings.ended.push(pid));
    }

    /// Has a child killed and reaped by its parent, for want of anything else that leads to it. Does not block.
    pub(super) fn discard(&self, pid: u32) {
        self.leave(|leavings| leavings.unwanted.push(pid));
    }

    fn leave(&self, add: impl FnOnce(&mut Leavings)) {
        add(&mut self.reaps.lock());
        if self.send_reaps().is_err() {
            self.reaps_left.notify_one();
        }
    }

    /// Sends what there is to reap. On an error the rest is left for later.
    fn send_reaps(&self) -> Result<(), Errno> {
        let leavings = &mut *self.reaps.lock();
        let kinds = [(Kind::Reap, &mut leavings.ended), (Kind::Discard, &mut leavings.unwanted)];
        for (kind, pids) in kinds {
            while !pids.is_empty() {
                let count = pids.len().min(MAX_REAPS);
                let body: Vec<u8> = pids[..count].iter().flat_map(|pid| pid.to_ne_bytes()).collect();
                match send(self.socket.get_ref().as_fd(), kind, 0, [&body, &[]], &[]) {
                    Ok(()) => drop(pids.drain(..count)),
                    Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                    // It is dead, and its children are somebody else's.
                    Err(_) => pids.clear(),
                }
            }
        }
        Ok(())
    }

    /// Tells it to make nothing any more, and to end with its last child.
    pub(super) fn retire(&self) -> Result<(), Errno> {
        send(self.socket.get_ref().as_fd(), Kind::Retire, 0, [&[], &[]], &[])
    }

    /// Whether it runs, as the kernel says.
    pub(super) fn has_ended(&self) -> bool {
        super::sys::is_readable(self.pidfd.get_ref())
    }

    /// Reads answers until the zygote ends, and settles whatever waits for it then.
    pub(super) async fn run(self: &Arc<Self>) {
        let next = |socket: &OwnedFd| Ok(receive(socket.as_fd())?);
        // Beside the reading, never instead of it: a zygote whose answers are not read stops reading itself.
        let mut flushing = std::pin::pin!(self.flush_reaps());
        loop {
            tokio::select! {
                biased;
                // Its end is seen by its pidfd: the socket may be held open a little longer by a child that
                // is setting up.
                _ = self.pidfd.readable() => break,
                received = self.socket.async_io(Interest::READABLE, next) => match received {
                    Ok(Some(incoming)) => self.settle(incoming),
                    Ok(None) | Err(_) => break,
                },
                () = &mut flushing => {}
            }
        }
        self.alive.store(false, Ordering::Release);
        // What it answered before it ended is true, and its children live.
        while let Ok(Some(incoming)) = receive(self.socket.get_ref().as_fd()) {
            self.settle(incoming);
        }
        self.waiting.lock().clear();
        if !self.hung_up.load(Ordering::Acquire) {
            // If it is not dead but mute, it is of no use any more. Told to end, it still has to clean up.
            let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        }
        if self.hung_up.load(Ordering::Acquire) && self.doorbell.is_some() {
            // It stays.
            return;
        }
        let _ = self.pidfd.readable().await;
        if let Some(doorbell) = &self.doorbell {
            doorbell.remove();
        }
        drop(self.child.lock().take());
        self.reap_self();
    }

    /// Reaps the zygote, which was killed or is ending, if it is our child. Blocks for a moment at most.
    pub(super) fn reap_self(&self) {
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)], Some(&limit));
        // By the pidfd: also one that this very process had started before it took it over. An error means that it is not our
        // child, or that the program has reaped it by itself.
        let _ = waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }

    /// Sends what could not be sent at once, whenever there is any. Never returns.
    async fn flush_reaps(&self) {
        loop {
            self.reaps_left.notified().await;
            let send = |_: &OwnedFd| Ok(self.send_reaps()?);
            // The only error left is that the socket is lost; then `run` ends this.
            let _ = self.socket.async_io(Interest::WRITABLE, send).await;
        }
    }

    fn settle(self: &Arc<Self>, incoming: Incoming) {
        let Incoming { header, answer, fd } = incoming;
        let outcome = match fd {
            Some(pidfd) if answer.pid != 0 => {
                Ok(Newborn { zygote: Arc::clone(self), pid: answer.pid, pidfd: Some(pidfd) })
            }
            // Born, and its descriptor was cut off on the way: this program has no number left for it.
            None if answer.pid != 0 => {
                self.discard(answer.pid);
                Err(Report { step: Step::Clone as u32, errno: libc::EMFILE as u32 })
            }
            _ => Err(answer.report),
        };
        if let Some(sender) = self.waiting.lock().remove(&header.request) {
            // If the receiver is gone, the newborn is dropped here, and ended.
            let _ = sender.send(outcome);
        }
    }

    /// Tells the zygote that its host is gone: unless it stays for the next one, it ends all sandboxes, and itself.
    pub(super) fn hang_up(&self) {
        self.hung_up.store(true, Ordering::Release);
        self.alive.store(false, Ordering::Release);
        let _ = shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

impl Drop for Process {
    /// If its task was not allowed to end, as when the runtime is shut down, somebody else must reap it.
    fn drop(&mut self) {
        self.hang_up();
        let Some(mut child) = self.child.lock().take().filter(|_| self.doorbell.is_none()) else { return };
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        // If no thread can be made, it stays a zombie until this program ends.
        let _ = std::thread::Builder::new().name("sk-zygote-end".to_owned()).spawn(move || child.wait());
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unasked {
    /// The zygote is gone.
    Lost,
    /// The kernel does not carry the request.
    Refused(io::Error),
}

impl Unasked {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
                Self::Lost
            }
            _ => Self::Refused(error),
        }
    }
}

/// An entry among the waiting, removed when its future is dropped.
struct Waiting<'a> {
    process: &'a Process,
    request: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.process.waiting.lock().remove(&self.request);
    }
}

/// A child that is setting itself up. Ended and reaped unless it is [kept](Newborn::keep).
pub(super) struct Newborn {
    pub(super) zygote: Arc<Process>,
    pub(super) pid: u32,
    pidfd: Option<OwnedFd>,
}

impl Newborn {
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Its set-up is done.
    pub(super) fn keep(mut self) -> Option<OwnedFd> {
        self.pidfd.take()
    }

    /// Ends it, and returns when it has ended.
    pub(super) async fn end(mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            end(&self.zygote, self.pid, pidfd).await;
        }
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            // At once, whatever becomes of the runtime; only the reaping takes time.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let (zygote, pid) = (Arc::clone(&self.zygote), self.pid);
            let runtime = zygote.runtime.clone();
            runtime.spawn(async move { end(&zygote, pid, pidfd).await });
        }
    }
}

async fn end(zygote: &Process, pid: u32, pidfd: OwnedFd) {
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    Ending::of(pidfd).ended().await;
    zygote.reap(pid);
}
