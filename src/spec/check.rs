//! Checks a spec against its bounds, and against every rule that holds on any machine.

use std::collections::BTreeMap;

use super::{Limits, Network, ProcessSpec, Rlimit, RootFs, SandboxSpec, User, Users, bounds};
use crate::error::{Error, ErrorKind};

/// The checks of one call.
pub(super) struct Check {
    pub(super) tried: &'static str,
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
        // Neither a request nor the journal could carry it: both are protobuf.
        let text =
            path.to_str().ok_or_else(|| self.refuse(format!("{what} is {path:?}, which is not UTF-8")))?;
        self.no_nul(what, text)?;
        if path.is_absolute() {
            return Ok(());
        }
        Err(self.refuse(format!("{what} is {path:?}; an absolute path is needed")))
    }

    pub(super) fn spec(&self, spec: &SandboxSpec) -> Result<(), Error> {
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
