//! Specs as messages, on the wire and in the journal.
//!
//! Every spec that passes [`SandboxSpec::check`] comes back equal, and always as the same bytes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;

use super::generated as wire;
use super::generated::{isolation, network, root_fs};
use crate::error::{Error, ErrorKind};
use crate::spec::{
    Isolation, Limits, Mount, Network, ProcessSpec, Requests, Resource, Rlimit, RootFs, SandboxSpec, Stdio,
    StopPolicy, User, Users,
};

/// A message that is no spec: it names the field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedSpec(String);

/// A spec as bytes, always the same for the same spec.
pub fn encode_spec(spec: &SandboxSpec) -> Vec<u8> {
    wire::SandboxSpec::from(spec).encode_to_vec()
}

/// The spec that these bytes were made of.
///
/// # Errors
/// `InvalidArgument` if no spec was.
pub fn decode_spec(bytes: &[u8]) -> Result<SandboxSpec, Error> {
    let malformed = |error: MalformedSpec| {
        Error::new(ErrorKind::InvalidArgument, "read a spec", "it is malformed").caused_by(error)
    };
    let message = wire::SandboxSpec::decode(bytes);
    message
        .map_err(|error| MalformedSpec(error.to_string()))
        .and_then(SandboxSpec::try_from)
        .map_err(malformed)
}

/// Names of resources on the wire.
const RESOURCES: [(Resource, &str); 9] = [
    (Resource::Cpu, "cpu"),
    (Resource::FileSize, "fsize"),
    (Resource::Data, "data"),
    (Resource::Stack, "stack"),
    (Resource::Core, "core"),
    (Resource::Processes, "nproc"),
    (Resource::OpenFiles, "nofile"),
    (Resource::LockedMemory, "memlock"),
    (Resource::AddressSpace, "as"),
];

/// A resource's name, as in the shell's `ulimit` and in protobuf: `nofile`.
pub fn resource_name(resource: Resource) -> &'static str {
    let named = RESOURCES.into_iter().find(|(known, _)| *known == resource);
    named.expect("every resource has a name").1
}

/// The resource of this name.
pub fn resource_named(name: &str) -> Option<Resource> {
    RESOURCES.into_iter().find(|(_, known)| *known == name).map(|(resource, _)| resource)
}

/// Checked specs have no path that is not text.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Absent where it is the default.
fn unless_default<T: Default + PartialEq, M>(value: &T, message: impl FnOnce(&T) -> M) -> Option<M> {
    (*value != T::default()).then(|| message(value))
}

impl From<&SandboxSpec> for wire::SandboxSpec {
    fn from(spec: &SandboxSpec) -> Self {
        Self {
            runtime: spec.runtime.clone(),
            process: spec.process.as_ref().map(Into::into),
            root: root(&spec.root).map(|kind| wire::RootFs { kind: Some(kind) }),
            mounts: spec.mounts.iter().map(mount).collect(),
            hostname: spec.hostname.clone(),
            network: network(&spec.network).map(|kind| wire::Network { kind: Some(kind) }),
            limits: unless_default(&spec.limits, |limits| wire::Limits {
                memory_bytes: limits.memory_bytes,
                swap_bytes: limits.swap_bytes,
                cpu_millis: limits.cpu_millis,
                pids: limits.pids,
            }),
            requests: unless_default(&spec.requests, |requests| wire::Requests {
                memory_bytes: requests.memory_bytes,
                cpu_millis: requests.cpu_millis,
            }),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
            options: unless_default(&spec.options, Clone::clone),
            stop_grace: Some(duration(spec.stop.grace)),
            isolation: unless_default(&spec.isolation, isolation),
        }
    }
}

impl From<&ProcessSpec> for wire::ProcessSpec {
    fn from(process: &ProcessSpec) -> Self {
        let rlimit = |limit: &Rlimit| wire::Rlimit {
            resource: resource_name(limit.resource).to_owned(),
            soft: limit.soft,
            hard: limit.hard,
        };
        Self {
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: text(&process.cwd),
            user: unless_default(&process.user, |user| wire::User {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
            }),
            rlimits: process.rlimits.iter().map(rlimit).collect(),
            stdio: unless_default(&process.stdio, |stdio| wire::Stdio {
                stdin: stdio.stdin.as_deref().map(text),
                stdout: stdio.stdout.as_deref().map(text),
                stderr: stdio.stderr.as_deref().map(text),
                log_bytes: stdio.log_bytes,
            }),
        }
    }
}

fn root(root: &RootFs) -> Option<root_fs::Kind> {
    Some(match root {
        RootFs::Minimal => return None,
        RootFs::Directory { path, writable } => {
            root_fs::Kind::Directory(wire::RootDirectory { path: text(path), writable: *writable })
        }
        RootFs::HostReadOnly => root_fs::Kind::HostReadOnly(wire::HostReadOnly {}),
    })
}

fn mount(mount: &Mount) -> wire::Mount {
    wire::Mount { source: text(&mount.source), target: text(&mount.target), writable: mount.writable }
}

fn network(network: &Network) -> Option<network::Kind> {
    Some(match network {
        Network::New => return None,
        Network::None => network::Kind::None(wire::NoNetwork {}),
        Network::Join(path) => network::Kind::Join(text(path)),
    })
}

fn isolation(isolation: &Isolation) -> wire::Isolation {
    let users = match isolation.users {
        Users::Allocated => None,
        Users::Mapped { host_start, count } => {
            Some(isolation::Users::Mapped(wire::UserRange { host_start, count }))
        }
        Users::Host => Some(isolation::Users::Host(wire::HostUsers {})),
    };
    wire::Isolation {
        users,
        kept_capabilities: isolation.kept_capabilities,
        allow_new_privileges: isolation.allow_new_privileges,
        no_seccomp: isolation.no_seccomp,
        unmasked_paths: isolation.unmasked_paths,
        no_init: isolation.no_init,
    }
}

/// A duration as a message; what no message can carry is cut to the longest that one can.
pub fn duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

/// The duration that a message says.
///
/// # Errors
/// [`MalformedSpec`], naming `field`, if it is negative or its parts are out of their range.
pub fn positive_duration(
    message: &prost_types::Duration,
    field: &'static str,
) -> Result<Duration, MalformedSpec> {
    let prost_types::Duration { seconds, nanos } = *message;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(MalformedSpec(format!("{field} is {seconds} s and {nanos} ns; it must not be negative"))),
    }
}

impl TryFrom<wire::SandboxSpec> for SandboxSpec {
    type Error = MalformedSpec;

    fn try_from(message: wire::SandboxSpec) -> Result<Self, MalformedSpec> {
        let grace = message.stop_grace.map(|grace| positive_duration(&grace, "stop_grace")).transpose()?;
        Ok(Self {
            runtime: message.runtime,
            process: message.process.map(TryInto::try_into).transpose()?,
            root: match message.root.and_then(|root| root.kind) {
                None => RootFs::Minimal,
                Some(root_fs::Kind::Directory(wire::RootDirectory { path, writable })) => {
                    RootFs::Directory { path: path.into(), writable }
                }
                Some(root_fs::Kind::HostReadOnly(wire::HostReadOnly {})) => RootFs::HostReadOnly,
            },
            mounts: message
                .mounts
                .into_iter()
                .map(|wire::Mount { source, target, writable }| Mount {
                    source: source.into(),
                    target: target.into(),
                    writable,
                })
                .collect(),
            hostname: message.hostname,
            network: match message.network.and_then(|network| network.kind) {
                None => Network::New,
                Some(network::Kind::None(wire::NoNetwork {})) => Network::None,
                Some(network::Kind::Join(path)) => Network::Join(path.into()),
            },
            limits: message.limits.map_or_else(Limits::default, |limits| Limits {
                memory_bytes: limits.memory_bytes,
                swap_bytes: limits.swap_bytes,
                cpu_millis: limits.cpu_millis,
                pids: limits.pids,
            }),
            requests: message.requests.map_or_else(Requests::default, |requests| Requests {
                memory_bytes: requests.memory_bytes,
                cpu_millis: requests.cpu_millis,
            }),
            labels: message.labels,
            annotations: message.annotations,
            options: message.options.unwrap_or_default(),
            stop: grace.map_or_else(StopPolicy::default, |grace| StopPolicy { grace }),
            isolation: message.isolation.map_or_else(Isolation::default, Into::into),
        })
    }
}

impl TryFrom<wire::ProcessSpec> for ProcessSpec {
    type Error = MalformedSpec;

    fn try_from(message: wire::ProcessSpec) -> Result<Self, MalformedSpec> {
        let rlimit = |wire::Rlimit { resource, soft, hard }| {
            let known = resource_named(&resource).ok_or_else(|| {
                let names: Vec<_> = RESOURCES.into_iter().map(|(_, name)| name).collect();
                let names = names.join(", ");
                MalformedSpec(format!("rlimits names the resource {resource:?}, and there are only {names}"))
            })?;
            Ok(Rlimit { resource: known, soft, hard })
        };
        Ok(Self {
            args: message.args,
            env: message.env,
            cwd: message.cwd.into(),
            user: message.user.map_or_else(User::default, |wire::User { uid, gid, groups }| User {
                uid,
                gid,
                groups,
            }),
            rlimits: message.rlimits.into_iter().map(rlimit).collect::<Result<_, _>>()?,
            stdio: message.stdio.map_or_else(Stdio::default, |stdio| Stdio {
                stdin: stdio.stdin.map(PathBuf::from),
                stdout: stdio.stdout.map(PathBuf::from),
                stderr: stdio.stderr.map(PathBuf::from),
                log_bytes: stdio.log_bytes,
            }),
        })
    }
}

impl From<wire::Isolation> for Isolation {
    fn from(message: wire::Isolation) -> Self {
        Self {
            users: match message.users {
                None => Users::Allocated,
                Some(isolation::Users::Mapped(wire::UserRange { host_start, count })) => {
                    Users::Mapped { host_start, count }
                }
                Some(isolation::Users::Host(wire::HostUsers {})) => Users::Host,
            },
            kept_capabilities: message.kept_capabilities,
            allow_new_privileges: message.allow_new_privileges,
            no_seccomp: message.no_seccomp,
            unmasked_paths: message.unmasked_paths,
            no_init: message.no_init,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;
    use prost_types::Any;

    use super::*;

    fn path() -> impl Strategy<Value = PathBuf> {
        "/[a-z0-9\u{e9} _.-]{0,20}".prop_map(Into::into)
    }

    fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
        btree_map(".{1,8}", ".{0,8}", 0..4)
    }

    fn process() -> impl Strategy<Value = ProcessSpec> {
        let user = (any::<u32>(), any::<u32>(), vec(any::<u32>(), 0..3));
        let rlimits = vec((0..RESOURCES.len(), any::<u64>(), any::<u64>()), 0..4);
        let stdio = (option::of(path()), option::of(path()), option::of(path()), option::of(any::<u64>()));
        (vec(".{0,8}", 0..4), vec(".{0,8}", 0..4), option::of(path()), user, rlimits, stdio).prop_map(
            |(args, env, cwd, (uid, gid, groups), rlimits, (stdin, stdout, stderr, log_bytes))| ProcessSpec {
                args,
                env,
                cwd: cwd.unwrap_or_default(),
                user: User { uid, gid, groups },
                rlimits: rlimits
                    .into_iter()
                    .map(|(resource, soft, hard)| Rlimit { resource: RESOURCES[resource].0, soft, hard })
                    .collect(),
                stdio: Stdio { stdin, stdout, stderr, log_bytes },
            },
        )
    }

    fn root_and_network() -> impl Strategy<Value = (RootFs, Network)> {
        let root = prop_oneof![
            Just(RootFs::Minimal),
            Just(RootFs::HostReadOnly),
            (path(), any::<bool>()).prop_map(|(path, writable)| RootFs::Directory { path, writable }),
        ];
        let network = prop_oneof![Just(Network::None), Just(Network::New), path().prop_map(Network::Join)];
        (root, network)
    }

    fn limits() -> impl Strategy<Value = (Limits, Requests)> {
        let limit = || option::of(any::<u64>());
        (limit(), limit(), limit(), limit(), any::<u64>(), any::<u64>()).prop_map(
            |(memory_bytes, swap_bytes, cpu_millis, pids, requested_bytes, requested_millis)| {
                (
                    Limits { memory_bytes, swap_bytes, cpu_millis, pids },
                    Requests { memory_bytes: requested_bytes, cpu_millis: requested_millis },
                )
            },
        )
    }

    fn any_isolation() -> impl Strategy<Value = Isolation> {
        let users = prop_oneof![
            Just(Users::Allocated),
            Just(Users::Host),
            (any::<u32>(), any::<u32>()).prop_map(|(host_start, count)| Users::Mapped { host_start, count }),
        ];
        (users, any::<u64>(), any::<[bool; 4]>()).prop_map(|(users, kept_capabilities, on)| Isolation {
            users,
            kept_capabilities,
            allow_new_privileges: on[0],
            no_seccomp: on[1],
            unmasked_paths: on[2],
            no_init: on[3],
        })
    }

    fn spec() -> impl Strategy<Value = SandboxSpec> {
        let mounts = vec(
            (path(), path(), any::<bool>()).prop_map(|(source, target, writable)| Mount {
                source,
                target,
                writable,
            }),
            0..4,
        );
        let options =
            (".{0,20}", vec(any::<u8>(), 0..200)).prop_map(|(type_url, value)| Any { type_url, value });
        let ends = (options, 0..=86_400_u64, 0..1_000_000_000_u32);
        let names = (".{0,8}", option::of(".{0,8}"), texts(), texts());
        (names, option::of(process()), root_and_network(), mounts, limits(), ends, any_isolation()).prop_map(
            |(names, process, (root, network), mounts, (limits, requests), ends, isolation)| {
                let (runtime, hostname, labels, annotations) = names;
                let (options, seconds, nanos) = ends;
                let stop = StopPolicy { grace: Duration::new(seconds, nanos) };
                SandboxSpec {
                    runtime,
                    process,
                    root,
                    mounts,
                    hostname,
                    network,
                    limits,
                    requests,
                    labels,
                    annotations,
                    options,
                    stop,
                    isolation,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn every_spec_comes_back_equal_and_as_the_same_bytes(spec in spec()) {
            let bytes = encode_spec(&spec);
            let back = decode_spec(&bytes).expect("it was a spec");
            prop_assert_eq!(encode_spec(&back), bytes);
            prop_assert_eq!(back, spec);
        }

        #[test]
        fn no_bytes_are_too_strange_to_be_refused(bytes in vec(any::<u8>(), 0..300)) {
            let _spec_or_error = decode_spec(&bytes);
        }
    }

    #[test]
    fn an_empty_message_is_the_smallest_sandbox() {
        assert_eq!(decode_spec(&[]).unwrap(), SandboxSpec::default());
    }

    #[test]
    fn a_message_that_is_no_spec_says_which_field_is_wrong() {
        let refused = |message: wire::SandboxSpec| SandboxSpec::try_from(message).unwrap_err().to_string();
        let grace = |seconds, nanos| wire::SandboxSpec {
            stop_grace: Some(prost_types::Duration { seconds, nanos }),
            ..Default::default()
        };
        assert!(refused(grace(-1, 0)).contains("stop_grace is -1 s"));
        assert!(refused(grace(0, -1)).contains("-1 ns"));
        assert!(refused(grace(1, i32::MAX)).contains("stop_grace"));
        let rlimit = wire::Rlimit { resource: "no\nfile".into(), soft: 1, hard: 1 };
        let process = wire::ProcessSpec { rlimits: vec![rlimit], ..Default::default() };
        let error = refused(wire::SandboxSpec { process: Some(process), ..Default::default() });
        assert!(error.contains(r#"the resource "no\nfile""#) && error.contains("nofile, memlock"), "{error}");
    }
}
