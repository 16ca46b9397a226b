//! One zygote process, and the socket to it.
//!
//! Requests are packets, sent without waiting for earlier ones; a reader task joins answers to requests.
//! Whatever arrives that nobody waits for any more is ended and reaped: a start whose future was dropped
//! leaves nothing behind.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair,
    sockopt,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::failure;
use super::protocol::{
    Answer, Header, Kind, MAX_FDS, MAX_MESSAGE, MAX_REAPS, Reader, Report, Step, VERSION, bytes_of,
};
use super::readiness::watched;
use super::zygote::{Groups, ZygoteId};
use crate::error::{Error, ErrorKind};

/// The init, as the build script made it.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
/// How long a zygote may take to set itself up.
const LAUNCH_LIMIT: Duration = Duration::from_secs(10);
/// Room for several of the largest requests in the socket.
const SEND_BUFFER: usize = 5 * MAX_MESSAGE;

/// Puts the init into a sealed file in memory, so that nothing lies on disk and nobody can change what
/// zygotes run.
pub(super) fn init_file() -> Result<OwnedFd, Error> {
    let refuse = |found: &'static str, errno: Errno| {
        let error = Error::new(ErrorKind::FailedPrecondition, "start a zygote", found)
            .caused_by(io::Error::from(errno));
        if errno == Errno::ACCESS { error.remedy("set the sysctl vm.memfd_noexec to 0 or 1") } else { error }
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"sk-zygote", flags | MemfdFlags::EXEC) {
        // Before 6.3 the flag is unknown, and every such file executable.
        Err(Errno::INVAL) => memfd_create(c"sk-zygote", flags),
        other => other,
    };
    let file = file.map_err(|errno| match errno {
        Errno::ACCESS => refuse("this machine forbids executable files in memory (vm.memfd_noexec=2)", errno),
        _ => refuse("a file in memory was refused", errno),
    })?;
    io::Write::write_all(&mut File::from(file.try_clone().map_err(|error| unwritable(&error))?), INIT)
        .map_err(|error| unwritable(&error))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if fcntl_add_seals(&file, seals | SealFlags::EXEC).is_err() {
        fcntl_add_seals(&file, seals).map_err(|errno| refuse("sealing the init was refused", errno))?;
    }
    Ok(file)
}

fn unwritable(error: &io::Error) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "start a zygote",
        format!("the init does not fit in memory: {error}"),
    )
}

/// A zygote that is not ready yet; without children of its own, it is killed and reaped if it is given up.
struct Unready(Option<Child>);

impl Drop for Unready {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A zygote that has been started and is setting itself up.
pub(super) struct Launching {
    child: Unready,
    pid: u32,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

impl Launching {
    /// Starts one. The host is not forked: without hooks the standard library shares memory with the child
    /// until it has executed, so that the cost does not follow the size of the host.
    pub(super) fn start(init: &OwnedFd, groups: &Groups) -> Result<Self, Error> {
        let refuse = |error: io::Error| {
            Error::new(ErrorKind::FailedPrecondition, "start a zygote", "it cannot be executed")
                .caused_by(error)
                .remedy("/proc must be mounted, and this program must be allowed to make processes")
        };
        let (socket, its_end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| refuse(errno.into()))?;
        // Forced where allowed; else as far as the machine's own limit goes, which is enough for one plan.
        if sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)
                .map_err(|errno| refuse(errno.into()))?;
        }
        let child = Command::new(format!("/proc/self/fd/{}", init.as_raw_fd()))
            .arg0("sandkeeper-zygote")
            .env_clear()
            .stdin(Stdio::from(its_end))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(refuse)?;
        let (pid, child) = (child.id(), Unready(Some(child)));
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number.ok_or(Errno::SRCH).and_then(|number| pidfd_open(number, PidfdFlags::empty()));
        let this = Self { child, pid, pidfd: pidfd.map_err(|errno| refuse(errno.into()))?, socket };
        expose_to_oom_killer(pid);
        let proc = File::open("/proc").map_err(refuse)?;
        let fds = [proc.as_fd(), groups.root.as_fd(), groups.leaf.as_fd(), groups.parent.as_fd()];
        send(this.socket.as_fd(), Kind::SetUp, 0, &[], &fds).map_err(|errno| refuse(errno.into()))?;
        Ok(this)
    }

    /// Waits until it is ready, for some milliseconds. Blocks.
    pub(super) fn finish(self, id: ZygoteId) -> Result<Arc<Process>, Error> {
        self.wait_ready()?;
        Process::new(id, self)
    }

    fn wait_ready(&self) -> Result<(), Error> {
        let limit = Timespec { tv_sec: LAUNCH_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let silent = |found: &'static str| Error::new(ErrorKind::Unavailable, "start a zygote", found);
        let polled = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit));
        if !matches!(polled, Ok(1..)) {
            return Err(silent("it has not answered within 10 s"));
        }
        match receive(self.socket.as_fd()) {
            Ok(Some(Incoming { header, .. })) if header.version != VERSION => {
                Err(failure::launch_failed(Report { step: Step::Understand as u32, errno: 0 }))
            }
            Ok(Some(Incoming { answer, .. })) if answer.report.step == Step::Ready as u32 => Ok(()),
            Ok(Some(Incoming { answer, .. })) => Err(failure::launch_failed(answer.report)),
            Ok(None) | Err(_) => Err(silent("it ended before it was ready")),
        }
    }
}

/// A zygote that is ready.
pub(super) struct Process {
    pub(super) id: ZygoteId,
    pub(super) pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    socket: AsyncFd<OwnedFd>,
    child: Mutex<Option<Child>>,
    /// Whether requests make sense. Never true again once false.
    alive: AtomicBool,
    /// Whether it was told to clean up and end.
    hung_up: AtomicBool,
    next_request: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Newborn, Report>>>>,
    /// Children whose remains may go, as soon as the socket takes it.
    reaps: Mutex<Vec<u32>>,
    reaps_left: Notify,
    /// Where what nobody waits for any more is ended.
    pub(super) runtime: Handle,
}

impl Process {
    fn new(id: ZygoteId, launched: Launching) -> Result<Arc<Self>, Error> {
        let Launching { mut child, pid, pidfd, socket } = launched;
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
            child: Mutex::new(child.0.take()),
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
        body: &[u8],
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
        self.reaps.lock().push(pid);
        if self.send_reaps().is_err() {
            self.reaps_left.notify_one();
        }
    }

    /// Sends what there is to reap. On an error the rest is left for later.
    fn send_reaps(&self) -> Result<(), Errno> {
        let mut reaps = self.reaps.lock();
        while !reaps.is_empty() {
            let count = reaps.len().min(MAX_REAPS);
            let body: Vec<u8> = reaps[..count].iter().flat_map(|pid| pid.to_ne_bytes()).collect();
            match send(self.socket.get_ref().as_fd(), Kind::Reap, 0, &body, &[]) {
                Ok(()) => drop(reaps.drain(..count)),
                Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                // It is dead, and its children are somebody else's.
                Err(_) => reaps.clear(),
            }
        }
        Ok(())
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
        let _ = self.pidfd.readable().await;
        if let Some(mut child) = self.child.lock().take() {
            // An error means that the program has reaped it by itself.
            let _ = child.try_wait();
        }
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
            // Born, and its descriptor was cut off on the way: this program has no number left for it. Its group ends it.
            None if answer.pid != 0 => Err(Report { step: Step::Clone as u32, errno: libc::EMFILE as u32 }),
            _ => Err(answer.report),
        };
        if let Some(sender) = self.waiting.lock().remove(&header.request) {
            // If the receiver is gone, the newborn is dropped here, and ended.
            let _ = sender.send(outcome);
        }
    }

    /// Tells the zygote that its host is gone: it ends all sandboxes, and itself.
    pub(super) fn hang_up(&self) {
        self.hung_up.store(true, Ordering::Release);
        self.alive.store(false, Ordering::Release);
        let _ = shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// Takes whatever shields this program from the kernel's out-of-memory killer away from a zygote, and so from what runs in its
/// sandboxes, which would inherit it.
fn expose_to_oom_killer(pid: u32) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    if own.and_then(|score| score.trim().parse::<i32>().ok()).is_some_and(|score| score < 0)
        && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0")
    {
        tracing::warn!(%error, "sandboxes share this program's protection from the out-of-memory killer");
    }
}

impl Drop for Process {
    /// If its task was not allowed to end, as when the runtime is shut down, somebody else must reap it.
    fn drop(&mut self) {
        self.hang_up();
        let Some(mut child) = self.child.lock().take() else { return };
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
    if let Ok(watched) = watched(pidfd, Interest::READABLE) {
        let _ = watched.readable().await;
    }
    zygote.reap(pid);
}

/// A message from a zygote.
struct Incoming {
    header: Header,
    answer: Answer,
    fd: Option<OwnedFd>,
}

fn send(
    socket: BorrowedFd<'_>,
    kind: Kind,
    request: u64,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let header = Header { version: VERSION, kind: kind as u32, request };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let parts = [IoSlice::new(bytes_of(&header)), IoSlice::new(body)];
    loop {
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one message; nothing when the zygote has closed its end.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<Incoming>, Errno> {
    let mut bytes = [0; size_of::<Header>() + size_of::<Answer>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut part = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut reader = Reader::new(&bytes[..received.bytes]);
    match (reader.value(), reader.value()) {
        (Some(header), Some(answer)) => Ok(Some(Incoming { header, answer, fd })),
        _ => Err(Errno::BADMSG),
    }
}
