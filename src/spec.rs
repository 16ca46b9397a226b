//! What a sandbox is to be: a plain value, checked against its bounds before anything is made from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

mod check;

/// Bounds on a [`SandboxSpec`]; over one, the call is refused with InvalidArgument naming size and bound.
pub mod bounds {
    /// Arguments of the process, in number.
    pub const ARGS: usize = 4_096;
    /// Variables of the environment, in number.
    pub const ENV: usize = 4_096;
    /// Arguments and environment together, in bytes.
    pub const ARGS_AND_ENV_BYTES: usize = 128 * 1_024;
    /// A path, in bytes (`PATH_MAX` less its terminator).
    pub const PATH_BYTES: usize = 4_095;
    /// Mounts, in number.
    pub const MOUNTS: usize = 128;
    /// Supplementary groups, in number.
    pub const GROUPS: usize = 64;
    /// The host name, in bytes (Linux: `__NEW_UTS_LEN`).
    pub const HOSTNAME_BYTES: usize = 64;
    /// Labels, and likewise annotations, in number.
    pub const LABELS: usize = 256;
    /// The key of a label or annotation, in bytes.
    pub const LABEL_KEY_BYTES: usize = 256;
    /// All labels, and likewise all annotations, in bytes.
    pub const LABELS_BYTES: usize = 64 * 1_024;
    /// The value of the options, in bytes.
    pub const OPTIONS_BYTES: usize = 1_024 * 1_024;
    /// The type URL of the options, in bytes.
    pub const TYPE_URL_BYTES: usize = 1_024;
    /// The grace of a stop, in seconds: a day.
    pub const STOP_GRACE_SECS: u64 = 86_400;
    /// The name of a runtime, in bytes.
    pub const RUNTIME_BYTES: usize = 256;
}

/// Everything a backend needs to know to make one sandbox.
///
/// The default is the smallest sandbox there is: a pause leader in a minimal read-only root, with a network namespace
/// of its own and every isolation on.
///
/// ```
/// use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};
/// let mut spec = SandboxSpec::default();
/// spec.root = RootFs::HostReadOnly;
/// spec.process = Some(ProcessSpec::new(["/bin/sleep", "60"]));
/// assert!(spec.check("define").is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SandboxSpec {
    /// The backend that runs it; empty for the keeper's default.
    pub runtime: String,
    /// What runs in it; nothing for a pause leader, which only holds the namespaces.
    pub process: Option<ProcessSpec>,
    /// Its root file system.
    pub root: RootFs,
    /// What is mounted into the root, in this order.
    pub mounts: Vec<Mount>,
    /// Its host name; nothing for the sandbox ID, cut to 64 bytes where it is longer.
    pub hostname: Option<String>,
    /// Its network.
    pub network: Network,
    /// What it may use at most.
    pub limits: Limits,
    /// What admission counts for it, whatever its limits are.
    pub requests: Requests,
    /// For selecting sandboxes. Shown in Status.
    pub labels: BTreeMap<String, String>,
    /// For whoever wrote them. Kept, and not interpreted.
    pub annotations: BTreeMap<String, String>,
    /// Options for the backend: opaque, kept and forwarded byte for byte, whatever their type.
    pub options: prost_types::Any,
    /// How it is ended.
    pub stop: StopPolicy,
    /// Which isolation is given up. Nothing is, by default.
    pub isolation: Isolation,
}

/// How a sandbox is asked to end before it is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopPolicy {
    /// How long it has between the request to end and SIGKILL.
    pub grace: Duration,
}

impl Default for StopPolicy {
    /// 10 seconds.
    fn default() -> Self {
        Self { grace: Duration::from_secs(10) }
    }
}

/// A program to run as a sandbox's main process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessSpec {
    /// The program, a path inside the root, then its arguments. A name without `/` is looked for in the `PATH` of
    /// `env`, or else in the usual directories.
    pub args: Vec<String>,
    /// Its environment, each `NAME=value`. Nothing of the host's is added.
    pub env: Vec<String>,
    /// Its working directory inside the root; empty for `/`.
    pub cwd: PathBuf,
    /// Who it runs as.
    pub user: User,
    /// Its resource limits. What is not named is inherited from the host; of open files at most 1,024 as soft limit.
    pub rlimits: Vec<Rlimit>,
    /// Where its input comes from and its output goes.
    pub stdio: Stdio,
}

impl ProcessSpec {
    /// A process with these arguments, the program first, and defaults for all else.
    pub fn new<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// A user and groups, as numbers inside the sandbox. The default is 0, which in a user namespace is nobody outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The user ID.
    pub uid: u32,
    /// The group ID.
    pub gid: u32,
    /// Supplementary group IDs.
    pub groups: Vec<u32>,
}

/// Where a process's descriptors 0 to 2 lead. A path is a path on the host, opened before the sandbox starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stdio {
    /// Descriptor 0, opened for reading; nothing for `/dev/null`.
    pub stdin: Option<PathBuf>,
    /// Descriptor 1, made if absent and appended to; nothing for the log, or `/dev/null` if there is none.
    pub stdout: Option<PathBuf>,
    /// Descriptor 2, made if absent and appended to; nothing for the log, or `/dev/null` if there is none.
    pub stderr: Option<PathBuf>,
    /// Keeps what goes to no path, up to so many bytes: the oldest half goes first. It is written by the sandbox's own init,
    /// so it goes on while its supervisor is down. Needs an init, and a backend that has a place for logs.
    pub log_bytes: Option<u64>,
}

/// One resource limit of a process (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// Which resource.
    pub resource: Resource,
    /// The limit in force, in the resource's own unit; `u64::MAX` for none.
    pub soft: u64,
    /// The bound up to which the process may raise it; `u64::MAX` for none.
    pub hard: u64,
}

/// A resource of `setrlimit(2)`; the discriminant is Linux's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Resource {
    /// CPU time, in seconds.
    Cpu = 0,
    /// Size of a file written, in bytes.
    FileSize = 1,
    /// Size of data segment and heap, in bytes.
    Data = 2,
    /// Size of the stack, in bytes.
    Stack = 3,
    /// Size of a core file, in bytes.
    Core = 4,
    /// Processes of the user, in number.
    Processes = 6,
    /// Descriptors: one more than the highest number.
    OpenFiles = 7,
    /// Locked memory, in bytes.
    LockedMemory = 8,
    /// Address space, in bytes.
    AddressSpace = 9,
}

/// A sandbox's root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RootFs {
    /// Empty but for `/dev`, `/proc` and the directories to mount on; read-only.
    #[default]
    Minimal,
    /// A directory of the host.
    Directory {
        /// Where it is, an absolute path on the host.
        path: PathBuf,
        /// Whether the sandbox may write to it. Files keep their owners: those outside the sandbox's range of IDs
        /// appear as nobody's.
        writable: bool,
    },
    /// The host's own root file system, read-only, without other file systems mounted below it. Whatever the host lets
    /// everybody read, the sandbox can read.
    HostReadOnly,
}

/// A directory or file of the host, shown inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is shown: an absolute path on the host.
    pub source: PathBuf,
    /// Where it appears: an absolute path inside the root, which must exist there.
    pub target: PathBuf,
    /// Whether the sandbox may write to it.
    pub writable: bool,
}

/// A sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// No network at all: no namespace of its own is made, and no socket can be, but for unnamed pairs of
    /// stream or packet sockets. The cheapest.
    None,
    /// A network namespace of its own, with a loopback device that is up, and nothing else.
    #[default]
    New,
    /// The network namespace at this path on the host, such as `/run/netns/blue`.
    Join(PathBuf),
}

/// The most a sandbox may use. A limit that this machine cannot enforce is refused, never left out in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Memory, in bytes (`memory.max`).
    pub memory_bytes: Option<u64>,
    /// Swap beyond the memory, in bytes (`memory.swap.max`).
    pub swap_bytes: Option<u64>,
    /// CPU time, in thousandths of one CPU (`cpu.max`).
    pub cpu_millis: Option<u64>,
    /// Processes and threads, in number (`pids.max`).
    pub pids: Option<u64>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a sandbox is expected to use; admission counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requests {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// CPU time, in thousandths of one CPU.
    pub cpu_millis: u64,
}

/// What keeps a sandbox's processes from the rest of the machine. The default has everything on; each thing given up is
/// named here and shown in Status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolation {
    /// Which users of the host its users are.
    pub users: Users,
    /// Capabilities its process keeps, over its own namespaces, as bits (`1 << CAP_…`). None, by default.
    pub kept_capabilities: u64,
    /// Lets the process gain privileges by running a set-user-ID program.
    pub allow_new_privileges: bool,
    /// Runs without a system call filter.
    pub no_seccomp: bool,
    /// Leaves `/proc` and `/sys` as they are: nothing masked, nothing made read-only.
    pub unmasked_paths: bool,
    /// Runs the process as PID 1 itself, without an init that reaps and forwards signals.
    pub no_init: bool,
}

/// Which users of the host a sandbox's users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Users {
    /// 65,536 users of a range of the keeper's, a different part of it for each sandbox.
    #[default]
    Allocated,
    /// This range.
    Mapped {
        /// The host's user and group for 0 inside.
        host_start: u32,
        /// How many users and groups there are inside.
        count: u32,
    },
    /// The host's own users: no user namespace.
    Host,
}

impl SandboxSpec {
    /// Checks every bound of [`bounds`] and every rule that holds on any machine; `tried` names the call in the error.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) naming the field, its size and the bound.
    pub fn check(&self, tried: &'static str) -> Result<(), Error> {
        check::Check { tried }.spec(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;
    use crate::error::ErrorKind;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut SandboxSpec), with: &str) {
        let mut spec = SandboxSpec::default();
        change(&mut spec);
        let error = spec.check("define").expect_err("over a bound");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(with), "{error} does not say {with:?}");
    }

    #[test]
    fn over_a_bound_the_error_names_size_and_limit() {
        refused(
            |spec| spec.options.value = vec![0; bounds::OPTIONS_BYTES + 1],
            "has 1048577 bytes; the limit is 1048576",
        );
        refused(|spec| spec.hostname = Some("h".repeat(65)), "has 65 bytes; the limit is 64");
        refused(|spec| spec.process = Some(ProcessSpec::default()), "no program");
        refused(|spec| spec.process = Some(ProcessSpec::new(["x".repeat(200_000)])), "the limit is 131072");
        refused(|spec| spec.stop.grace = Duration::from_secs(86_401), "86401 seconds");
        refused(|spec| spec.limits.pids = Some(0), "pids limit is 0");
        refused(|spec| drop(spec.labels.insert(String::new(), String::new())), "empty key");
        refused(|spec| spec.network = Network::Join("netns".into()), "absolute path");
        refused(
            |spec| spec.network = Network::Join(std::ffi::OsStr::from_bytes(b"/netns/\xff").into()),
            r#"the network namespace is "/netns/\xFF", which is not UTF-8"#,
        );
        refused(
            |spec| {
                let mut process = ProcessSpec::new(["/bin/true"]);
                process.user.uid = 65_536;
                spec.process = Some(process);
            },
            "user or group 65536",
        );
        refused(
            |spec| {
                spec.mounts.push(Mount { source: "/a".into(), target: "/b/../..".into(), writable: false })
            },
            "'..' is not allowed",
        );
    }

    #[test]
    fn at_its_bound_a_spec_is_accepted() {
        let mut spec = SandboxSpec::default();
        spec.options.value = vec![0; bounds::OPTIONS_BYTES];
        spec.hostname = Some("h".repeat(64));
        assert!(spec.check("define").is_ok());
    }
}
