//! Learns of the ends of leaders: one thread, which sleeps until the kernel says that one has ended.
//!
//! A leader is PID 1 of its PID namespace. When its pidfd becomes readable, the kernel has ended and reaped everything
//! else in the namespace, and the leader is a zombie of its zygote, which leaves it alone until we have read its status.
//!
//! Where the status is, from the best:
//! 1. **The zombie**, `/proc/PID/stat`. An init has taken the main process's wait status as its name; without one, the
//!    zombie's own status is the main process's.
//! 2. **The pidfd** (`PIDFD_GET_INFO`, Linux 6.15), where the zombie is gone: its zygote was killed, and PID 1 of the
//!    machine has reaped it. It tells what the init exited with, 128 + n for a signal n.
//! 3. **Nothing.** The life counts as lost, whose status is never 0.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::config::ExitEvidence;
use super::mark::Stage;
use super::protocol::wait_status_of_name;
use super::sandbox::{Leader, Lives, Sandbox};
use super::tree::Tree;
use super::zygote::{ZygoteId, Zygotes};
use super::{group, sys, workers};
use crate::model::{Exit, ExitReason, Life};
use crate::runtime::unix_nanos;

/// Stands for the wake-up in place of a life. No life has this number.
const WAKE: u64 = u64::MAX;

/// How many ends are taken in at a time.
const BATCH: usize = 1_024;

/// What both sides of the thread hold.
pub(super) struct ExitWatch {
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: AtomicBool,
}

/// What the thread needs to judge an end.
pub(super) struct Judge {
    /// Whose end it may be.
    pub(super) lives: Arc<Lives>,
    /// The parents.
    pub(super) zygotes: Arc<Zygotes>,
    /// Whose groups tell of kills for want of memory.
    pub(super) tree: Arc<Tree>,
    /// Where to look.
    pub(super) evidence: ExitEvidence,
    /// Whether an end is written on its group before anybody is told, since this program may be gone before it was told to
    /// all.
    pub(super) writes: bool,
}

impl ExitWatch {
    /// Starts the thread.
    pub(super) fn start(judge: Judge) -> io::Result<(Arc<Self>, std::thread::JoinHandle<()>)> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let watch = Arc::new(Self { epoll, wake, stop: AtomicBool::new(false) });
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let work = Arc::clone(&watch);
        let thread = std::thread::Builder::new()
            .name("sandkeeper-exit".to_owned())
            .spawn(move || work.work(&judge, &proc))?;
        Ok((watch, thread))
    }

    /// Watches for the end of a leader. It may have ended already.
    pub(super) fn watch(&self, life: Life, leader: &Leader) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, &leader.pidfd, EventData::new_u64(life.0), EventFlags::IN)?)
    }

    /// Lets the thread take in what has ended so far, and end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // It can only fail if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn work(&self, judge: &Judge, proc: &OwnedFd) {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        let mut reserve = Spare::default();
        reserve.hold(proc);
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            events.clear();
            let timeout = stopping.then_some(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 });
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the exits of sandboxes cannot be seen any more");
                    return;
                }
            }
            let mut reapable = Vec::new();
            let mut any = false;
            for event in events.iter().map(|event| event.data.u64()) {
                if event == WAKE {
                    let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
                } else if let Some(sandbox) = judge.lives.get(Life(event)) {
                    any = true;
                    reserve.give_up();
                    self.ended(judge, proc, &sandbox, &mut reapable);
                }
            }
            reserve.hold(proc);
            // After the whole batch: a zygote is busy while it reaps, and who waits for an exit should not wait for that.
            for (zygote, pid) in reapable {
                judge.zygotes.reap(zygote, pid);
            }
            if stopping && !any {
                return;
            }
        }
    }

    /// Reports one end.
    fn ended(&self, judge: &Judge, proc: &OwnedFd, sandbox: &Sandbox, reapable: &mut Vec<(ZygoteId, u32)>) {
        let Some(leader) = sandbox.running() else { return };
        if let Err(error) = epoll::delete(&self.epoll, &leader.pidfd) {
            tracing::error!(%error, "an ended leader cannot be taken off the watch");
        }
        let status = judge.status(proc, sandbox, &leader);
        let reason = judge.reason(sandbox, status);
        let exit = Exit { reason, at_unix_nanos: if leader.ended_unseen { 0 } else { unix_nanos() } };
        if judge.writes {
            judge.write(sandbox, exit);
        }
        sandbox.ended(exit);
        // An observer is the caller's code. If it panics, the other exits are to be seen all the same.
        let report = std::panic::AssertUnwindSafe(|| sandbox.instance.exited(exit, true));
        if std::panic::catch_unwind(report).is_err() {
            tracing::error!(sandbox = %sandbox.instance.key, "the observer of an exit panicked");
        }
        sandbox.told();
        reapable.extend(leader.zygote.map(|zygote| (zygote, leader.pid)));
    }
}

/// Descriptors kept for reading how a leader ended, and given up for that: where this program has used all it may have, an exit
/// must not get lost for want of one.
#[derive(Default)]
struct Spare(Vec<OwnedFd>);

impl Spare {
    /// A group, and a file in it.
    const NEEDED: usize = 2;

    fn hold(&mut self, of: &OwnedFd) {
        while self.0.len() < Self::NEEDED {
            // Where there is none left now, there may be after the next exit.
            let Ok(fd) = of.try_clone() else { return };
            self.0.push(fd);
        }
    }

    fn give_up(&mut self) {
        self.0.clear();
    }
}

impl Judge {
    /// The main process's wait status, as well as it can be known.
    fn status(&self, proc: &OwnedFd, sandbox: &Sandbox, leader: &Leader) -> Option<i32> {
        match self.evidence {
            ExitEvidence::Best => {
                let trust_name = !sandbox.instance.spec.isolation.no_init;
                let mut tries = 0;
                let told = loop {
                    match status_of_zombie(proc, leader, trust_name) {
                        // Another thread may have taken the descriptor that was given up for this. It waits as long as we let it.
                        Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) if tries < 1_000 => {
                            tries += 1;
                            workers::pause(Duration::from_millis(1));
                        }
                        told => break told.ok().flatten(),
                    }
                };
                told.or_else(|| sys::status_of_reaped(&leader.pidfd))
            }
            ExitEvidence::Pidfd => {
                leader.zygote.into_iter().for_each(|zygote| self.zygotes.reap(zygote, leader.pid));
                for _ in 0..200 {
                    if let Some(status) = sys::status_of_reaped(&leader.pidfd) {
                        return Some(status);
                    }
                    workers::pause(Duration::from_millis(1));
                }
                None
            }
            ExitEvidence::Nothing => None,
        }
    }

    /// Writes an end on the group: the zombie, which tells it until then, is let go soon after.
    fn write(&self, sandbox: &Sandbox, exit: Exit) {
        let Some(number) = sandbox.state().group else { return };
        if let Ok(Some(group)) = self.tree.open(&sandbox.instance.key, number)
            && let Err(error) = Stage::Ended(exit).write(group)
        {
            tracing::debug!(sandbox = %sandbox.instance.key, %error, "its end is not written on its cgroup");
        }
    }

    fn reason(&self, sandbox: &Sandbox, status: Option<i32>) -> ExitReason {
        let reason = status.map_or(ExitReason::Lost, reason_of_status);
        let killed = matches!(reason, ExitReason::Signalled(9) | ExitReason::Exited(137) | ExitReason::Lost);
        if killed && self.ran_out_of_memory(sandbox) { ExitReason::OomKilled } else { reason }
    }

    /// Whether the kernel has ended a process of this sandbox for want of memory.
    fn ran_out_of_memory(&self, sandbox: &Sandbox) -> bool {
        if !self.tree.controllers.memory {
            return false;
        }
        let Some(number) = sandbox.state().group else { return false };
        match self.tree.open(&sandbox.instance.key, number) {
            Ok(Some(group)) => {
                group::read_key(&group, "memory.events", "oom_kill").is_ok_and(|kills| kills > 0)
            }
            _ => false,
        }
    }
}

/// What a wait status says.
///
/// Source: wait(2), and the macros of `sys/wait.h`.
pub(super) fn reason_of_status(status: i32) -> ExitReason {
    match status & 0x7f {
        0 => ExitReason::Exited((status >> 8) as u8),
        signal => ExitReason::Signalled(signal as u8),
    }
}

/// The wait status that a zombie tells: by its name if that can be trusted, else its own.
fn status_of_zombie(proc: &OwnedFd, leader: &Leader, trust_name: bool) -> Result<Option<i32>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let stat = rustix::fs::openat(proc, format!("{}/stat", leader.pid), flags, Mode::empty())?;
    let mut buffer = [0_u8; 1_024];
    let length = rustix::io::read(&stat, &mut buffer)?;
    let status = parse_zombie(&buffer[..length], trust_name);
    // Asked last: as long as the leader is not reaped, its number is its own, so what was read was about it.
    Ok(status.filter(|_| sys::is_unreaped(&leader.pidfd)))
}

/// The wait status in a line of `/proc/PID/stat`; nothing unless it is of a zombie.
///
/// Source: proc_pid_stat(5): field 2 is the name in parentheses, 3 the state, 52 the status.
pub(super) fn parse_zombie(stat: &[u8], trust_name: bool) -> Option<i32> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    // A name may hold parentheses itself; the last one closes it.
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(open + 1..close)?;
    let mut fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    let own: i32 = fields.nth(52 - 4)?.parse().ok()?;
    let recorded = if trust_name { wait_status_of_name(name) } else { None };
    Some(recorded.map_or(own, |status| status as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(name: &str, state: char, status: i32) -> String {
        let zeros = "0 ".repeat(52 - 4);
        format!("17 ({name}) {state} {zeros}{status}\n")
    }

    #[test]
    fn the_recorded_status_counts_and_else_the_zombies_own() {
        let line = stat("sk-exit:0009", 'Z', 137 << 8);
        assert_eq!(parse_zombie(line.as_bytes(), true), Some(9));
        assert_eq!(parse_zombie(line.as_bytes(), false), Some(137 << 8));
        let line = stat("init", 'Z', 9);
        assert_eq!(parse_zombie(line.as_bytes(), true), Some(9));
        assert_eq!(parse_zombie(stat("a) Z (b", 'Z', 3 << 8).as_bytes(), true), Some(3 << 8));
    }

    #[test]
    fn what_is_not_a_zombie_tells_nothing() {
        assert_eq!(parse_zombie(stat("sk-exit:0300", 'S', 0).as_bytes(), true), None);
        assert_eq!(parse_zombie(b"", true), None);
        assert_eq!(parse_zombie(b"17 (init) Z 0 0", true), None);
    }

    #[test]
    fn wait_statuses_read_as_exits_and_signals() {
        assert_eq!(reason_of_status(7 << 8), ExitReason::Exited(7));
        assert_eq!(reason_of_status(9), ExitReason::Signalled(9));
        // With the bit for a core dump.
        assert_eq!(reason_of_status(0x80 | 11), ExitReason::Signalled(11));
    }
}
