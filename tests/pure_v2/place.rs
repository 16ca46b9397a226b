//! A case's place: a cgroup to itself, as a service manager delegates it to a service.
//!
//! ```text
//! /sys/fs/cgroup/sandkeeper-pure-v2-NAME/     memory, pids and cpu are available   (`cgroup()`)
//! └── sandkeeper-host/                        empty until the case moves there     (`move_to_leaf()`)
//! ```
//!
//! The case's process begins at the top of it. There the kernel refuses to limit groups below, as it does to any
//! service that has not moved: a case moves, has the backend do it, or tests that refusal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Tells a case's process where its cgroup is.
const CGROUP_VARIABLE: &str = "SANDKEEPER_CASE_CGROUP";

/// What the cases need of the v2 hierarchy.
pub(crate) const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The leaf for the case's own process, under the name the backend knows for it.
const LEAF: &str = "sandkeeper-host";

/// The longest a case may take.
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// The same at full size (`SANDKEEPER_FULL`).
const CASE_LIMIT_FULL: Duration = Duration::from_secs(600);

/// What became of a case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) passed: bool,
    /// What it printed, and why it failed.
    pub(crate) output: String,
}

/// Whether the suite runs at its full size.
pub(crate) fn is_full() -> bool {
    std::env::var_os("SANDKEEPER_FULL").is_some_and(|value| value != "0" && !value.is_empty())
}

/// For a case: the cgroup that is its own.
pub(crate) fn cgroup() -> PathBuf {
    PathBuf::from(std::env::var_os(CGROUP_VARIABLE).expect("a case runs only in a place made for it"))
}

/// Moves this process to the top of its place.
pub(crate) fn enter() {
    join(&cgroup());
}

/// For a case: moves this process into a leaf, so that groups beside it can be limited.
pub(crate) fn move_to_leaf() {
    let leaf = cgroup().join(LEAF);
    fs::create_dir_all(&leaf).unwrap_or_else(|error| panic!("cannot make {}: {error}", leaf.display()));
    join(&leaf);
}

fn join(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .unwrap_or_else(|error| panic!("cannot move to {}: {error}", cgroup.display()));
}

/// The top of a v2 hierarchy that hands on the controllers the cases need.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Finds it on this machine, or says what is missing.
    pub(crate) fn find() -> Result<Self, String> {
        let mounts =
            fs::read_to_string("/proc/self/mounts").map_err(|e| format!("/proc/self/mounts: {e}"))?;
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .map(|fields| PathBuf::from(fields[1]))
            .ok_or("no cgroup2 is mounted")?;
        let available = read(&root.join("cgroup.controllers"));
        for controller in CONTROLLERS {
            if !available.split_whitespace().any(|name| name == controller) {
                return Err(format!("cgroup v2 at {} has no {controller} controller", root.display()));
            }
            let enabled = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
            enabled.map_err(|e| format!("cannot enable {controller} below {}: {e}", root.display()))?;
        }
        Ok(Self { root })
    }

    /// Runs a case as a process of its own in a new place, and takes the place away again.
    pub(crate) fn run(&self, name: &str) -> Outcome {
        let place = self.root.join(format!("sandkeeper-pure-v2-{name}"));
        let printed = std::env::temp_dir().join(format!("sandkeeper-pure-v2-{}-{name}", std::process::id()));
        remove(&place); // of an earlier run that was killed
        let outcome = run_in(&place, name, &printed).unwrap_or_else(|error| Outcome {
            passed: false,
            output: format!("cannot run the case in {}: {error}", place.display()),
        });
        remove(&place);
        let _gone = fs::remove_file(&printed);
        outcome
    }
}

fn run_in(place: &Path, name: &str, printed: &Path) -> io::Result<Outcome> {
    fs::create_dir(place)?;
    let out = File::create(printed)?;
    let child = Command::new(std::env::current_exe()?)
        .args(["--case", name])
        .env(CGROUP_VARIABLE, place)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let limit = if is_full() { CASE_LIMIT_FULL } else { CASE_LIMIT };
    let ended = wait(child, limit, place)?;
    let mut output = String::from_utf8_lossy(&fs::read(printed)?).into_owned();
    let mut complain = |why: String| {
        output.push_str(&format!("case {name:?}: {why}\n"));
        false
    };
    let passed = match ended {
        None => complain(format!("has not ended after {} s", limit.as_secs())),
        Some(status) if !status.success() => complain(format!("ended with {status}")),
        Some(_) => {
            let left = cgroups_below(place, LEAF);
            left.is_empty() || complain(format!("left cgroups behind: {}", left.join(", ")))
        }
    };
    Ok(Outcome { passed, output })
}

/// Waits for the case's end; past the limit ends everything in its place, and is `None`.
fn wait(mut child: Child, limit: Duration, place: &Path) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            let _killed = fs::write(place.join("cgroup.kill"), "1");
            child.kill()?; // it may not have joined yet
            child.wait()?;
            return Ok(None);
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread that has nothing else to do")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

fn cgroups_below(place: &Path, except: &str) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<_> =
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != except);
    names.sort();
    names
}

/// Ends what runs in a cgroup and removes it with all below it. A killed process holds its cgroup for a moment.
fn remove(cgroup: &Path) {
    let _killed = fs::write(cgroup.join("cgroup.kill"), "1");
    for _ in 0..400 {
        for below in cgroups_below(cgroup, "") {
            remove(&cgroup.join(below));
        }
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                pause();
            }
            _ => return,
        }
    }
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
