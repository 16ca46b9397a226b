//! What a zygote is told of one sandbox: its spec and what was decided besides, encoded and bounded, with
//! every path of the host opened as a descriptor.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::host_files::{self, Attributes, Identity};
use super::protocol::{Fixed, Instruction, MAX_MESSAGE, PlanRlimit, bytes_of, flag};
use super::seccomp;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::runtime::Instance;
use crate::spec::{Network, ProcessSpec, RootFs, SandboxSpec, Stdio, bounds};

/// Where a program without a slash is looked for when its environment has no PATH.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most that /tmp and /dev/shm may hold, each.
const TMPFS_KILOBYTES: u32 = 64 * 1024;

/// A range of the host's users and groups that a sandbox's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IdMap {
    /// The host's ID for 0 inside.
    pub(super) host_start: u32,
    /// How many there are.
    pub(super) count: u32,
    /// Whether it is this program's own user, and the only one that its zygotes have.
    pub(super) one_user: bool,
}

impl IdMap {
    /// All that an ordinary user can give: itself.
    pub(super) fn of_one_user(uid: u32) -> Self {
        Self { host_start: uid, count: 1, one_user: true }
    }

    /// The first ID as zygotes number it, to which their own user is 0.
    fn start_in_zygotes(&self) -> u32 {
        if self.one_user { 0 } else { self.host_start }
    }
}

/// Which network namespace a sandbox is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlanNetwork {
    /// The one that comes along with the request.
    Given,
    /// A new one, its loopback down.
    Fresh,
    /// The host's; for [`Network::None`] the zygotes' own empty one instead.
    Host,
}

/// One sandbox, ready to be asked for. Good for one start: its mount trees move into the sandbox.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) key: SandboxKey,
    /// For error messages.
    pub(super) program: Option<String>,
    pub(super) targets: Vec<String>,
    /// The body of a Spawn.
    pub(super) spawn: Vec<u8>,
    /// The body of a Build, if the root is not just the template's.
    pub(super) build: Option<Vec<u8>>,
    pub(super) takes_network: bool,
    /// The root's tree, if there is one, and a tree per mount; none where a builder opens them by itself.
    pub(super) trees: Vec<OwnedFd>,
    /// What a builder opens by itself instead, as it was found here.
    pub(super) sources: Vec<Identity>,
    pub(super) stdio: Vec<OwnedFd>,
}

impl Plan {
    /// Plans one start. Opens the root, mounts, and files of standard input and output, which may block for a
    /// moment.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidArgument`]: a path of the host that the spec names is not there, or the plan is
    ///   too large.
    /// - [`ErrorKind::FailedPrecondition`]: the kernel refuses to open one.
    pub(super) fn new(instance: &Instance, ids: Option<IdMap>, network: PlanNetwork) -> Result<Self, Error> {
        Self::of(&instance.key, &instance.spec, ids, network).map_err(|error| error.on(&instance.key))
    }

    fn of(
        key: &SandboxKey,
        spec: &SandboxSpec,
        ids: Option<IdMap>,
        network: PlanNetwork,
    ) -> Result<Self, Error> {
        check_targets(spec)?;
        let opened_there = ids.is_some_and(|ids| ids.one_user);
        let trees = if opened_there { Vec::new() } else { open_trees(spec)? };
        let sources = if opened_there { check_sources(spec)? } else { Vec::new() };
        let (stdio_flags, stdio) = open_stdio(spec.process.as_ref())?;
        let mut flags = stdio_flags | flags_of(spec, ids, network);
        let built = spec.root != RootFs::Minimal || !spec.mounts.is_empty();
        if built {
            flags |= flag::BUILT;
        }
        let id = key.id();
        // An ID may be longer than the kernel lets a host name be.
        let id = &id.as_str()[..id.as_str().len().min(bounds::HOSTNAME_BYTES)];
        let hostname = spec.hostname.clone().unwrap_or_else(|| id.to_owned());
        let filter = filter_of(spec);
        let body = Body { spec, flags, ids, sources: &sources, filter: &filter, hostname: &hostname };
        Ok(Self {
            key: *key,
            program: spec.process.as_ref().and_then(|process| process.args.first().cloned()),
            targets: spec.mounts.iter().map(|mount| mount.target.display().to_string()).collect(),
            spawn: body.spawn()?,
            build: built.then(|| body.build()).transpose()?,
            takes_network: network == PlanNetwork::Given,
            trees,
            sources,
            stdio,
        })
    }

    /// The trees, in the order of a Build.
    pub(super) fn trees(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.trees.iter().map(AsFd::as_fd)
    }

    /// The files of standard input and output, and of a log, in the order of a Spawn.
    pub(super) fn stdio(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.stdio.iter().map(AsFd::as_fd)
    }
}

/// The filter of a sandbox's processes. A pause leader runs nothing but our own init, and is held to what
/// that needs.
fn filter_of(spec: &SandboxSpec) -> Arc<[Instruction]> {
    match &spec.process {
        _ if spec.isolation.no_seccomp => Arc::default(),
        None => seccomp::pause_filter(),
        Some(_) => seccomp::default_filter(spec.network == Network::None),
    }
}

fn flags_of(spec: &SandboxSpec, ids: Option<IdMap>, network: PlanNetwork) -> u32 {
    let isolation = &spec.isolation;
    let network = match (network, &spec.network) {
        (PlanNetwork::Given, _) => flag::NET_GIVEN,
        (PlanNetwork::Fresh, _) => flag::NET_FRESH,
        // Without the filter there are sockets; those of two sandboxes must not meet.
        (PlanNetwork::Host, Network::None) if isolation.no_seccomp => flag::NET_FRESH,
        // The zygotes' own: empty, so that not even /proc/net shows anything of the host.
        (PlanNetwork::Host, Network::None) => 0,
        (PlanNetwork::Host, _) => flag::NET_HOST,
    };
    let writable_tmp = matches!(spec.root, RootFs::HostReadOnly | RootFs::Minimal);
    let set = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    network
        | set(ids.is_some(), flag::USERS)
        | set(ids.is_some_and(|ids| ids.one_user), flag::ONE_USER)
        | set(spec.process.is_some(), flag::PROCESS)
        | set(spec.root != RootFs::Minimal, flag::ROOT_GIVEN)
        | set(writable_tmp, flag::TMP)
        | set(!isolation.unmasked_paths, flag::MASK)
        | set(isolation.no_init, flag::NO_INIT)
        | set(isolation.allow_new_privileges, flag::NEW_PRIVILEGES)
        | set(keeps_log(spec), flag::LOG)
}

/// Whether a spec's main process writes to a log. The log's two files then follow those of standard input and output.
pub(super) fn keeps_log(spec: &SandboxSpec) -> bool {
    spec.process.as_ref().is_some_and(|process| process.stdio.log_bytes.is_some())
}

/// The body of an Exec: a program for a sandbox of this spec, with whatever isolation that has.
pub(super) fn exec_body(
    spec: &SandboxSpec,
    process: &ProcessSpec,
    ids: Option<IdMap>,
    stdio_flags: u32,
) -> Result<Vec<u8>, Error> {
    let like = SandboxSpec {
        process: Some(ProcessSpec { stdio: Stdio::default(), ..process.clone() }),
        network: spec.network.clone(),
        isolation: spec.isolation.clone(),
        ..SandboxSpec::default()
    };
    let set = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    let flags = flag::PROCESS
        | stdio_flags
        | set(ids.is_some(), flag::USERS)
        | set(ids.is_some_and(|ids| ids.one_user), flag::ONE_USER)
        | set(spec.isolation.allow_new_privileges, flag::NEW_PRIVILEGES);
    let filter = filter_of(&like);
    Body { spec: &like, flags, ids: None, sources: &[], filter: &filter, hostname: "" }.spawn()
}

/// Refuses targets that could not be seen afterwards, or would keep the sandbox's own /proc from being
/// mounted.
fn check_targets(spec: &SandboxSpec) -> Result<(), Error> {
    let refuse = |target: &Path, found: &str, remedy: &'static str| {
        let found = format!("the target of a mount is {target:?}, {found}");
        Err(Error::new(ErrorKind::InvalidArgument, "start", found).remedy(remedy))
    };
    for mount in &spec.mounts {
        let target: &Path = &mount.target;
        if target.parent().is_none() {
            return refuse(target, "the root itself", "name the directory as the root instead");
        }
        if target.starts_with("/proc") {
            return refuse(target, "where the sandbox has its own processes", "choose one outside of /proc");
        }
    }
    Ok(())
}

/// Detached copies of the mount trees that the spec names: the root's, then one per mount.
fn open_trees(spec: &SandboxSpec) -> Result<Vec<OwnedFd>, Error> {
    let no_setuid = !spec.isolation.allow_new_privileges;
    let mut trees = Vec::with_capacity(1 + spec.mounts.len());
    match &spec.root {
        RootFs::Minimal => {}
        RootFs::Directory { path, writable } => {
            let attributes = Attributes { recursive: true, read_only: !writable, no_setuid };
            trees.push(host_files::open_tree("the root", path, attributes)?);
        }
        RootFs::HostReadOnly => {
            let attributes = Attributes { recursive: false, read_only: true, no_setuid };
            trees.push(host_files::open_tree("the root", Path::new("/"), attributes)?);
        }
    }
    for mount in &spec.mounts {
        let attributes = Attributes { recursive: true, read_only: !mount.writable, no_setuid };
        trees.push(host_files::open_tree("the source of a mount", &mount.source, attributes)?);
    }
    Ok(trees)
}

/// Looks whether a builder will be able to open them, since it could not say which it was; and what they are.
fn check_sources(spec: &SandboxSpec) -> Result<Vec<Identity>, Error> {
    host_files::sources(spec).map(|(what, path, _)| host_files::check_source(what, path)).collect()
}

fn open_stdio(process: Option<&ProcessSpec>) -> Result<(u32, Vec<OwnedFd>), Error> {
    let Some(process) = process else { return Ok((0, Vec::new())) };
    let mut flags = 0;
    let mut fds = Vec::new();
    let paths = [
        (&process.stdio.stdin, flag::STDIN, false),
        (&process.stdio.stdout, flag::STDOUT, true),
        (&process.stdio.stderr, flag::STDERR, true),
    ];
    for (path, flag, output) in paths {
        if let Some(path) = path {
            fds.push(host_files::open_stdio(path, output)?);
            flags |= flag;
        }
    }
    Ok((flags, fds))
}

/// What both bodies are made of.
struct Body<'a> {
    spec: &'a SandboxSpec,
    flags: u32,
    ids: Option<IdMap>,
    sources: &'a [Identity],
    filter: &'a [Instruction],
    hostname: &'a str,
}

impl Body<'_> {
    fn fixed(&self) -> Fixed {
        // Counts fit: the spec's check has bounded them, and `finish` bounds the whole.
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let process = self.spec.process.as_ref();
        Fixed {
            kept_capabilities: self.spec.isolation.kept_capabilities,
            tmpfs_kilobytes: TMPFS_KILOBYTES,
            flags: self.flags,
            host_start: self.ids.map_or(0, |ids| ids.start_in_zygotes()),
            id_count: self.ids.map_or(0, |ids| ids.count),
            uid: process.map_or(0, |process| process.user.uid),
            gid: process.map_or(0, |process| process.user.gid),
            groups: process.map_or(0, |process| count(process.user.groups.len())),
            rlimits: process.map_or(0, |process| count(process.rlimits.len())),
            instructions: count(self.filter.len()),
            args: process.map_or(0, |process| count(process.args.len())),
            variables: process.map_or(0, |process| count(process.env.len())),
            mounts: 0,
            sources: 0,
            padding: 0,
        }
    }

    fn spawn(&self) -> Result<Vec<u8>, Error> {
        let mut writer = Writer(Vec::with_capacity(4096));
        writer.value(&self.fixed());
        writer.text(self.hostname.as_bytes());
        let Some(process) = &self.spec.process else {
            writer.text(b"/");
            self.filter.iter().for_each(|instruction| writer.value(instruction));
            writer.text(b"");
            return writer.finish();
        };
        let cwd = process.cwd.as_os_str().as_encoded_bytes();
        writer.text(if cwd.is_empty() { b"/" } else { cwd });
        process.user.groups.iter().for_each(|group| writer.value(group));
        for limit in &process.rlimits {
            let resource = limit.resource as u32;
            writer.value(&PlanRlimit { resource: resource.into(), soft: limit.soft, hard: limit.hard });
        }
        self.filter.iter().for_each(|instruction| writer.value(instruction));
        process.args.iter().chain(&process.env).for_each(|text| writer.text(text.as_bytes()));
        let path = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
        writer.text(path.unwrap_or(USUAL_PATH).as_bytes());
        writer.finish()
    }

    fn build(&self) -> Result<Vec<u8>, Error> {
        let mut writer = Writer(Vec::with_capacity(256));
        let mounts = u32::try_from(self.spec.mounts.len()).unwrap_or(u32::MAX);
        let nothing = Fixed { groups: 0, rlimits: 0, instructions: 0, args: 0, variables: 0, ..self.fixed() };
        let count = u32::try_from(self.sources.len()).unwrap_or(u32::MAX);
        writer.value(&Fixed { mounts, sources: count, ..nothing });
        // No host name, no working directory, no search path.
        for _ in 0..3 {
            writer.text(b"");
        }
        for mount in &self.spec.mounts {
            writer.text(mount.target.as_os_str().as_encoded_bytes());
        }
        let setuid = if self.spec.isolation.allow_new_privileges { flag::source::SETUID } else { 0 };
        for ((_, path, writable), (device, inode)) in host_files::sources(self.spec).zip(self.sources) {
            let writable = if writable { flag::source::WRITABLE } else { 0 };
            writer.0.push(flag::source::IS_ONE | setuid | writable);
            writer.0.extend(format!("{device:016x}{inode:016x}").bytes());
            writer.text(path.as_os_str().as_encoded_bytes());
        }
        writer.finish()
    }
}

/// Writes what [`Decoded`](super::protocol::Decoded) reads.
struct Writer(Vec<u8>);

impl Writer {
    fn value<T: super::protocol::Plain>(&mut self, value: &T) {
        self.0.extend_from_slice(bytes_of(value));
    }

    fn text(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
        self.0.push(0);
    }

    fn finish(self) -> Result<Vec<u8>, Error> {
        let limit = MAX_MESSAGE - size_of::<super::protocol::Header>();
        if self.0.len() <= limit {
            return Ok(self.0);
        }
        let found = format!("its plan has {} bytes; the limit is {limit}", self.0.len());
        Err(Error::new(ErrorKind::InvalidArgument, "start", found)
            .remedy("shorten arguments, environment or the targets of mounts"))
    }
}

/// The isolation that a sandbox of this spec has once it runs, an item each.
///
/// A start either brings all of it or fails: nothing is left out in silence, so this can be told from the
/// spec.
pub(super) fn isolation_in_force(spec: &SandboxSpec, ids: Option<&IdMap>) -> Arc<[String]> {
    let isolation = &spec.isolation;
    let mut items: Vec<String> =
        ["mount", "pid", "ipc", "uts", "cgroup"].map(|kind| format!("{kind}-namespace")).into();
    match ids {
        Some(ids) => {
            items.push(format!("user-namespace:{}+{}", ids.host_start, ids.count));
            if ids.one_user {
                // All sandboxes share it.
                items.push("users:one".to_owned());
            }
        }
        None => items.push("users:host".to_owned()),
    }
    items.push(match &spec.network {
        Network::None => "network:none".to_owned(),
        Network::New => "network-namespace".to_owned(),
        Network::Join(path) => format!("network:joined:{}", path.display()),
    });
    items.push(match isolation.kept_capabilities {
        0 => "capabilities:none".to_owned(),
        kept => format!("capabilities:{kept:#x}"),
    });
    items.push(
        if isolation.allow_new_privileges { "new-privileges:allowed" } else { "no-new-privileges" }
            .to_owned(),
    );
    let filter = if spec.process.is_some() { "seccomp:default" } else { "seccomp:pause" };
    items.push(if isolation.no_seccomp { "seccomp:none" } else { filter }.to_owned());
    items.push(if isolation.unmasked_paths { "paths:unmasked" } else { "masked-paths" }.to_owned());
    items.push(
        match &spec.root {
            RootFs::Minimal => "root:minimal",
            RootFs::Directory { writable: true, .. } => "root:writable",
            RootFs::Directory { writable: false, .. } => "root:read-only",
            RootFs::HostReadOnly => "root:host-read-only",
        }
        .to_owned(),
    );
    if isolation.no_init && spec.process.is_some() {
        items.push("init:none".to_owned());
    }
    items.into()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
