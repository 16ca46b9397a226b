//! What a sandbox is to be: a plain value, checked against its bounds before anything is made from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind};

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
    /// Its resource limits. What is not named is inherited from the host.
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
    /// Descriptor 1, made if absent and appended to; nothing for `/dev/null`.
    pub stdout: Option<PathBuf>,
    /// Descriptor 2, made if absent and appended to; nothing for `/dev/null`.
    pub stderr: Option<PathBuf>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// [`ErrorKind::InvalidArgument`] naming the field, its size and the bound.
    pub fn check(&self, tried: &'static str) -> Result<(), Error> {
        Check { tried }.spec(self)
    }
}

/// The checks of one call.
struct Check {
    tried: &'static str,
}

impl Check {
    fn refuse(&self, found: String) -> Error {
        Error::new(ErrorKind::InvalidArgument, self.tried, found)
    }

    fn at_most(&self, what: &str, size: usize, bound: usize, unit: &str) -> Result<(), Error> {
        if size <= bound {
            return Ok(());
        }
        Err(self.refuse(format!("{what} has {size} {unit}; the limit is {bound}")))
    }

    fn no_nul(&self, what: &str, text: &str) -> Result<(), Error> {
        if text.contains('\0') { Err(self.refuse(format!("{what} contains a NUL byte"))) } else { Ok(()) }
    }

    fn path(&self, what: &str, path: &std::path::Path) -> Result<(), Error> {
        self.at_most(what, path.as_os_str().len(), bounds::PATH_BYTES, "bytes")?;
        self.no_nul(what, &path.to_string_lossy())?;
        if path.is_absolute() {
            return Ok(());
        }
        Err(self.refuse(format!("{what} is {path:?}; an absolute path is needed")))
    }

    fn spec(&self, spec: &SandboxSpec) -> Result<(), Error> {
        self.at_most("the runtime's name", spec.runtime.len(), bounds::RUNTIME_BYTES, "bytes")?;
        if let Some(process) = &spec.process {
            self.process(process)?;
        }
        if let RootFs::Directory { path, .. } = &spec.root {
            self.path("the root", path)?;
        }
        self.at_most("mounts", spec.mounts.len(), bounds::MOUNTS, "entries")?;
        for mount in &spec.mounts {
            self.path("the source of a mount", &mount.source)?;
            self.path("the target of a mount", &mount.target)?;
            if mount.target.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(
                    self.refuse(format!("the target of a mount is {:?}; '..' is not allowed", mount.target))
                );
            }
        }
        if let Some(hostname) = &spec.hostname {
            self.at_most("the host name", hostname.len(), bounds::HOSTNAME_BYTES, "bytes")?;
            self.no_nul("the host name", hostname)?;
        }
        if let Network::Join(path) = &spec.network {
            self.path("the network namespace", path)?;
        }
        self.texts("labels", &spec.labels)?;
        self.texts("annotations", &spec.annotations)?;
        self.at_most("the options' type URL", spec.options.type_url.len(), bounds::TYPE_URL_BYTES, "bytes")?;
        self.at_most("the options' value", spec.options.value.len(), bounds::OPTIONS_BYTES, "bytes")?;
        let grace = usize::try_from(spec.stop.grace.as_secs()).unwrap_or(usize::MAX);
        self.at_most("the stop grace", grace, bounds::STOP_GRACE_SECS as usize, "seconds")?;
        self.limits(&spec.limits)?;
        self.users(spec)
    }

    fn process(&self, process: &ProcessSpec) -> Result<(), Error> {
        if process.args.first().is_none_or(String::is_empty) {
            return Err(self.refuse("the process has no program: its args are empty".to_owned()));
        }
        self.at_most("the process's args", process.args.len(), bounds::ARGS, "entries")?;
        self.at_most("the process's env", process.env.len(), bounds::ENV, "entries")?;
        let bytes = process.args.iter().chain(&process.env).map(|text| text.len() + 1).sum();
        self.at_most("the process's args and env", bytes, bounds::ARGS_AND_ENV_BYTES, "bytes")?;
        for text in process.args.iter().chain(&process.env) {
            self.no_nul("an argument or variable", text)?;
        }
        if let Some(bad) = process.env.iter().find(|text| text.find('=').is_none_or(|at| at == 0)) {
            return Err(self.refuse(format!("the variable {bad:?} is not of the form NAME=value")));
        }
        if !process.cwd.as_os_str().is_empty() {
            self.path("the working directory", &process.cwd)?;
        }
        self.at_most("the process's groups", process.user.groups.len(), bounds::GROUPS, "entries")?;
        for path in [&process.stdio.stdin, &process.stdio.stdout, &process.stdio.stderr].into_iter().flatten()
        {
            self.path("a file for standard input or output", path)?;
        }
        for (at, limit) in process.rlimits.iter().enumerate() {
            if limit.soft > limit.hard {
                let Rlimit { resource, soft, hard } = limit;
                return Err(self.refuse(format!("the {resource:?} limit has soft {soft} above hard {hard}")));
            }
            if process.rlimits[..at].iter().any(|other| other.resource == limit.resource) {
                return Err(self.refuse(format!("the {:?} limit is given twice", limit.resource)));
            }
        }
        Ok(())
    }

    fn texts(&self, what: &str, texts: &BTreeMap<String, String>) -> Result<(), Error> {
        self.at_most(what, texts.len(), bounds::LABELS, "entries")?;
        for key in texts.keys() {
            if key.is_empty() {
                return Err(self.refuse(format!("one of the {what} has an empty key")));
            }
            self.at_most(&format!("a key of the {what}"), key.len(), bounds::LABEL_KEY_BYTES, "bytes")?;
        }
        let bytes = texts.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.at_most(what, bytes, bounds::LABELS_BYTES, "bytes")
    }

    fn limits(&self, limits: &Limits) -> Result<(), Error> {
        let Limits { memory_bytes, cpu_millis, pids, .. } = limits;
        for (what, limit) in [("memory", memory_bytes), ("cpu", cpu_millis), ("pids", pids)] {
            if *limit == Some(0) {
                return Err(self.refuse(format!("the {what} limit is 0; leave it out for no limit")));
            }
        }
        Ok(())
    }

    fn users(&self, spec: &SandboxSpec) -> Result<(), Error> {
        let count = match spec.isolation.users {
            Users::Allocated => 65_536,
            Users::Mapped { host_start, count } => {
                if count == 0 || host_start.checked_add(count).is_none() {
                    return Err(
                        self.refuse(format!("the user mapping of {count} from {host_start} is not a range"))
                    );
                }
                count
            }
            Users::Host => return Ok(()),
        };
        let Some(process) = &spec.process else { return Ok(()) };
        let User { uid, gid, groups } = &process.user;
        match [uid, gid].into_iter().chain(groups).find(|id| **id >= count) {
            Some(id) => Err(self.refuse(format!("user or group {id} lies outside the mapping of {count}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
