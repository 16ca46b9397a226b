//! Puts into words what a zygote or a child of it reports: the step, what the kernel said, and what to do.

use std::io;

use super::plan::Plan;
use super::protocol::{Report, Step};
use super::rights;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;

const EPERM: u32 = libc::EPERM as u32;
const ENOENT: u32 = libc::ENOENT as u32;
const EACCES: u32 = libc::EACCES as u32;
const ENOTDIR: u32 = libc::ENOTDIR as u32;
const ENOEXEC: u32 = libc::ENOEXEC as u32;
const ELOOP: u32 = libc::ELOOP as u32;
const ENOSPC: u32 = libc::ENOSPC as u32;
const ENODEV: u32 = libc::ENODEV as u32;
const EINVAL: u32 = libc::EINVAL as u32;
const EAGAIN: u32 = libc::EAGAIN as u32;
const ENOMEM: u32 = libc::ENOMEM as u32;
const EMFILE: u32 = libc::EMFILE as u32;
const ENFILE: u32 = libc::ENFILE as u32;

/// What came to nothing.
pub(super) struct Attempt<'a> {
    /// The call, as it is told in the error.
    pub(super) tried: &'static str,
    pub(super) key: &'a SandboxKey,
    pub(super) program: Option<&'a str>,
    /// Where mounts go.
    pub(super) targets: &'a [String],
}

/// The error for a start that this report ended.
pub(super) fn start_failed(plan: &Plan, report: Report) -> Error {
    let (key, program) = (&plan.key, plan.program.as_deref());
    failed(&Attempt { tried: "start", key, program, targets: &plan.targets }, report)
}

/// The error for an attempt that this report ended.
pub(super) fn failed(attempt: &Attempt<'_>, report: Report) -> Error {
    let Attempt { tried, key, targets, .. } = *attempt;
    let Some(step) = Step::from_u32(report.step) else {
        return Error::new(
            ErrorKind::Internal,
            tried,
            format!("its zygote reports an unknown step, {}", report.step),
        )
        .on(key);
    };
    let cause = io::Error::from_raw_os_error(report.errno as i32);
    let error = match step {
        Step::Execute => execute_failed(attempt, report.errno),
        Step::Directory if matches!(report.errno, ENOENT | ENOTDIR | EACCES) => {
            Error::new(ErrorKind::InvalidArgument, tried, "its process cannot enter its working directory")
                .remedy("name one that is in the sandbox's root and open to the process's user")
        }
        Step::FindTarget if matches!(report.errno, ENOENT | ENOTDIR | ELOOP) => Error::new(
            ErrorKind::InvalidArgument,
            tried,
            format!("the target of a mount is not in its root (targets: {})", targets.join(", ")),
        )
        .remedy("make the target in the root first; a file goes on a file, a directory on a directory"),
        Step::Rlimit if report.errno == EPERM => {
            Error::new(ErrorKind::PermissionDenied, tried, "a resource limit lies above this program's own")
                .remedy("lower it, or raise the hard limits that this program is started with")
        }
        _ => Error::new(kind_of(report.errno), tried, format!("{} was refused", words(step))),
    };
    let error = match remedy(step, report.errno) {
        Some(remedy) => error.remedy(remedy),
        None => error,
    };
    error.caused_by(cause).on(key)
}

fn kind_of(errno: u32) -> ErrorKind {
    match errno {
        EPERM | EACCES => ErrorKind::PermissionDenied,
        EAGAIN | ENOMEM | ENOSPC | EMFILE | ENFILE => ErrorKind::ResourceExhausted,
        _ => ErrorKind::FailedPrecondition,
    }
}

fn execute_failed(attempt: &Attempt<'_>, errno: u32) -> Error {
    let program = attempt.program.unwrap_or_default();
    let refuse = |found: String| Error::new(ErrorKind::InvalidArgument, attempt.tried, found);
    match errno {
        ENOENT | ENOTDIR if program.contains('/') => {
            refuse(format!("no such program in the sandbox's root: {program}"))
                .remedy("check the path; a script or dynamic program needs its interpreter there too")
        }
        ENOENT | ENOTDIR => refuse(format!("no such program in the search path of the sandbox: {program}"))
            .remedy("name it with its path, or set PATH in the process's environment"),
        EACCES => refuse(format!("not executable for the process's user: {program}")),
        ENOEXEC => refuse(format!("not a program that this machine can execute: {program}")),
        _ => Error::new(kind_of(errno), attempt.tried, format!("the program cannot be executed: {program}")),
    }
}

fn remedy(step: Step, errno: u32) -> Option<&'static str> {
    Some(match (step, errno) {
        (Step::Clone, ENOSPC) => "raise user.max_*_namespaces, or end other sandboxes",
        (Step::Clone, EMFILE | ENFILE) => {
            "raise the limit of open files (RLIMIT_NOFILE), or end other sandboxes"
        }
        (Step::Clone, EAGAIN) => {
            "raise kernel.pid_max, kernel.threads-max or the pids limits above, or end other sandboxes"
        }
        (Step::Clone, ENODEV) => "its cgroup was removed meanwhile; create it again",
        (Step::Clone, EPERM) => "run as root, with CAP_SYS_ADMIN, and with user namespaces enabled",
        (
            Step::BindDev
            | Step::BindProc
            | Step::MountSys
            | Step::MountShm
            | Step::MountPts
            | Step::MountTmp,
            ENOENT,
        ) => "make the directories /dev, /proc and /sys (and /tmp for the host's root) in the sandbox's root",
        (Step::Users, EPERM | EINVAL) => {
            "give a range that does not reach beyond the IDs of this program's own user namespace"
        }
        _ => return None,
    })
}

/// The error for a zygote that could not set itself up.
pub(super) fn launch_failed(report: Report, one_user: bool) -> Error {
    let Some(step) = Step::from_u32(report.step) else {
        return Error::new(
            ErrorKind::Internal,
            "start a zygote",
            format!("it reports an unknown step, {}", report.step),
        );
    };
    let found = format!("{} was refused", words(step));
    let error = Error::new(kind_of(report.errno), "start a zygote", found);
    let remedy = match (step, report.errno) {
        (Step::Understand, _) => {
            "it is of another version than this program; build both from the same source"
        }
        (Step::JoinLeaf, EPERM | EACCES) if one_user => rights::DELEGATE,
        (_, EPERM | EACCES | ENOSPC) if one_user => namespaces_closed(),
        (_, EPERM | EACCES) => {
            "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, outside of a container that forbids it"
        }
        (Step::Pivot, EINVAL) => {
            "the host's root must not be the initial ramfs: switch to another root first"
        }
        _ => return error.caused_by(io::Error::from_raw_os_error(report.errno as i32)),
    };
    error.caused_by(io::Error::from_raw_os_error(report.errno as i32)).remedy(remedy)
}

/// What opens user namespaces to an ordinary user where the kernel has refused one, or what it is good for.
fn namespaces_closed() -> &'static str {
    if rights::is_restricted_by_apparmor() {
        "AppArmor restricts user namespaces here: as root, give this program a profile with `userns,`, or sysctl \
         kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "user namespaces must be open to this user (user.max_user_namespaces, kernel.unprivileged_userns_clone), and neither \
         a container nor a chroot may keep it from mounting; or run as root"
    }
}

/// What a step does, as a noun.
fn words(step: Step) -> &'static str {
    match step {
        Step::Ready | Step::Executing | Step::Built | Step::Executed => "nothing",
        Step::Understand => "the message",
        Step::Retired => "a new child of an old zygote",
        Step::OwnUsers => "a user namespace",
        Step::OpenSource => "opening the root or the source of a mount",
        Step::Loopback => "bringing up the loopback device",
        Step::Listen => "the socket for later hosts",
        Step::JoinLeaf => "moving into the zygotes' cgroup",
        Step::Session | Step::NewSession => "a new session",
        Step::OwnNetwork => "the zygote's own network namespace",
        Step::OwnMounts => "the zygote's own mount namespace",
        Step::Template => "building the template of a root file system",
        Step::Devices => "binding the devices of /dev",
        Step::DeadProc => "mounting the proc of an ended PID namespace",
        Step::Pivot => "changing the root",
        Step::Pipe => "a pipe",
        Step::JoinNetwork | Step::BuilderNetwork => "entering the network namespace",
        Step::JoinMounts => "entering the mount namespace that was built",
        Step::Clone => "making the process with its namespaces",
        Step::Users => "mapping its users and groups",
        Step::AttachRoot => "attaching the root",
        Step::BindDev => "binding /dev",
        Step::BindProc | Step::MountProc => "mounting /proc",
        Step::MountSys => "mounting /sys",
        Step::MountTmp => "mounting /tmp",
        Step::MountShm => "mounting /dev/shm",
        Step::MountPts => "mounting /dev/pts",
        Step::FindTarget => "finding the target of a mount",
        Step::AttachMount => "attaching a mount",
        Step::MaskSys => "masking paths in /sys",
        Step::MaskProc => "masking paths in /proc",
        Step::ReadOnlyProc => "making paths in /proc read-only",
        Step::Descriptors => "arranging descriptors",
        Step::Release => "waiting for the users and groups",
        Step::CgroupNamespace => "a cgroup namespace",
        Step::BecomeRoot => "becoming the sandbox's root",
        Step::HostName => "setting the host name",
        Step::Keyring => "a session keyring of its own",
        Step::BoundingSet => "dropping capabilities from the bounding set",
        Step::NewPrivileges => "forbidding new privileges",
        Step::Seccomp => "the system call filter",
        Step::Fork => "making the main process",
        Step::InitCapabilities => "dropping the init's capabilities",
        Step::Rlimit => "a resource limit",
        Step::Groups => "setting supplementary groups",
        Step::Group => "setting the group",
        Step::User => "setting the user",
        Step::Capabilities => "setting the process's capabilities",
        Step::Directory => "entering the working directory",
        Step::Execute => "executing the program",
        Step::LogPipes => "setting up its log",
        Step::EnterSandbox => "entering the sandbox's namespaces",
        Step::TieToParent => "tying the program to who asked for it",
    }
}
