//! Starting a zygote.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, prlimit};

use super::channel::{Connection, Process};
use super::failure;
use super::message::{self, Incoming};
use super::protocol::{Kind, MAX_MESSAGE, Report, Stay, Step, VERSION, bytes_of};
use super::state_dir::{Doorbell, Sockets};
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
    doorbell: Option<Doorbell>,
    one_user: bool,
}

impl Launching {
    /// Starts one. The host is not forked: without hooks the standard library shares memory with the child
    /// until it has executed, so that the cost does not follow the size of the host.
    ///
    /// With `one_user` it makes itself a user namespace first. With `sockets` it gets a socket of its own there, and stays when its host is gone.
    pub(super) fn start(
        init: &OwnedFd,
        groups: &Groups,
        one_user: bool,
        sockets: Option<&Arc<Sockets>>,
    ) -> Result<Self, Error> {
        let refuse = |error: io::Error| {
            Error::new(ErrorKind::FailedPrecondition, "start a zygote", "it cannot be executed")
                .caused_by(error)
                .remedy("/proc must be mounted, and this program must be allowed to make processes")
        };
        let (socket, its_end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| refuse(errno.into()))?;
        make_room(&socket).map_err(|errno| refuse(errno.into()))?;
        let child = Command::new(format!("/proc/self/fd/{}", init.as_raw_fd()))
            .arg0("sandkeeper-zygote")
            .args(one_user.then_some("of-one-user"))
            .env_clear()
            .stdin(Stdio::from(its_end))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(refuse)?;
        let (pid, child) = (child.id(), Unready(Some(child)));
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number.ok_or(Errno::SRCH).and_then(|number| pidfd_open(number, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(|errno| refuse(errno.into()))?;
        expose_to_oom_killer(pid);
        lower_descriptor_limit(pid);
        let proc = File::open("/proc").map_err(refuse)?;
        let mut fds = vec![proc.as_fd(), groups.root.as_fd(), groups.leaf.as_fd(), groups.parent.as_fd()];
        let home = sockets.map(|sockets| sockets.bind()).transpose()?;
        let mut body = Vec::new();
        if let Some((listening, doorbell)) = &home {
            let sockets = &doorbell.sockets;
            let linger_milliseconds = u32::try_from(sockets.linger.as_millis()).unwrap_or(u32::MAX >> 1);
            body.extend(bytes_of(&Stay { linger_milliseconds, padding: 0 }));
            body.extend(doorbell.name.as_bytes());
            body.push(0);
            fds.extend([listening.as_fd(), sockets.dir.as_fd()]);
        }
        message::send(socket.as_fd(), Kind::SetUp, 0, [&body, &[]], &fds)
            .map_err(|errno| refuse(errno.into()))?;
        drop(fds);
        Ok(Self { child, pid, pidfd, socket, doorbell: home.map(|(_, doorbell)| doorbell), one_user })
    }

    /// Waits until it is ready, for some milliseconds. Blocks.
    pub(super) fn finish(self, id: ZygoteId) -> Result<Arc<Process>, Error> {
        let ready = self.wait_ready();
        let Self { mut child, pid, pidfd, socket, doorbell, .. } = self;
        if let (Err(_), Some(doorbell)) = (&ready, &doorbell) {
            doorbell.remove();
        }
        ready?;
        Process::new(id, Connection { pid, pidfd, socket, child: child.0.take(), doorbell })
    }

    fn wait_ready(&self) -> Result<(), Error> {
        let limit = Timespec { tv_sec: LAUNCH_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let silent = |found: &'static str| Error::new(ErrorKind::Unavailable, "start a zygote", found);
        let polled = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit));
        if !matches!(polled, Ok(1..)) {
            return Err(silent("it has not answered within 10 s"));
        }
        match message::receive(self.socket.as_fd()) {
            Ok(Some(Incoming { header, .. })) if header.version != VERSION => {
                Err(failure::launch_failed(Report { step: Step::Understand as u32, errno: 0 }, self.one_user))
            }
            Ok(Some(Incoming { answer, .. })) if answer.report.step == Step::Ready as u32 => Ok(()),
            Ok(Some(Incoming { answer, .. })) => Err(failure::launch_failed(answer.report, self.one_user)),
            Ok(None) | Err(_) => Err(silent("it ended before it was ready")),
        }
    }
}

/// Makes room for requests in a socket: forced where allowed; else as far as the machine's own limit goes, which is enough for
/// one plan.
pub(super) fn make_room(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER))
}

/// What programs expect the soft limit on descriptors to be: some close all below it, and `select(2)` knows no more.
const USUAL_DESCRIPTORS: u64 = 1_024;

/// A host with many sandboxes raises its own limit. What runs in them inherits the usual one, and may raise it likewise.
fn lower_descriptor_limit(pid: u32) {
    let own = getrlimit(Resource::Nofile);
    if own.current.is_some_and(|soft| soft <= USUAL_DESCRIPTORS) {
        return;
    }
    let usual = Rlimit { current: Some(USUAL_DESCRIPTORS), maximum: own.maximum };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(Err(error)) = number.map(|number| prlimit(Some(number), Resource::Nofile, usual)) {
        tracing::warn!(%error, "sandboxes begin with this program's own limit on descriptors");
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
