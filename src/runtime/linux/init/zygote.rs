//! The zygote: one request at a time, each answered at once.

use core::ffi::c_char;
use core::mem::size_of;

use crate::children::Children;
use crate::hosts::Staying;
use crate::line::Line;
use crate::protocol::{
    Answer, Child, Decoded, Header, Kind, Listing, MAX_FDS, MAX_LISTED, MAX_MESSAGE, Reader, Report, Step, VERSION,
    Welcome, ZYGOTE_NAME, bytes_of, flag,
};
use crate::sys::{self, Errno, Fd, ns};
use crate::users::{self, Users};
use crate::{At, Failure, builder, exec, leader, orphan, report_of, template};

// Descriptors a zygote holds. They fill the numbers below `RECEIVED`, so that what comes along with a request
// lies above them, and a child can put it at its place by number without treading on another.
pub(crate) const CONTROL: Fd = 0;
/// /dev/null, for reading and writing.
pub(crate) const NULL: Fd = 1;
/// The same, so that the number is taken.
const NULL_AGAIN: Fd = 2;
/// The host's /proc.
pub(crate) const PROC: Fd = 3;
/// The keeper's root cgroup, the zygotes' leaf in it, and where to go when all is over.
pub(crate) const ROOT: Fd = 4;
pub(crate) const LEAF: Fd = 5;
pub(crate) const PARENT: Fd = 6;
/// The zygote's own mount namespace: the template.
const OWN_MOUNTS: Fd = 7;
/// The zygote's own network namespace: empty, its loopback down. It is where sandboxes without a network are.
const OWN_NETWORK: Fd = 8;
/// The host's network namespace.
const HOST_NETWORK: Fd = 9;
/// In its place, where the zygote is one user's and could not join that: a mount namespace that shows what the host has mounted.
pub(crate) const HOST_MOUNTS: Fd = HOST_NETWORK;
/// Where the next host connects, and the directory that socket is in; for a zygote that is not to stay, /dev/null again.
pub(crate) const LISTEN: Fd = 10;
pub(crate) const SOCKETS: Fd = 11;
/// The first number of what comes along with a request.
const RECEIVED: Fd = 12;

/// How often it looks whether a child that it has killed has ended.
const DISCARD_MILLISECONDS: u32 = 10;

/// The descriptors of one request, closed at its end.
pub(crate) struct Received {
    fds: [Fd; MAX_FDS],
    count: usize,
    taken: usize,
}

impl Received {
    /// The next one in the order of the protocol.
    pub(crate) fn next(&mut self) -> Result<Fd, Failure> {
        let fd = *self.fds[..self.count].get(self.taken).ok_or((Step::Understand, sys::EINVAL))?;
        self.taken += 1;
        Ok(fd)
    }

    /// Puts one more at the end.
    pub(crate) fn add(&mut self, fd: Fd) -> Result<(), Failure> {
        let Some(place) = self.fds.get_mut(self.count) else {
            sys::close(fd);
            return Err((Step::Understand, sys::EINVAL));
        };
        *place = fd;
        self.count += 1;
        Ok(())
    }

    pub(crate) fn next_if(&mut self, there: bool) -> Result<Option<Fd>, Failure> {
        if there { self.next().map(Some) } else { Ok(None) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.fds[..self.count].iter().for_each(|fd| sys::close(*fd));
    }
}

/// Room for one message. A zygote's memory follows the largest message only until that is done.
#[repr(align(4096))]
struct Buffer([u8; MAX_MESSAGE]);
static mut BUFFER: Buffer = Buffer([0; MAX_MESSAGE]);

pub(crate) fn run(users: Users) -> ! {
    let entered = if users == Users::ToBeOne { Err(users::enter_own()) } else { Ok(()) };
    (1..=64).for_each(sys::default_action);
    sys::block_signals(u64::MAX);
    let _ = sys::close_from(3);
    let _ = sys::prctl(sys::pr::SET_DUMPABLE, 0, 0);
    sys::set_name(ZYGOTE_NAME.as_ptr());
    // SAFETY: there is one thread, and this is the only reference ever made to it.
    let buffer = unsafe { &mut (*(&raw mut BUFFER)).0 };
    let set_up = receive(buffer)
        .at(Step::Understand)
        .and_then(|(length, mut fds)| {
            entered?;
            set_up(&buffer[..length], &mut fds, users)
        });
    let report = match &set_up {
        Ok(_) => Report { step: Step::Ready as u32, errno: 0 },
        Err(failure) => report_of(*failure),
    };
    let _ = send_answer(0, Answer { pid: 0, report, padding: 0 }, None);
    let Ok(staying) = set_up else { sys::exit(1) };
    // SAFETY: here, and nowhere else.
    let children = unsafe { Children::new() };
    Zygote { children, staying, users, retired: false }.serve_hosts(buffer)
}

/// What a zygote knows.
struct Zygote {
    children: Children,
    /// Nothing for one that ends with its host, and ends all sandboxes then.
    staying: Option<Staying>,
    /// Whose rights it has.
    users: Users,
    /// Whether it makes nothing any more.
    retired: bool,
}

impl Zygote {
    fn serve_hosts(mut self, buffer: &mut [u8; MAX_MESSAGE]) -> ! {
        loop {
            if self.children.any_discarded() && !sys::wait_readable(CONTROL, DISCARD_MILLISECONDS) {
                self.children.reap_discarded();
                self.end_if_retired();
                continue;
            }
            match receive(buffer) {
                Ok((length @ 1.., fds)) => {
                    self.serve(&buffer[..length], fds);
                    give_back(buffer, length);
                    self.children.reap_orphans();
                    self.end_if_retired();
                }
                Err(sys::EINTR) => {}
                Ok((0, _)) | Err(_) => match &self.staying {
                    Some(staying) => staying.wait_for_host(&mut self.children, self.retired),
                    None => orphan::clean_up(),
                },
            }
        }
    }

    fn end_if_retired(&self) {
        if let Some(staying) = &self.staying
            && self.retired
            && self.children.count() == 0
        {
            staying.end();
        }
    }
}

fn set_up(message: &[u8], fds: &mut Received, users: Users) -> Result<Option<Staying>, Failure> {
    let mut reader = Reader::new(message);
    let header: Header = reader.value().ok_or((Step::Understand, sys::EINVAL))?;
    if header.version != VERSION || header.kind != Kind::SetUp as u32 {
        return Err((Step::Understand, sys::EINVAL));
    }
    // In this order they get the numbers 3 to 6 by themselves.
    for expected in [PROC, ROOT, LEAF, PARENT] {
        if fds.next()? != expected {
            return Err((Step::Understand, sys::EINVAL));
        }
    }
    let stays = !reader.is_empty();
    for place in [LISTEN, SOCKETS] {
        let fd = fds.next_if(stays)?.unwrap_or(NULL_AGAIN);
        sys::duplicate(fd, place, sys::O_CLOEXEC).at(Step::Listen)?;
        if stays {
            sys::close(fd);
        }
    }
    let staying = if stays { Some(Staying::new(reader)?) } else { None };
    sys::write_at(LEAF, c"cgroup.procs", b"0").at(Step::JoinLeaf)?;
    sys::plain(sys::SETSID, [0; 5]).at(Step::Session)?;
    let _ = sys::plain(sys::UMASK, [0o022, 0, 0, 0, 0]);
    // The session keyring that was inherited may hold the host's keys. Kernels without keyrings have nothing
    // to leave.
    let _ = sys::plain(sys::KEYCTL, [1, 0, 0, 0, 0]);
    if users == Users::One {
        sys::unshare(ns::MOUNT).at(Step::OwnMounts)?;
        keep(template::own_namespace(PROC, c"self/ns/mnt"), HOST_MOUNTS).at(Step::OwnMounts)?;
    } else {
        keep(template::own_namespace(PROC, c"self/ns/net"), HOST_NETWORK).at(Step::OwnNetwork)?;
    }
    sys::unshare(ns::NET).at(Step::OwnNetwork)?;
    keep(template::own_namespace(PROC, c"self/ns/net"), OWN_NETWORK).at(Step::OwnNetwork)?;
    template::build(users)?;
    keep(template::own_namespace(PROC, c"self/ns/mnt"), OWN_MOUNTS).at(Step::OwnMounts)?;
    let null = sys::open_at(sys::AT_FDCWD, c"/dev/null", sys::O_RDWR | sys::O_CLOEXEC);
    keep(null, NULL).at(Step::Devices)?;
    sys::duplicate(NULL, NULL_AGAIN, sys::O_CLOEXEC).at(Step::Devices)?;
    if !stays {
        sys::duplicate(NULL, LISTEN, sys::O_CLOEXEC).at(Step::Devices)?;
        sys::duplicate(NULL, SOCKETS, sys::O_CLOEXEC).at(Step::Devices)?;
    }
    // What is kept must not be closed with the message.
    fds.count = 0;
    Ok(staying)
}

/// Puts a descriptor at its number.
fn keep(fd: Result<Fd, Errno>, at: Fd) -> Result<(), Errno> {
    let fd = fd?;
    if fd != at {
        sys::duplicate(fd, at, sys::O_CLOEXEC)?;
        sys::close(fd);
    }
    Ok(())
}

impl Zygote {
    fn serve(&mut self, message: &[u8], fds: Received) {
        let mut reader = Reader::new(message);
        let Some(header) = reader.value::<Header>() else { return };
        let body = &message[size_of::<Header>()..];
        let made = match Kind::from_u32(header.kind) {
            Some(Kind::Reap) => return each_pid(reader, |pid| self.children.reap(pid)),
            Some(Kind::Discard) => return each_pid(reader, |pid| self.children.discard(pid)),
            Some(Kind::Hello) => return self.welcome(header),
            Some(Kind::List) => return self.list(header, reader),
            Some(Kind::Retire) => {
                self.retired = true;
                return;
            }
            Some(Kind::Build | Kind::Spawn | Kind::Exec) if self.retired => Err((Step::Retired, sys::EPERM)),
            Some(Kind::Build | Kind::Spawn | Kind::Exec) if self.children.is_full() => Err((Step::Clone, sys::EAGAIN)),
            Some(Kind::Build) if header.version == VERSION => build(body, fds).map(|child| (child, Child::default())),
            Some(Kind::Spawn) if header.version == VERSION => {
                let child = reader.value::<Child>().ok_or((Step::Understand, sys::EINVAL));
                child.and_then(|child| Ok((spawn(&body[size_of::<Child>()..], fds)?, child)))
            }
            Some(Kind::Exec) if header.version == VERSION => exec::exec(body, fds),
            _ => Err((Step::Understand, sys::EINVAL)),
        };
        match made {
            Ok(((pid, pidfd), child)) => {
                self.children.add(Child { pid, ..child });
                let report = Report { step: Step::Ready as u32, errno: 0 };
                let _ = send_answer(header.request, Answer { pid, report, padding: 0 }, Some(pidfd));
                sys::close(pidfd);
            }
            Err(failure) => {
                let answer = Answer { pid: 0, report: report_of(failure), padding: 0 };
                let _ = send_answer(header.request, answer, None);
            }
        }
    }

    fn welcome(&self, asked: Header) {
        let pid = sys::plain(sys::GETPID, [0; 5]).map_or(0, |pid| pid as u32);
        let welcome = Welcome { pid, children: self.children.count() as u32, retired: u32::from(self.retired), one_user: u32::from(self.users == Users::One) };
        let _ = send(Kind::Hello, asked.request, bytes_of(&welcome), &[], None);
    }

    fn list(&self, asked: Header, mut body: Reader<'_>) {
        let from = body.value::<u32>().unwrap_or(u32::MAX);
        let (count, bytes) = self.children.bytes(from as usize, MAX_LISTED);
        let listing = Listing { children: self.children.count() as u32, count: count as u32 };
        let _ = send(Kind::List, asked.request, bytes_of(&listing), bytes, None);
    }
}

fn each_pid(mut pids: Reader<'_>, mut each: impl FnMut(u32)) {
    while let Some(pid) = pids.value::<u32>() {
        each(pid);
    }
}

fn build(body: &[u8], mut fds: Received) -> Result<(u32, Fd), Failure> {
    let plan = Decoded::new(body).ok_or((Step::Understand, sys::EINVAL))?;
    let group = fds.next()?;
    match sys::clone3(ns::MOUNT, Some(group)).at(Step::Clone)? {
        Some(child) => Ok(child),
        None => builder::run(&plan, fds),
    }
}

fn spawn(body: &[u8], mut fds: Received) -> Result<(u32, Fd), Failure> {
    let plan = Decoded::new(body).ok_or((Step::Understand, sys::EINVAL))?;
    let group = fds.next()?;
    let report = fds.next()?;
    let network = fds.next_if(plan.has(flag::NET_GIVEN))?;
    let built = fds.next_if(plan.has(flag::BUILT))?;
    let release = if plan.has(flag::USERS) { Some(sys::pipe().at(Step::Pipe)?) } else { None };
    let descriptors = leader::Descriptors { report, release, fds: &mut fds };
    let result = spawn_in(&plan, network, built, group, descriptors);
    let result = result.and_then(|child| match release {
        Some([_, write]) => release_child(&plan, child, write),
        None => Ok(child),
    });
    release.iter().flatten().for_each(|fd| sys::close(*fd));
    result
}

/// Clones a leader from within the namespaces that it is to inherit, and comes back.
///
/// A network namespace from the host's pool belongs to the host's user namespace: a child could not join it
/// from its own. And mounts become locked by being copied into a lesser user namespace, so a tree must stand
/// before the clone.
fn spawn_in(
    plan: &Decoded<'_>,
    network: Option<Fd>,
    built: Option<Fd>,
    group: Fd,
    descriptors: leader::Descriptors<'_>,
) -> Result<(u32, Fd), Failure> {
    let mut namespaces = ns::MOUNT | ns::PID | ns::IPC | ns::UTS;
    if plan.has(flag::USERS) {
        namespaces |= ns::USER;
    }
    let network = match network {
        None if plan.has(flag::NET_HOST) => Some(HOST_NETWORK),
        // A builder has made it, since /sys shows the network that its mounter is in.
        None if plan.has(flag::NET_FRESH) && built.is_some() => built,
        None if plan.has(flag::NET_FRESH) => {
            namespaces |= ns::NET;
            None
        }
        network => network,
    };
    let away = enter(network, built);
    let made = match away {
        Ok(()) => sys::clone3(namespaces, Some(group)).at(Step::Clone),
        Err(failure) => Err(failure),
    };
    if matches!(made, Ok(None)) {
        leader::run(plan, descriptors);
    }
    let back = enter(network.map(|_| OWN_NETWORK), built.map(|_| OWN_MOUNTS));
    if back.is_err() {
        // In the wrong namespaces it could only do harm. The host starts another zygote; the sandboxes live
        // on.
        sys::exit(2);
    }
    Ok(made?.unwrap_or((0, -1)))
}

fn enter(network: Option<Fd>, mounts: Option<Fd>) -> Result<(), Failure> {
    if let Some(fd) = network {
        sys::set_ns(fd, ns::NET).at(Step::JoinNetwork)?;
    }
    if let Some(fd) = mounts {
        sys::set_ns(fd, ns::MOUNT).at(Step::JoinMounts)?;
    }
    Ok(())
}

/// Writes the child's maps, which only its parent namespace may, and lets it go on.
fn release_child(plan: &Decoded<'_>, child: (u32, Fd), write: Fd) -> Result<(u32, Fd), Failure> {
    let mapped = map_ids(plan, child.0);
    if let Err(errno) = mapped {
        // It waits for us and nothing else, so its end does not keep us.
        let _ = sys::kill(child.0, sys::SIGKILL);
        let _ = sys::wait(child.0 as i32, false);
        sys::close(child.1);
        return Err((Step::Users, errno));
    }
    let _ = sys::write(write, b"g");
    Ok(child)
}

fn map_ids(plan: &Decoded<'_>, pid: u32) -> Result<(), Errno> {
    let mut line = Line::new();
    for number in [0, plan.fixed.host_start, plan.fixed.id_count] {
        line.number(number);
        line.bytes(b" ");
    }
    for name in [b"/gid_map\0", b"/uid_map\0"] {
        let mut path = Line::new();
        path.number(pid);
        path.bytes(name);
        let path = core::ffi::CStr::from_bytes_until_nul(path.text()).map_err(|_| sys::EINVAL)?;
        sys::write_at(PROC, path, line.text())?;
    }
    Ok(())
}

#[repr(C)]
struct Vector {
    base: *mut u8,
    length: usize,
}

#[repr(C)]
struct MessageHeader {
    name: usize,
    name_length: usize,
    vectors: *mut Vector,
    vector_count: usize,
    control: *mut u8,
    control_length: usize,
    flags: u64,
}

/// A control message of descriptors: its header, and room.
#[repr(C, align(8))]
struct Control<const N: usize> {
    length: usize,
    level: u32,
    kind: u32,
    fds: [Fd; N],
}

const CONTROL_HEADER: usize = 16;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;

/// Receives one message, and what comes along. Its length is 0 when the host is gone.
fn receive(buffer: &mut [u8]) -> Result<(usize, Received), Errno> {
    const CLOSE_ON_EXEC: usize = 0x4000_0000;
    const TRUNCATED: u64 = 0x20 | 0x8;
    let mut control = Control { length: 0, level: 0, kind: 0, fds: [-1; MAX_FDS] };
    let mut vector = Vector { base: buffer.as_mut_ptr(), length: buffer.len() };
    let mut message = MessageHeader {
        name: 0,
        name_length: 0,
        vectors: &raw mut vector,
        vector_count: 1,
        control: (&raw mut control).cast(),
        control_length: size_of::<Control<MAX_FDS>>(),
        flags: 0,
    };
    // SAFETY: the header describes the buffer and the control structure, both borrowed here and writable.
    let length = unsafe {
        sys::call(sys::RECVMSG, [CONTROL as usize, &raw mut message as usize, CLOSE_ON_EXEC, 0, 0])
    }?;
    let has_fds =
        message.control_length >= CONTROL_HEADER && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
    let count = if has_fds { control.length.saturating_sub(CONTROL_HEADER) / size_of::<Fd>() } else { 0 };
    let received = Received { fds: control.fds, count: count.min(MAX_FDS), taken: 0 };
    // Half a message is none; its length of one byte is refused by whoever decodes it.
    Ok((if message.flags & TRUNCATED != 0 { 1 } else { length }, received))
}

/// Sends an answer, with a descriptor if there is one.
fn send_answer(request: u64, answer: Answer, fd: Option<Fd>) -> sys::Outcome {
    send(Kind::Answer, request, bytes_of(&answer), &[], fd)
}

/// Sends a message of two parts.
fn send(kind: Kind, request: u64, first: &[u8], second: &[u8], fd: Option<Fd>) -> sys::Outcome {
    let header = Header { version: VERSION, kind: kind as u32, request };
    let mut control = Control {
        length: CONTROL_HEADER + 4,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [fd.unwrap_or(-1), 0],
    };
    let mut vectors = [bytes_of(&header), first, second]
        .map(|part| Vector { base: part.as_ptr().cast_mut(), length: part.len() });
    let message = MessageHeader {
        name: 0,
        name_length: 0,
        vectors: vectors.as_mut_ptr(),
        vector_count: vectors.len(),
        control: (&raw mut control).cast(),
        control_length: if fd.is_some() { size_of::<Control<2>>() } else { 0 },
        flags: 0,
    };
    // A signal for a host that is gone is blocked; the next message to receive is its end.
    // SAFETY: the header describes the parts, which are only read, and the control structure, all alive.
    unsafe { sys::call(sys::SENDMSG, [CONTROL as usize, &raw const message as usize, 0, 0, 0]) }
}

/// Gives the memory of a large message back.
fn give_back(buffer: &mut [u8], length: usize) {
    const KEPT: usize = 16 * 1024;
    const DONT_NEED: usize = 4;
    if length > KEPT {
        let start = buffer[KEPT..].as_mut_ptr();
        // SAFETY: whole pages of the buffer, which hold nothing any more and read as zeros afterwards.
        let _ = unsafe { sys::call(sys::MADVISE, [start as usize, MAX_MESSAGE - KEPT, DONT_NEED, 0, 0]) };
    }
}

const _: () = assert!(LISTEN == HOST_NETWORK + 1 && RECEIVED == SOCKETS + 1);

/// A C string of a plan, whose texts end in NUL.
pub(crate) fn pointer(text: &[u8]) -> *const c_char {
    text.as_ptr().cast()
}
