//! The spec that the command line says, on top of a file's.

use std::path::{Path, PathBuf};

use super::arguments::SpecOptions;
use super::failure::Failure;
use crate::error::Error;
use crate::spec::{Mount, ProcessSpec, RootFs, SandboxSpec};
use crate::surface::spec_file;

impl SpecOptions {
    /// Whether nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The spec.
    pub(super) fn spec(&self) -> Result<SandboxSpec, Failure> {
        let mut spec = match &self.spec {
            Some(path) => spec_file::read(path)?,
            None => SandboxSpec::default(),
        };
        if let Some(root) = self.rootfs.as_deref() {
            spec.root = match root {
                "minimal" => RootFs::Minimal,
                "host" => RootFs::HostReadOnly,
                path => RootFs::Directory { path: absolute(path)?, writable: false },
            };
        }
        let limits = &mut spec.limits;
        limits.memory_bytes = self.memory.or(limits.memory_bytes);
        limits.cpu_millis = self.cpus.or(limits.cpu_millis);
        limits.pids = self.pids.or(limits.pids);
        spec.labels.extend(self.label.iter().cloned());
        for (source, target, writable) in &self.mount {
            spec.mounts.push(Mount { source: absolute(source)?, target: target.into(), writable: *writable });
        }
        if let Some(network) = &self.network {
            spec.network = spec_file::network(network).map_err(Failure::Usage)?;
        }
        spec.hostname = self.hostname.clone().or(spec.hostname);
        spec.stop.grace = self.stop_grace.unwrap_or(spec.stop.grace);
        if let Some(runtime) = &self.runtime {
            spec.runtime.clone_from(runtime);
        }
        self.process(&mut spec)?;
        Ok(spec)
    }

    fn process(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        if !self.argv.is_empty() {
            let default_log = spec_file::default_log(&spec.isolation, false);
            let process = spec.process.get_or_insert_with(|| {
                let mut process = ProcessSpec::default();
                process.stdio.log_bytes = default_log;
                process
            });
            process.args.clone_from(&self.argv);
        }
        let Some(process) = &mut spec.process else {
            let of_a_program = [
                ("--env", !self.env.is_empty()),
                ("--user", self.user.is_some()),
                ("--cwd", self.cwd.is_some()),
                ("--no-log", self.no_log),
            ];
            return match of_a_program.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => Err(Failure::Usage(format!(
                    "{option} is for a program, and none is named: add -- ARGV..."
                ))),
                None => Ok(()),
            };
        };
        set_variables(&mut process.env, &self.env);
        if let Some((uid, gid)) = self.user {
            (process.user.uid, process.user.gid) = (uid, gid);
        }
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        if self.no_log {
            process.stdio.log_bytes = None;
        }
        Ok(())
    }
}

/// Sets variables, each in the place of an earlier one of its name.
fn set_variables(env: &mut Vec<String>, variables: &[(String, String)]) {
    for (name, value) in variables {
        env.retain(|variable| variable.split('=').next() != Some(name));
        env.push(format!("{name}={value}"));
    }
}

/// A path of ours as the daemon needs it, which may be somewhere else.
fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::Usage(format!("{path:?} is no path: {error}")))
}

/// Adds what to do where a program was looked for in a root without any.
pub(super) fn explain(error: Error, spec: &SandboxSpec) -> Error {
    let text = error.to_string();
    if spec.root != RootFs::Minimal || !text.contains("no such program") {
        return error;
    }
    let text = format!(
        "{text}; the root is the minimal one, without programs: --rootfs host shows the host's own, --rootfs DIR another"
    );
    Error::from_remote(error.kind(), text, error.retry_hint())
}

/// The process of an exec.
pub(super) fn program(
    argv: Vec<String>,
    env: &[(String, String)],
    user: Option<(u32, u32)>,
    cwd: Option<&Path>,
) -> ProcessSpec {
    let mut process = ProcessSpec { args: argv, ..ProcessSpec::default() };
    set_variables(&mut process.env, env);
    if let Some((uid, gid)) = user {
        (process.user.uid, process.user.gid) = (uid, gid);
    }
    process.cwd = cwd.map_or_else(PathBuf::new, Path::to_owned);
    process
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::Network;
    use crate::surface::spec_file::DEFAULT_LOG_BYTES;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn nothing_said_is_the_smallest_sandbox() {
        assert!(SpecOptions::default().is_empty());
        assert_eq!(SpecOptions::default().spec().unwrap(), SandboxSpec::default());
    }

    #[test]
    fn a_program_has_a_log_unless_nobody_wants_it() {
        let options = SpecOptions { argv: argv(&["/bin/true"]), ..Default::default() };
        let log = |options: &SpecOptions| options.spec().unwrap().process.unwrap().stdio.log_bytes;
        assert_eq!(log(&options), Some(DEFAULT_LOG_BYTES));
        assert_eq!(log(&SpecOptions { no_log: true, ..options }), None);
    }

    #[test]
    fn options_win_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spec.toml");
        let file = "args = ['/bin/a']\nenv = ['A=1', 'B=2']\nroot = 'host'\nlabels = { a = 'b' }\nstop_grace = '1s'\n\
                    [limits]\npids = 5\nmemory = '1MiB'\n[stdio]\nlog = false";
        std::fs::write(&path, file).unwrap();
        let options = SpecOptions {
            spec: Some(path),
            rootfs: Some("minimal".into()),
            memory: Some(7),
            env: vec![pair("A", "3"), pair("C", "4")],
            label: vec![pair("c", "d")],
            network: Some("none".into()),
            argv: argv(&["/bin/b", "c"]),
            ..Default::default()
        };
        let spec = options.spec().unwrap();
        assert_eq!((spec.root, spec.network), (RootFs::Minimal, Network::None));
        assert_eq!((spec.limits.memory_bytes, spec.limits.pids), (Some(7), Some(5)));
        assert_eq!((spec.labels.len(), spec.stop.grace), (2, Duration::from_secs(1)));
        let process = spec.process.unwrap();
        assert_eq!(process.args, ["/bin/b", "c"]);
        assert_eq!(process.env, ["B=2", "A=3", "C=4"]);
        assert_eq!(process.stdio.log_bytes, None);
    }

    #[test]
    fn what_is_for_a_program_needs_one() {
        let failure = SpecOptions { user: Some((1, 1)), ..Default::default() }.spec().unwrap_err();
        assert!(failure.error().unwrap().to_string().contains("--user is for a program"));
        assert_eq!(failure.code(), 2);
    }

    #[test]
    fn a_directory_is_ours_wherever_the_daemon_is() {
        let options = SpecOptions { rootfs: Some("images/web".into()), ..Default::default() };
        let RootFs::Directory { path, writable: false } = options.spec().unwrap().root else { panic!() };
        assert!(path.is_absolute() && path.ends_with("images/web"));
    }
}
