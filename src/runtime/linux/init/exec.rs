//! Runs a program inside a sandbox that runs already.
//!
//! ```text
//! zygote ──clone3, into the sandbox's cgroup── middle child ──clone, into its PID namespace── worker: the program
//!                                                outside of it     (the middle child has joined the namespaces)
//! ```
//!
//! Who joins a PID namespace stays outside of it; only its children are inside. So there is a middle child, which waits for the
//! program and tells how it ended as an init does. No process of the sandbox sees it: it has no number there. It holds none
//! of the zygote's descriptors, cannot be read from, and has one capability, over the sandbox's users, which is to kill.
//!
//! A leash ties it to whoever asked: when the other end of that pipe is closed, as it is when the asking program dies, the
//! program is killed. A byte in it lets the program go on by itself.

use crate::leader::{self, CAP_KILL, NULL_COPY, REPORT, report};
use crate::main_process::{self, MainProcess};
use crate::protocol::{Child, Decoded, Report, Step, flag};
use crate::sys::{self, Fd, ns, pr};
use crate::waiting::{self, Poll};
use crate::zygote::{NULL, Received};
use crate::{At, Failure, children, report_of};

/// The sandbox's PID 1, whose namespaces are joined.
const LEADER: Fd = 4;
/// A pipe to whoever asked.
pub(crate) const LEASH: Fd = 5;

pub(crate) fn exec(body: &[u8], mut fds: Received) -> Result<((u32, Fd), Child), Failure> {
    let plan = Decoded::new(body).filter(|plan| plan.has(flag::PROCESS));
    let plan = plan.ok_or((Step::Understand, sys::EINVAL))?;
    let group = fds.next()?;
    match sys::clone3(0, Some(group)).at(Step::Clone)? {
        Some(child) => {
            let life = if plan.has(flag::DETACHED) { children::DETACHED } else { children::LEASHED };
            Ok((child, Child { life, ..Child::default() }))
        }
        None => run(&plan, &mut fds),
    }
}

fn run(plan: &Decoded<'_>, fds: &mut Received) -> ! {
    sys::set_name(c"sk-exec".as_ptr());
    let started = arrange(plan, fds)
        .and_then(|()| enter(plan))
        .and_then(|()| leader::give_up_rights(plan))
        .and_then(|()| start(plan));
    match started {
        Ok((worker, signals)) => serve(worker, signals),
        Err(failure) => {
            report(report_of(failure));
            sys::exit(127)
        }
    }
}

/// Puts every descriptor at its number and closes all others, the zygote's above all.
fn arrange(plan: &Decoded<'_>, fds: &mut Received) -> Result<(), Failure> {
    let place = |from: Fd, to: Fd| sys::duplicate(from, to, sys::O_CLOEXEC).at(Step::Descriptors);
    place(NULL, NULL_COPY)?;
    // These numbers are the zygote's; what has been received lies above.
    for to in [REPORT, LEADER, LEASH] {
        place(fds.next()?, to)?;
    }
    for (number, given) in [flag::STDIN, flag::STDOUT, flag::STDERR].into_iter().enumerate() {
        let from = fds.next_if(plan.has(given))?.unwrap_or(NULL_COPY);
        sys::duplicate(from, number as Fd, 0).at(Step::Descriptors)?;
    }
    sys::close_from(LEASH + 1).at(Step::Descriptors)?;
    Ok(())
}

/// Joins the sandbox's namespaces, all at once: there is no moment in some of them only.
fn enter(plan: &Decoded<'_>) -> Result<(), Failure> {
    let mut namespaces = ns::MOUNT | ns::PID | ns::IPC | ns::UTS | ns::NET | ns::CGROUP;
    if plan.has(flag::USERS) {
        namespaces |= ns::USER;
    }
    sys::set_ns(LEADER, namespaces).at(Step::EnterSandbox)?;
    sys::close(LEADER);
    if plan.has(flag::USERS) {
        leader::become_root(plan).at(Step::BecomeRoot)?;
    }
    Ok(())
}

/// Starts the program, says who it is, and holds none of its descriptors from then on.
fn start(plan: &Decoded<'_>) -> Result<(u32, Fd), Failure> {
    let signals = waiting::signal_fd(1 << (sys::SIGCHLD - 1)).at(Step::Descriptors)?;
    let worker = main_process::start(&mut MainProcess::tied(plan))?;
    // The change of users, in memory that both shared, has undone it.
    let _ = sys::prctl(pr::SET_DUMPABLE, 0, 0);
    sys::set_capabilities(CAP_KILL, 0).at(Step::InitCapabilities)?;
    let _ = sys::close_range(0, REPORT - 1);
    report(Report { step: Step::Executed as u32, errno: worker });
    sys::close(REPORT);
    Ok((worker, signals))
}

/// Waits for the program's end, and for the leash.
fn serve(worker: u32, signals: Fd) -> ! {
    let mut polled = [Poll::input(signals), Poll::input(LEASH)];
    loop {
        while let Ok((pid, status)) = sys::wait(-1, true) {
            if pid == 0 {
                break;
            }
            if pid == worker {
                leader::end_as(status);
            }
        }
        if waiting::poll(&mut polled).is_err() {
            continue;
        }
        if polled[0].is_ready() {
            let _ = waiting::next_signal(signals);
        }
        if polled[1].is_ready() {
            let mut byte = [0];
            if sys::read(LEASH, &mut byte) != Ok(1) {
                end(worker);
            }
            sys::close(LEASH);
            polled[1].fd = -1;
        }
    }
}

/// Ends the program, and what is still in its process group.
fn end(worker: u32) {
    // Not reaped yet, so the number is its own. It leads its group, unless it has left it.
    let _ = sys::kill(worker.wrapping_neg(), sys::SIGKILL);
    let _ = sys::kill(worker, sys::SIGKILL);
}
