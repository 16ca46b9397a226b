//! Specs of sandboxes as files, in JSON or TOML. `docs/spec.md` shows every field.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};

use super::quantity;
use crate::error::{Error, ErrorKind};
use crate::spec::{
    Isolation, Limits, Mount, Network, ProcessSpec, Requests, Resource, Rlimit, RootFs, SandboxSpec, Stdio,
    StopPolicy, User, Users, bounds,
};
use crate::wire::resource_named;

/// The most of a file that is read: past every bound of a spec, and little enough to hold.
const LARGEST: u64 = 4 * 1_024 * 1_024;

/// How much of its output is kept for a process that says nothing about it.
pub const DEFAULT_LOG_BYTES: u64 = 1_024 * 1_024;

/// The format of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// TOML.
    Toml,
}

/// Reads a spec: TOML if the file's name ends in `.toml`, JSON if it ends in `.json` or is `-`, the standard input.
///
/// # Errors
/// `InvalidArgument`: it cannot be read, or is no spec; the message says in which file, on which line and which field.
pub fn read(path: &Path) -> Result<SandboxSpec, Error> {
    let name = path.display().to_string();
    let refuse =
        |found: String| Error::new(ErrorKind::InvalidArgument, format!("read the spec {name}"), found);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let format = match extension {
        "toml" => Format::Toml,
        "json" => Format::Json,
        _ if name == "-" => Format::Json,
        _ => return Err(refuse("its name ends in neither .json nor .toml".to_owned())),
    };
    let mut text = String::new();
    let read = if name == "-" {
        std::io::stdin().lock().take(LARGEST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text))
    };
    let size = read.map_err(|error| refuse("the system refuses".to_owned()).caused_by(error))?;
    if size as u64 > LARGEST {
        return Err(refuse(format!("it has more than {LARGEST} bytes")));
    }
    parse(&text, format).map_err(|found| refuse(format!("{name}:{found}")))
}

/// The spec that a text says. The error begins with line, column and field, as far as it has them.
///
/// ```
/// use sandkeeper::spec::RootFs;
/// use sandkeeper::surface::spec_file::{Format, parse};
/// let spec = parse("args = ['/bin/sleep', '60']\nroot = 'host'\n[limits]\nmemory = '64MiB'", Format::Toml).unwrap();
/// assert_eq!(spec.root, RootFs::HostReadOnly);
/// assert_eq!(spec.limits.memory_bytes, Some(64 << 20));
/// ```
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(text: &str, format: Format) -> Result<SandboxSpec, String> {
    let file: File = match format {
        Format::Json => from_json(text)?,
        Format::Toml => from_toml(text)?,
    };
    file.into_spec().map_err(|found| format!(" {found}"))
}

/// What a JSON text says.
fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let found = |error: &serde_json::Error| {
        let whole = error.to_string();
        whole.rsplit_once(" at line ").map_or(whole.clone(), |(found, _)| found.to_owned())
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let said = serde_path_to_error::deserialize(&mut json).map_err(|refused| {
        let error = refused.inner();
        format!("{}:{}: {}", error.line(), error.column(), of_field(refused.path(), &found(error)))
    })?;
    json.end().map_err(|error| format!("{}:{}: {}", error.line(), error.column(), found(&error)))?;
    Ok(said)
}

/// What a TOML text says. The error begins with line, column and field.
pub(super) fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let at = |error: &toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{}:{column}: ", before.matches('\n').count() + 1)
    };
    let found = |error: &toml::de::Error| error.message().replace('\n', ", ");
    let toml = toml::Deserializer::parse(text).map_err(|error| at(&error) + &found(&error))?;
    serde_path_to_error::deserialize(toml).map_err(|refused| {
        let error = refused.inner();
        at(error) + &of_field(refused.path(), &found(error))
    })
}

/// `limits.memory: ` and what was found there. Of a field that is unknown the message has the name already.
fn of_field(path: &serde_path_to_error::Path, found: &str) -> String {
    let path = path.to_string();
    let within = match found.starts_with("unknown field") {
        true => path.rsplit_once('.').map_or("", |(above, _)| above),
        false => path.trim_matches('.'),
    };
    if within.is_empty() { found.to_owned() } else { format!("{within}: {found}") }
}

/// A size in bytes: a number, or text with a unit.
#[derive(Debug, Clone, Copy)]
struct Bytes(u64);
/// A duration: text with a unit, or a number of seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(pub(super) Duration);
/// A share of CPUs: a number, or text.
#[derive(Debug, Clone, Copy)]
struct Cpus(u64);
/// A bound of a resource: a number, or `"unlimited"`.
#[derive(Debug, Clone, Copy)]
struct Bound(u64);

/// Whatever may be a number or a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number, or text with a unit")]
enum Quantity {
    Whole(u64),
    Fraction(f64),
    Text(String),
}

macro_rules! quantity {
    ($name:ident, $($pattern:pat => $value:expr),+ $(,)?) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value: Result<_, String> = match Quantity::deserialize(deserializer)? {
                    $($pattern => $value,)+
                };
                value.map($name).map_err(D::Error::custom)
            }
        }
    };
}

quantity!(Bytes,
    Quantity::Whole(bytes) => Ok(bytes),
    Quantity::Fraction(number) => Err(format!("{number} is no size in bytes")),
    Quantity::Text(text) => quantity::bytes(&text),
);
quantity!(Span,
    Quantity::Whole(seconds) => quantity::duration(&format!("{seconds}s")),
    Quantity::Fraction(seconds) => quantity::duration(&format!("{seconds}s")),
    Quantity::Text(text) => quantity::duration(&text),
);
quantity!(Cpus,
    Quantity::Whole(cpus) => quantity::cpu_millis(&cpus.to_string()),
    Quantity::Fraction(cpus) => quantity::cpu_millis(&cpus.to_string()),
    Quantity::Text(text) => quantity::cpu_millis(&text),
);
quantity!(Bound,
    Quantity::Whole(bound) => Ok(bound),
    Quantity::Fraction(number) => Err(format!("{number} is no whole number")),
    Quantity::Text(text) => if text == "unlimited" { Ok(u64::MAX) } else { quantity::bytes(&text) },
);

/// A network, by `none`, `new` or its path.
struct NetworkText(Network);

impl<'de> Deserialize<'de> for NetworkText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        network(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A resource that has a limit.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct RlimitName(Resource);

impl<'de> Deserialize<'de> for RlimitName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = || D::Error::custom(format!("there is no rlimit {name:?}"));
        resource_named(&name).map(Self).ok_or_else(found)
    }
}

/// An environment: a table, or a list of `NAME=value`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a table of variables, or a list of NAME=value")]
enum Env {
    Table(BTreeMap<String, String>),
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"minimal\", \"host\", or a table with `directory` and maybe `writable`")]
enum Root {
    Named(RootName),
    Directory(RootDirectory),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RootName {
    Minimal,
    Host,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RootDirectory {
    directory: PathBuf,
    #[serde(default)]
    writable: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "true, false, or a size")]
enum Log {
    Whether(bool),
    Size(Bytes),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"allocated\", \"host\", or a table with `start` and `count`")]
enum UsersChoice {
    Named(UsersName),
    Range(UsersRange),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum UsersName {
    Allocated,
    Host,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsersRange {
    start: u32,
    count: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    runtime: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    env: Option<Env>,
    cwd: Option<PathBuf>,
    user: Option<UserTable>,
    #[serde(default)]
    rlimits: BTreeMap<RlimitName, RlimitTable>,
    stdio: Option<StdioTable>,
    root: Option<Root>,
    #[serde(default)]
    mounts: Vec<MountTable>,
    hostname: Option<String>,
    network: Option<NetworkText>,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    requests: RequestsTable,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    stop_grace: Option<Span>,
    #[serde(default)]
    isolation: IsolationTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserTable {
    uid: u32,
    gid: Option<u32>,
    #[serde(default)]
    groups: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RlimitTable {
    soft: Bound,
    hard: Option<Bound>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StdioTable {
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    log: Option<Log>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MountTable {
    source: PathBuf,
    target: PathBuf,
    #[serde(default)]
    writable: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    memory: Option<Bytes>,
    swap: Option<Bytes>,
    cpus: Option<Cpus>,
    pids: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestsTable {
    memory: Option<Bytes>,
    cpus: Option<Cpus>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IsolationTable {
    users: Option<UsersChoice>,
    kept_capabilities: u64,
    allow_new_privileges: bool,
    no_seccomp: bool,
    unmasked_paths: bool,
    no_init: bool,
}

impl File {
    fn into_spec(mut self) -> Result<SandboxSpec, String> {
        let isolation = std::mem::take(&mut self.isolation).into_isolation();
        let process = self.process(&isolation)?;
        let network = self.network.map_or(Network::New, |NetworkText(network)| network);
        Ok(SandboxSpec {
            runtime: self.runtime.unwrap_or_default(),
            process,
            root: match self.root {
                None | Some(Root::Named(RootName::Minimal)) => RootFs::Minimal,
                Some(Root::Named(RootName::Host)) => RootFs::HostReadOnly,
                Some(Root::Directory(RootDirectory { directory, writable })) => {
                    RootFs::Directory { path: directory, writable }
                }
            },
            mounts: self
                .mounts
                .into_iter()
                .map(|MountTable { source, target, writable }| Mount { source, target, writable })
                .collect(),
            hostname: self.hostname,
            network,
            limits: Limits {
                memory_bytes: self.limits.memory.map(|Bytes(bytes)| bytes),
                swap_bytes: self.limits.swap.map(|Bytes(bytes)| bytes),
                cpu_millis: self.limits.cpus.map(|Cpus(millis)| millis),
                pids: self.limits.pids,
            },
            requests: Requests {
                memory_bytes: self.requests.memory.map_or(0, |Bytes(bytes)| bytes),
                cpu_millis: self.requests.cpus.map_or(0, |Cpus(millis)| millis),
            },
            labels: self.labels,
            annotations: self.annotations,
            options: prost_types::Any::default(),
            stop: self.stop_grace.map_or_else(StopPolicy::default, |Span(grace)| StopPolicy { grace }),
            isolation,
        })
    }

    fn process(&mut self, isolation: &Isolation) -> Result<Option<ProcessSpec>, String> {
        if self.args.is_empty() {
            let of_a_process = [
                ("env", self.env.is_some()),
                ("cwd", self.cwd.is_some()),
                ("user", self.user.is_some()),
                ("rlimits", !self.rlimits.is_empty()),
                ("stdio", self.stdio.is_some()),
            ];
            return match of_a_process.into_iter().find(|(_, given)| *given) {
                Some((field, _)) => Err(format!("{field} is for a program, and `args` names none")),
                None => Ok(None),
            };
        }
        let rlimits = std::mem::take(&mut self.rlimits).into_iter();
        let rlimits = rlimits.map(|(RlimitName(resource), RlimitTable { soft, hard })| Rlimit {
            resource,
            soft: soft.0,
            hard: hard.unwrap_or(soft).0,
        });
        let stdio = self.stdio.take().unwrap_or_default();
        let log_bytes = match stdio.log {
            Some(Log::Whether(false)) => None,
            Some(Log::Whether(true)) => Some(DEFAULT_LOG_BYTES),
            Some(Log::Size(Bytes(bytes))) => Some(bytes),
            None => default_log(isolation, stdio.stdout.is_some() && stdio.stderr.is_some()),
        };
        Ok(Some(ProcessSpec {
            args: std::mem::take(&mut self.args),
            env: match self.env.take() {
                None => Vec::new(),
                Some(Env::List(list)) => list,
                Some(Env::Table(table)) => {
                    table.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
                }
            },
            cwd: self.cwd.take().unwrap_or_default(),
            user: self.user.take().map_or_else(User::default, |UserTable { uid, gid, groups }| User {
                uid,
                gid: gid.unwrap_or(uid),
                groups,
            }),
            rlimits: rlimits.collect(),
            stdio: Stdio { stdin: stdio.stdin, stdout: stdio.stdout, stderr: stdio.stderr, log_bytes },
        }))
    }
}

/// How much is kept of the output of a process that says nothing about it: its init keeps it, where there is one.
pub(super) fn default_log(isolation: &Isolation, goes_elsewhere: bool) -> Option<u64> {
    (!goes_elsewhere && !isolation.no_init).then_some(DEFAULT_LOG_BYTES)
}

/// `none`, `new`, or the path of a network namespace.
pub(super) fn network(text: &str) -> Result<Network, String> {
    match text {
        "none" => Ok(Network::None),
        "new" => Ok(Network::New),
        path if path.starts_with('/') && path.len() <= bounds::PATH_BYTES => Ok(Network::Join(path.into())),
        _ => Err(format!("{text:?} is no network; write none, new, or the path of a network namespace")),
    }
}

impl IsolationTable {
    fn into_isolation(self) -> Isolation {
        Isolation {
            users: match self.users {
                None | Some(UsersChoice::Named(UsersName::Allocated)) => Users::Allocated,
                Some(UsersChoice::Named(UsersName::Host)) => Users::Host,
                Some(UsersChoice::Range(UsersRange { start, count })) => {
                    Users::Mapped { host_start: start, count }
                }
            },
            kept_capabilities: self.kept_capabilities,
            allow_new_privileges: self.allow_new_privileges,
            no_seccomp: self.no_seccomp,
            unmasked_paths: self.unmasked_paths,
            no_init: self.no_init,
        }
    }
}

#[cfg(test)]
mod tests;
