//! Sending and receiving packets of the [protocol](super::protocol).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::protocol::{Answer, Header, Kind, MAX_FDS, Reader, VERSION, bytes_of};

/// A message from a zygote.
pub(super) struct Incoming {
    pub(super) header: Header,
    pub(super) answer: Answer,
    pub(super) fd: Option<OwnedFd>,
}

/// Sends a message whose body is these two parts.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    kind: Kind,
    request: u64,
    body: [&[u8]; 2],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let header = Header { version: VERSION, kind: kind as u32, request };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let parts = [bytes_of(&header), body[0], body[1]].map(IoSlice::new);
    loop {
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one answer; nothing when the zygote has closed its end.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Incoming>, Errno> {
    let mut bytes = [0; size_of::<Header>() + size_of::<Answer>()];
    let (length, fd) = receive_bytes(socket, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let mut reader = Reader::new(&bytes[..length]);
    match (reader.value(), reader.value()) {
        (Some(header), Some(answer)) => Ok(Some(Incoming { header, answer, fd })),
        _ => Err(Errno::BADMSG),
    }
}

/// Receives one message: its length, 0 at the end, and the descriptor beside it.
pub(super) fn receive_bytes(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut part = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, fd))
}
