//! Runs another program inside a sandbox that runs.
//!
//! ```text
//! host                        zygote            middle child               worker
//!  │ Exec, cgroup, pidfd, pipes  │                  │                        │
//!  ├────────────────────────────▶│ clone3 ─────────▶│ joins the namespaces   │
//!  │◀── Answer: its pidfd ───────┤                  │ clone ────────────────▶│ gives up rights, executes
//!  │◀────────────── Executed, the worker's number ──┤                        │
//!  │ leash closed: kill ───────────────────────────▶│ kill ─────────────────▶┴
//!  │ reads how it ended from the zombie             ┴
//!  │ Reap                        │
//! ```
//!
//! The middle child is not of the sandbox's PID namespace, so nothing inside can reach it; it is in the sandbox's cgroup, so
//! that it is frozen and ended with it. See `init/exec.rs`.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid, fchown};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::channel::{Process, Unasked};
use super::exit::{parse_zombie, reason_of_status};
use super::failure::{self, Attempt};
use super::plan::IdMap;
use super::protocol::{Kind, Report, Step, flag};
use super::readiness::Ending;
use super::sandbox::{Leader, Sandbox};
use super::{Inner, freeze, group, kernel_error, plan, sys, zygote};
use crate::error::{Error, ErrorKind};
use crate::model::ExitReason;
use crate::runtime::{Exec, ExecRequest, Instance};
use crate::spec::{ProcessSpec, SandboxSpec, Stdio};

/// What an error says was tried.
const TRIED: &str = "run a program in";

/// How long the middle child has to end what it was told to, before it is ended itself: one that is frozen hears nothing. And
/// how long a descriptor is waited for to read how it ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the processes of a program are looked for, in case they make others meanwhile.
const ROUNDS: usize = 16;

/// Runs a program. Returns when it has been executed. If the future is dropped, whatever has come of it is killed.
pub(super) async fn exec(
    inner: &Arc<Inner>,
    instance: &Arc<Instance>,
    request: &ExecRequest,
) -> Result<Exec, Error> {
    inner.check_open()?;
    check(&instance.spec, &request.process)?;
    inner.machine.rights.check_process(&request.process)?;
    let (_wanted, unwanted) = oneshot::channel::<Infallible>();
    let (inner, instance, request) = (Arc::clone(inner), Arc::clone(instance), request.clone());
    // A task of its own: a program that has begun to run when it is given up is known by then, with all it has started. If
    // nobody takes what comes of the task, that is dropped, and so killed.
    let task = tokio::spawn(async move { begin(&inner, &instance, &request, unwanted).await });
    task.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, TRIED, "its task ended").caused_by(error))
    })
}

async fn begin(
    inner: &Arc<Inner>,
    instance: &Arc<Instance>,
    request: &ExecRequest,
    mut unwanted: oneshot::Receiver<Infallible>,
) -> Result<Exec, Error> {
    let sandbox = inner.find(instance).await?.ok_or_else(not_running)?;
    let leader = sandbox.running().filter(|leader| !leader.has_ended()).ok_or_else(not_running)?;
    sandbox.check_not_ending(TRIED)?;
    let group = open_group(inner, &sandbox).await?;
    let (ours, theirs) = Pipes::make(inner.id_map(&sandbox), request).map_err(refused)?;
    let zygote = zygote_for(inner, &leader)?;
    let born = {
        let mut asking = pin!(ask(
            &zygote,
            (&sandbox, inner.id_map(&sandbox)),
            &leader,
            request,
            &group,
            theirs,
            &ours.report
        ));
        tokio::select! {
            born = &mut asking => born,
            () = sandbox.until_ending() => return Err(sandbox.is_ending(TRIED)),
            _ = &mut unwanted => match tokio::time::timeout(PATIENCE, asking).await {
                Ok(born) => born,
                // It waits for something else than us, such as a file system, and has not run yet.
                Err(_) => return Err(Error::new(ErrorKind::Cancelled, TRIED, "its caller has gone")),
            }
        }
    };
    let (child, pid) = born.map_err(|error| if leader.has_ended() { not_running() } else { error })?;
    crate::failpoint::reach("linux.after-program");
    let (middle, zygote) = (child.pid, Arc::clone(&child.zygote));
    if middle <= 1 || pid <= 1 {
        return Err(Error::new(ErrorKind::Internal, TRIED, format!("its processes are {middle} and {pid}")));
    }
    let pidfd = child.keep().ok_or_else(lost)?;
    let Pipes { stdin, stdout, stderr, leash, .. } = ours;
    let is_wanted = matches!(unwanted.try_recv(), Err(TryRecvError::Empty));
    let leash = if request.detached && is_wanted { let_go(leash) } else { Some(leash) };
    let (kept, dropped) = oneshot::channel();
    let (sender, ended) = oneshot::channel();
    let watch = Watch { inner: Arc::downgrade(inner), sandbox, zygote, middle, pid, leash, dropped };
    watch.zygote.runtime.clone().spawn(watch.until_ended(pidfd, sender));
    let exit = async move {
        // Whoever drops this future drops that, and so is heard.
        let _kept: oneshot::Sender<Infallible> = kept;
        // Not told only if the runtime is shut down.
        ended.await.unwrap_or(ExitReason::Lost)
    };
    Ok(Exec { pid, stdin, stdout, stderr, exit: Box::pin(exit) })
}

/// Refuses what a main process could not be either.
fn check(spec: &SandboxSpec, process: &ProcessSpec) -> Result<(), Error> {
    let process = Some(ProcessSpec { stdio: Stdio::default(), ..process.clone() });
    let isolation = spec.isolation.clone();
    SandboxSpec { process, isolation, ..SandboxSpec::default() }.check(TRIED)
}

fn not_running() -> Error {
    Error::new(ErrorKind::FailedPrecondition, TRIED, "it does not run, or not any more")
}

/// Who can make a child that enters the sandbox: any zygote; without root, only the one in whose user namespace it is.
fn zygote_for(inner: &Inner, leader: &Leader) -> Result<Arc<Process>, Error> {
    let zygotes = inner.zygotes()?;
    if inner.one_user().is_none() {
        return zygotes.pick().ok_or_else(lost);
    }
    let own = leader.zygote.and_then(|id| zygotes.find(id)).filter(|process| process.is_alive());
    own.ok_or_else(|| {
        let found = "its zygote has ended, and without root no other may enter its namespaces";
        Error::new(ErrorKind::FailedPrecondition, TRIED, found).remedy("stop it, and start it again")
    })
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, TRIED, "its zygote has ended")
        .remedy("try again")
        .retry_after(Duration::from_millis(20))
}

fn refused(error: io::Error) -> Error {
    kernel_error(TRIED, "a pipe for its input or output was refused", error)
}

/// Opens the group of a sandbox that is not paused.
async fn open_group(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Result<OwnedFd, Error> {
    let (tree, sandbox) = (Arc::clone(&inner.tree), Arc::clone(sandbox));
    let open = move || {
        let number = sandbox.state().group;
        let group = number.and_then(|number| tree.open(&sandbox.instance.key, number).transpose());
        let group = group.transpose().map_err(|error| kernel_error(TRIED, "its cgroup", error))?;
        let group = group.ok_or_else(not_running)?;
        // What is asked to freeze counts as frozen: the program would be born into it and never get to run.
        if freeze::is_asked(&group) || freeze::is_frozen(&tree, &sandbox) {
            return Err(
                Error::new(ErrorKind::FailedPrecondition, TRIED, "it is paused").remedy("resume it first")
            );
        }
        Ok(group)
    };
    inner.workers.run(open).await?
}

/// Our ends of the pipes of one program.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    report: pipe::Receiver,
    leash: OwnedFd,
}

/// The other ends.
struct TheirEnds {
    report: OwnedFd,
    leash: OwnedFd,
    stdio: Vec<OwnedFd>,
    flags: u32,
}

impl Pipes {
    fn make(ids: Option<IdMap>, request: &ExecRequest) -> io::Result<(Self, TheirEnds)> {
        let new = || Ok::<_, io::Error>(pipe_with(PipeFlags::CLOEXEC)?);
        let user = &request.process.user;
        let start = ids.map_or(0, |ids| ids.host_start);
        let is_own = ids.is_some_and(|ids| ids.one_user);
        let owner = (Uid::from_raw(start + user.uid), Gid::from_raw(start + user.gid));
        // Whoever runs there may open them again, through /dev/stdout.
        let own = |fd: &OwnedFd| if is_own { Ok(()) } else { fchown(fd, Some(owner.0), Some(owner.1)) };
        let (report, their_report) = new()?;
        let (their_leash, leash) = new()?;
        let mut this = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            report: pipe::Receiver::from_owned_fd(report)?,
            leash,
        };
        let mut theirs = TheirEnds { report: their_report, leash: their_leash, stdio: Vec::new(), flags: 0 };
        if request.stdin {
            let (read, write) = new()?;
            own(&read)?;
            this.stdin = Some(pipe::Sender::from_owned_fd(write)?);
            theirs.add(read, flag::STDIN);
        }
        if !request.detached {
            for (place, flag) in [(&mut this.stdout, flag::STDOUT), (&mut this.stderr, flag::STDERR)] {
                let (read, write) = new()?;
                own(&write)?;
                *place = Some(pipe::Receiver::from_owned_fd(read)?);
                theirs.add(write, flag);
            }
        }
        Ok((this, theirs))
    }
}

impl TheirEnds {
    fn add(&mut self, fd: OwnedFd, flag: u32) {
        self.stdio.push(fd);
        self.flags |= flag;
    }
}

/// Has a zygote make the middle child, and waits until the program has been executed. Says its number.
async fn ask(
    zygote: &Arc<Process>,
    (sandbox, ids): (&Sandbox, Option<IdMap>),
    leader: &Leader,
    request: &ExecRequest,
    group: &OwnedFd,
    theirs: TheirEnds,
    report: &pipe::Receiver,
) -> Result<(super::channel::Newborn, u32), Error> {
    let instance = &sandbox.instance;
    let flags = theirs.flags | if request.detached { flag::DETACHED } else { 0 };
    let body = plan::exec_body(&instance.spec, &request.process, ids, flags)?;
    let mut fds: Vec<BorrowedFd<'_>> =
        vec![group.as_fd(), theirs.report.as_fd(), leader.pidfd.as_fd(), theirs.leash.as_fd()];
    fds.extend(theirs.stdio.iter().map(AsFd::as_fd));
    let answer = zygote.request(Kind::Exec, [&body, &[]], &fds).await;
    drop(fds);
    drop(theirs);
    let program = request.process.args.first().map(String::as_str);
    let attempt = Attempt { tried: TRIED, key: &instance.key, program, targets: &[] };
    let child = answer.map_err(not_asked)?.map_err(|report| failure::failed(&attempt, report))?;
    match zygote::read_report(report).await {
        Some(Report { step, errno: pid }) if step == Step::Executed as u32 => Ok((child, pid)),
        Some(report) => Err(failure::failed(&attempt, report)),
        None => {
            Err(Error::new(ErrorKind::Aborted, TRIED, "the program was killed while it was being set up"))
        }
    }
}

fn not_asked(unasked: Unasked) -> Error {
    match unasked {
        Unasked::Lost => lost(),
        Unasked::Refused(error) => {
            Error::new(ErrorKind::ResourceExhausted, TRIED, "the request to a zygote was refused")
                .caused_by(error)
                .remedy("raise net.core.wmem_max, or give this program CAP_NET_ADMIN")
        }
    }
}

/// Lets a program go on when we are gone.
fn let_go(leash: OwnedFd) -> Option<OwnedFd> {
    // If the middle child has ended, there is nobody to tell.
    let _ = rustix::io::write(&leash, b"d");
    None
}

/// Waits for the end of one program, and ends it when nobody wants it any more.
struct Watch {
    inner: Weak<Inner>,
    sandbox: Arc<Sandbox>,
    zygote: Arc<Process>,
    /// The middle child, and the program.
    middle: u32,
    pid: u32,
    /// Nothing for a detached program, which nobody ends.
    leash: Option<OwnedFd>,
    /// Nothing ever comes from it but its end.
    dropped: oneshot::Receiver<Infallible>,
}

impl Watch {
    async fn until_ended(self, pidfd: OwnedFd, sender: oneshot::Sender<ExitReason>) {
        let Self { inner, sandbox, zygote, middle, pid, mut leash, mut dropped } = self;
        // Watched or not, it is waited for: nobody else has its zombie reaped.
        let process = Ending::of(pidfd);
        let wanted = tokio::select! {
            () = process.ended() => true,
            _ = &mut dropped, if leash.is_some() => false,
        };
        if !wanted {
            kill_all(&inner, &sandbox, pid).await;
            drop(leash.take());
            if tokio::time::timeout(PATIENCE, process.ended()).await.is_err() {
                let _ = pidfd_send_signal(process.pidfd(), Signal::KILL);
            }
            process.ended().await;
        }
        // Its descriptor first: it may be the one that is lacking now.
        drop(leash);
        let reason = reason(middle, process.pidfd()).await;
        zygote.reap(middle);
        // Given back before anybody is told.
        drop(process);
        // Whoever asked may have gone.
        let _ = sender.send(reason);
    }
}

/// How a program ended, as its middle child, which has ended as well, tells it.
async fn reason(middle: u32, pidfd: &OwnedFd) -> ExitReason {
    let start = Instant::now();
    let stat = loop {
        match std::fs::read(format!("/proc/{middle}/stat")) {
            Ok(stat) => break Some(stat),
            Err(error) if lacks_descriptors(&error) && start.elapsed() < PATIENCE => {
                tokio::time::sleep(PATIENCE / 50).await;
            }
            Err(_) => break None,
        }
    };
    let told = stat.and_then(|stat| parse_zombie(&stat, true));
    // Asked last: as long as it is not reaped, its number is its own.
    let told = told.filter(|_| sys::is_unreaped(pidfd)).or_else(|| sys::status_of_reaped(pidfd));
    told.map_or(ExitReason::Lost, reason_of_status)
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Kills a program and whatever it has started, as far as that can be found.
async fn kill_all(inner: &Weak<Inner>, sandbox: &Arc<Sandbox>, pid: u32) {
    let Some(inner) = inner.upgrade() else { return };
    let (tree, sandbox) = (Arc::clone(&inner.tree), Arc::clone(sandbox));
    let kill = move || {
        let number = sandbox.state().group?;
        let group = tree.open(&sandbox.instance.key, number).ok()??;
        for _ in 0..ROUNDS {
            if kill_once(&group, pid) == 0 {
                break;
            }
        }
        Some(())
    };
    // If it cannot be done, the middle child still kills the program itself.
    let _ = inner.workers.run(kill).await;
}

/// One process, as `/proc/PID/stat` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    pid: u32,
    parent: u32,
    session: u32,
    /// A zombie needs no killing, but its children do.
    alive: bool,
}

/// Kills the program's processes that are there now. How many those were.
fn kill_once(group: &OwnedFd, pid: u32) -> usize {
    let Ok(pids) = group::processes(group) else { return 0 };
    let mut all = Vec::with_capacity(pids.len());
    for number in pids {
        // The descriptor first: what is read then is about this process, or it has ended.
        let Some(process) = i32::try_from(number).ok().and_then(Pid::from_raw) else { continue };
        let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        let stat = std::fs::read(format!("/proc/{number}/stat")).ok();
        let Some(seen) = stat.and_then(|stat| Seen::parse(number, &stat)) else { continue };
        all.push((seen, pidfd));
    }
    let seen: Vec<Seen> = all.iter().map(|(seen, _)| *seen).collect();
    let targets = family(&seen, pid);
    let killed = all.iter().filter(|(seen, _)| seen.alive && targets.contains(&seen.pid));
    killed.filter(|(_, pidfd)| pidfd_send_signal(pidfd, Signal::KILL).is_ok()).count()
}

impl Seen {
    /// Source: proc_pid_stat(5): after the name come state, parent, process group and session.
    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        let close = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_whitespace();
        let alive = !matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some(Self { pid, parent, session, alive })
    }
}

/// The program, those of its session, and their descendants.
fn family(all: &[Seen], pid: u32) -> Vec<u32> {
    let mut family: Vec<u32> =
        all.iter().filter(|seen| seen.pid == pid || seen.session == pid).map(|seen| seen.pid).collect();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        for child in all.iter().filter(|seen| seen.parent == parent) {
            if !family.contains(&child.pid) {
                family.push(child.pid);
            }
        }
        at += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_of_a_program_is_its_session_and_all_descendants() {
        let seen = |pid, parent, session| Seen { pid, parent, session, alive: true };
        let all = [
            seen(10, 1, 10),
            seen(20, 9, 20),
            seen(21, 20, 20),
            // It has a session of its own, but its parent is known.
            seen(22, 21, 22),
            seen(23, 22, 22),
            // Its parent has ended, but its session is known.
            seen(24, 10, 20),
            seen(30, 10, 30),
        ];
        let mut family = family(&all, 20);
        family.sort_unstable();
        assert_eq!(family, [20, 21, 22, 23, 24]);
    }

    #[test]
    fn a_stat_line_is_read_behind_its_name() {
        let line = b"7 (a) Z 1 (b) S 5 6 7 0 -1";
        assert_eq!(Seen::parse(7, line), Some(Seen { pid: 7, parent: 5, session: 7, alive: true }));
        assert!(!Seen::parse(7, b"7 (x) Z 5 6 7").unwrap().alive);
        for end in 0..8 {
            assert_eq!(Seen::parse(7, &b"7 (x) Z 5 6 7"[..end]), None);
        }
    }
}
