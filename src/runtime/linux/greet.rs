//! Comes back to the zygotes that an earlier host has left: connects, asks who they are, and whose parents.
//!
//! All that is said here is of the protocol's base, which every version speaks.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::channel::Connection;
use super::launch::make_room;
use super::message::{receive_bytes, send};
use super::protocol::{Child, Header, Kind, Listing, MAX_LISTED, Reader, Welcome};
use super::state_dir::{Doorbell, Sockets};

/// How long all of them together may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an earlier host has left.
#[derive(Default)]
pub(super) struct Greeted {
    pub(super) zygotes: Vec<Greeting>,
    /// Those that are left alone, and why.
    pub(super) left_alone: Vec<String>,
}

/// A zygote that has answered.
pub(super) struct Greeting {
    pub(super) version: u32,
    /// Whether it makes nothing any more, after a host of another version has come by.
    pub(super) retired: bool,
    /// Whether it has the rights of one ordinary user.
    pub(super) one_user: bool,
    pub(super) connection: Connection,
    pub(super) children: Vec<Child>,
}

/// Why a zygote is not taken over.
enum Refusal {
    /// It has ended.
    Dead,
    /// It is there, and is left alone.
    LeftAlone(&'static str),
}

/// Greets all at once. Blocks, for [`PATIENCE`] at most, and usually for less than a millisecond each.
pub(super) fn greet(sockets: &Arc<Sockets>) -> Greeted {
    let late = Instant::now() + PATIENCE;
    let mut greeted = Greeted::default();
    let refuse = |greeted: &mut Greeted, name: &str, refusal: Refusal| match refusal {
        Refusal::Dead => sockets.remove(name),
        Refusal::LeftAlone(why) => {
            tracing::warn!(socket = name, why, "a zygote is left alone");
            greeted.left_alone.push(format!("{name}: {why}"));
        }
    };
    let mut asked = Vec::new();
    for name in sockets.names() {
        let connected = sockets.connect(&name).map_err(refusal_of).and_then(|socket| {
            send(socket.as_fd(), Kind::Hello, 0, [&[], &[]], &[]).map_err(refusal_of)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => asked.push((name, socket)),
            Err(refusal) => refuse(&mut greeted, &name, refusal),
        }
    }
    for (name, socket) in asked {
        match take_over(sockets, &name, socket, late) {
            Ok(greeting) => greeted.zygotes.push(greeting),
            Err(refusal) => refuse(&mut greeted, &name, refusal),
        }
    }
    greeted
}

fn refusal_of(error: Errno) -> Refusal {
    match error {
        Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET | Errno::PIPE => Refusal::Dead,
        Errno::AGAIN => Refusal::LeftAlone("it does not answer"),
        _ => Refusal::LeftAlone("it cannot be reached"),
    }
}

fn take_over(
    sockets: &Arc<Sockets>,
    name: &str,
    socket: OwnedFd,
    late: Instant,
) -> Result<Greeting, Refusal> {
    let mut bytes = vec![0; size_of::<Header>() + size_of::<Listing>() + MAX_LISTED * size_of::<Child>()];
    let (version, mut body) = answer(&socket, Kind::Hello, &mut bytes, late)?;
    let welcome: Welcome = body.value().ok_or(Refusal::LeftAlone("its answer makes no sense"))?;
    // As the kernel numbers it here, who listens on that socket.
    let peer = sockopt::socket_peercred(&socket).map_err(refusal_of)?.pid;
    if peer.as_raw_nonzero().get() as u32 != welcome.pid {
        // Its children's numbers would be other processes' here.
        return Err(Refusal::LeftAlone("it is in another PID namespace"));
    }
    let pidfd = pidfd_of(welcome.pid)?;
    // What it answers from here on tells that it lives, so that its number was its own when it was opened.
    let children = list(&socket, &mut bytes, late)?;
    make_room(&socket).map_err(refusal_of)?;
    let doorbell = Doorbell { sockets: Arc::clone(sockets), name: name.to_owned() };
    let connection = Connection { pid: welcome.pid, pidfd, socket, child: None, doorbell: Some(doorbell) };
    let (retired, one_user) = (welcome.retired != 0, welcome.one_user != 0);
    Ok(Greeting { version, retired, one_user, connection, children })
}

fn pidfd_of(pid: u32) -> Result<OwnedFd, Refusal> {
    let number =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Refusal::LeftAlone("its number is none"))?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(pidfd),
        Err(Errno::SRCH) => Err(Refusal::Dead),
        Err(_) => Err(Refusal::LeftAlone("there is no descriptor for it")),
    }
}

fn list(socket: &OwnedFd, bytes: &mut [u8], late: Instant) -> Result<Vec<Child>, Refusal> {
    let mut children = Vec::new();
    loop {
        let from = children.len() as u32;
        send(socket.as_fd(), Kind::List, 0, [&from.to_ne_bytes(), &[]], &[]).map_err(refusal_of)?;
        let (_, mut body) = answer(socket, Kind::List, bytes, late)?;
        let listing: Option<Listing> = body.value();
        let some = listing.and_then(|listing| body.values::<Child>(listing.count));
        let (Some(listing), Some(some)) = (listing, some) else {
            return Err(Refusal::LeftAlone("its list makes no sense"));
        };
        children.extend(some);
        if listing.count == 0 || children.len() >= listing.children as usize {
            return Ok(children);
        }
    }
}

/// Waits for an answer of this kind: the version of who answers, and the body.
fn answer<'a>(
    socket: &OwnedFd,
    kind: Kind,
    bytes: &'a mut [u8],
    late: Instant,
) -> Result<(u32, Reader<'a>), Refusal> {
    let left = late.saturating_duration_since(Instant::now());
    let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    // Interrupted or not: the receiving does not wait, and finds nothing if there is nothing.
    let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit));
    let (length, _) = receive_bytes(socket.as_fd(), bytes).map_err(refusal_of)?;
    if length == 0 {
        return Err(Refusal::Dead);
    }
    let mut reader = Reader::new(&bytes[..length]);
    match reader.value::<Header>() {
        Some(header) if header.kind == kind as u32 => Ok((header.version, reader)),
        _ => Err(Refusal::LeftAlone("its answer makes no sense")),
    }
}
