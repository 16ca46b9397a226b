//! The backend's own part of the cgroup tree: a root, one leaf for the zygotes, and one group for each sandbox.
//!
//! ```text
//! <our own cgroup>/                 without root: the one that was delegated
//! ├── sandkeeper-host               where we moved the host, if it asked for that
//! └── sandkeeper-<digest>           the root: marked, and locked while its backend or one of its zygotes is up;
//!     │                             with a state directory, while its backend is
//!     ├── zygotes
//!     └── <namespace>@<id>          marked with the life it is for (mark)
//! ```
//! Nothing outside the root is touched, and inside it nothing that lives without our mark.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::config::LinuxConfig;
use super::controllers::{self, Controllers};
use super::group;
use super::kernel_error;
use super::machine::Machine;
use super::mark::{self, Mark};
use super::state_dir::StateDir;
use super::workers;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::runtime::Instance;

/// The zygotes' group below the root. No sandbox's group has such a name: theirs contain an `@`.
const ZYGOTES: &str = "zygotes";

/// Where the host is moved on request, below what was its own group.
pub(super) const HOST: &str = "sandkeeper-host";

/// What an error about the root says was tried.
const TRIED: &str = "set up the linux backend";

/// How long a new backend waits for the zygotes of an earlier one of its name to clear up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two looks, where only looking again helps.
const PAUSE: Duration = Duration::from_millis(5);

/// Our part of the tree.
pub(super) struct Tree {
    /// Where the root is.
    pub(super) path: PathBuf,
    /// What can be limited in it.
    pub(super) controllers: Controllers,
    name: String,
    parent: OwnedFd,
    /// Locked. Zygotes share its open file, and with it the lock; unless they are to outlive this program, which then holds the lock
    /// by itself.
    root: OwnedFd,
    leaf: OwnedFd,
    lock: Mutex<Option<OwnedFd>>,
    /// Whether what is in it outlives this program.
    stays: bool,
}

/// What claiming a sandbox's group came to.
pub(super) enum Claim {
    /// It is new, and has this number.
    Made(u64),
    /// What an earlier life left in it has been killed. Claim it again in a moment.
    Clearing,
}

impl Tree {
    /// Makes the root and the leaf. Takes a moment where the remains of an earlier backend of this name must go first.
    pub(super) fn make(machine: &Machine, config: &LinuxConfig) -> Result<Self, Error> {
        let (base, parent) = open_base(&machine.base)?;
        let name = root_name(&identity_of(config));
        let path = base.join(&name);
        let root = claim_root(&parent, &name, &path)?;
        let made = || -> io::Result<OwnedFd> {
            group::mark(&root, "root")?;
            clear(&root)?;
            make_leaf(&root)
        };
        let leaf =
            made().map_err(|error| kernel_error(TRIED, format!("cgroup {}", path.display()), error))?;
        let controllers = controllers::enable(machine, &base, &parent, &root, config.move_host_to_leaf);
        Ok(Self { path, controllers, name, parent, root, leaf, lock: Mutex::new(None), stays: false })
    }

    /// Opens the root of a state directory with all that is in it, or makes it.
    ///
    /// It is where it was made, also if this program has been started in another group since.
    pub(super) fn open_or_make(
        machine: &Machine,
        config: &LinuxConfig,
        state: &StateDir,
    ) -> Result<Self, Error> {
        let name = root_name(&format!("state directory {}", state.path.display()));
        let noted = state.root().filter(|path| {
            path.file_name().is_some_and(|noted| *noted == *name)
                && path.starts_with(&machine.mount)
                && path.is_dir()
        });
        let base = noted.and_then(|path| path.parent().map(Path::to_owned));
        let (base, parent) = open_base(base.as_deref().unwrap_or(&machine.base))?;
        let path = base.join(&name);
        let lock = claim_root(&parent, &name, &path)?;
        let opened = || -> io::Result<(OwnedFd, OwnedFd)> {
            group::mark(&lock, "root")?;
            // Another open file, which does not share the lock.
            let root = group::open(&lock, ".")?.ok_or(Errno::NOENT)?;
            let leaf = match group::open(&root, ZYGOTES)? {
                Some(leaf) => leaf,
                None => make_leaf(&root)?,
            };
            state.note_root(&path)?;
            Ok((root, leaf))
        };
        let (root, leaf) =
            opened().map_err(|error| kernel_error(TRIED, format!("cgroup {}", path.display()), error))?;
        let controllers = controllers::enable(machine, &base, &parent, &root, config.move_host_to_leaf);
        Ok(Self { path, controllers, name, parent, root, leaf, lock: Mutex::new(Some(lock)), stays: true })
    }

    /// Descriptors of the root, the zygotes' leaf and the root's parent. They share our open files.
    pub(super) fn share(&self) -> io::Result<[OwnedFd; 3]> {
        Ok([self.root.try_clone()?, self.leaf.try_clone()?, self.parent.try_clone()?])
    }

    /// Opens the group of `key`, if it is there and is the one of this number, and not a later one of the same name.
    pub(super) fn open(&self, key: &SandboxKey, number: u64) -> io::Result<Option<OwnedFd>> {
        match group::open(&self.root, &key.file_name(255))? {
            Some(group) if group::number(&group)? == number => Ok(Some(group)),
            _ => Ok(None),
        }
    }

    /// Lets another backend have the root, if it stays.
    pub(super) fn release(&self) {
        drop(self.lock.lock().take());
    }

    /// Opens the group of that name, whoever's it is.
    pub(super) fn open_named(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        group::open(&self.root, name)
    }

    /// Removes the group of that name if nothing lives in it.
    pub(super) fn remove_named(&self, name: &str) -> io::Result<bool> {
        group::remove(&self.root, name)
    }

    /// The numbers and names of all groups but the zygotes'.
    pub(super) fn groups(&self) -> io::Result<Vec<(u64, String)>> {
        let mut groups = group::numbered_children(&self.root)?;
        groups.retain(|(_, name)| name != ZYGOTES);
        Ok(groups)
    }

    /// Makes a fresh group for a life, with its limits.
    ///
    /// A group of that name which is there already is made away with if nothing lives in it or if it is ours. One in
    /// which something lives that is not ours is left alone, and the claim refused.
    pub(super) fn claim(&self, instance: &Instance, ids: Option<u32>) -> Result<Claim, Error> {
        let name = instance.key.file_name(255);
        let failed =
            |error| kernel_error("create", format!("cgroup {}", self.path.join(&name).display()), error);
        // More than two rounds only if somebody else makes and removes groups here at the same time.
        for _ in 0..8 {
            if let Some(group) = group::make(&self.root, &name).map_err(failed)? {
                return match self.lay_out(&group, instance, ids) {
                    Ok(number) => Ok(Claim::Made(number)),
                    Err(error) => {
                        drop(group::remove(&self.root, &name));
                        Err(error)
                    }
                };
            }
            let Some(group) = group::open(&self.root, &name).map_err(failed)? else { continue };
            if !group::is_populated(&group).map_err(failed)? {
                group::remove(&self.root, &name).map_err(failed)?;
            } else if group::is_marked(&group) {
                group::kill(&group).map_err(failed)?;
                return Ok(Claim::Clearing);
            } else {
                return Err(self.foreign(&name, &group));
            }
        }
        Err(failed(Errno::BUSY.into()))
    }

    fn foreign(&self, name: &str, group: &OwnedFd) -> Error {
        let path = self.path.join(name);
        let processes = group::describe_processes(group).join(", ");
        Error::new(
            ErrorKind::FailedPrecondition,
            "create",
            format!("its cgroup {} holds processes that are not ours: {processes}", path.display()),
        )
        .remedy("move them out of it or end them")
    }

    fn lay_out(&self, group: &OwnedFd, instance: &Instance, ids: Option<u32>) -> Result<u64, Error> {
        let mark = Mark { key: instance.key, life: instance.life, ids };
        let number = group::mark(group, &mark.to_string())
            .and_then(|()| group::number(group))
            .map_err(|error| kernel_error("create", "its new cgroup", error))?;
        if self.stays {
            let keepsake = instance.keepsake();
            if !keepsake.is_empty()
                && keepsake.len() <= mark::KEEPSAKE_BYTES
                // Its owner has it as well, and this is for the day when that is lost.
                && let Err(error) = group::set_attribute(group, group::KEEPSAKE, &keepsake)
            {
                tracing::debug!(sandbox = %instance.key, %error, "nothing is kept on its cgroup for its owner");
            }
        }
        self.controllers.limit(group, &instance.spec.limits)?;
        crate::failpoint::reach("linux.after-group");
        Ok(number)
    }

    /// Removes the group of `key` if it is the one of this number. Whether it is gone.
    pub(super) fn remove(&self, key: &SandboxKey, number: u64) -> io::Result<bool> {
        match self.open(key, number)? {
            None => Ok(true),
            Some(_) => {
                let gone = group::remove(&self.root, &key.file_name(255))?;
                if gone {
                    crate::failpoint::reach("linux.after-remove");
                }
                Ok(gone)
            }
        }
    }

    /// Kills what is ours in every sandbox's group, and removes those in which nothing lives. How many are left.
    pub(super) fn clear_sandboxes(&self) -> io::Result<usize> {
        let mut left = 0;
        for name in group::children(&self.root)?.into_iter().filter(|name| name != ZYGOTES) {
            left += usize::from(!clear_one(&self.root, &name)?);
        }
        Ok(left)
    }

    /// Removes everything, killing what is ours, the zygotes included. Whether all is gone.
    ///
    /// Gives up after some seconds: on a process that the kernel cannot end, and on groups of others.
    pub(super) fn remove_all(&self) -> bool {
        let start = Instant::now();
        loop {
            let cleared =
                clear(&self.root).is_ok() && matches!(group::remove(&self.parent, &self.name), Ok(true));
            if cleared || start.elapsed() > PATIENCE {
                return cleared;
            }
            workers::pause(PAUSE);
        }
    }

    /// Removes the root if nothing is in it.
    pub(super) fn remove_empty(&self) {
        // Whatever is in one of them keeps it.
        let _ = rustix::fs::unlinkat(&self.root, ZYGOTES, AtFlags::REMOVEDIR);
        let _ = rustix::fs::unlinkat(&self.parent, &*self.name, AtFlags::REMOVEDIR);
    }

    /// The groups below the root other than the zygotes', each with its processes.
    pub(super) fn left_behind(&self) -> Vec<String> {
        let Ok(names) = group::children(&self.root) else { return Vec::new() };
        let names = names.into_iter().filter(|name| name != ZYGOTES);
        names
            .map(|name| match group::open(&self.root, &name) {
                Ok(Some(group)) => format!("{name}: [{}]", group::describe_processes(group).join(", ")),
                _ => name,
            })
            .collect()
    }
}

fn open_base(base: &Path) -> Result<(PathBuf, OwnedFd), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(base, flags, Mode::empty())
        .map_err(|error| kernel_error(TRIED, format!("our own cgroup {}", base.display()), error.into()))?;
    Ok((base.to_owned(), parent))
}

/// What the root is named after: the configured name, or what no other backend of this boot has.
fn identity_of(config: &LinuxConfig) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    config.name.as_ref().map_or_else(
        || {
            let pid = std::process::id();
            format!("process {pid} of {} number {}", start_time(), COUNTER.fetch_add(1, Ordering::Relaxed))
        },
        |name| format!("name {name}"),
    )
}

/// `sandkeeper-` and 16 hex digits.
fn root_name(identity: &str) -> String {
    let digest = Sha256::digest(identity.as_bytes());
    let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sandkeeper-{digest}")
}

fn make_leaf(root: &OwnedFd) -> io::Result<OwnedFd> {
    let leaf = group::make(root, ZYGOTES)?.ok_or(Errno::BUSY)?;
    group::mark(&leaf, ZYGOTES)?;
    Ok(leaf)
}

/// When this process started, in ticks since the boot, so that a process number used again makes another name.
fn start_time() -> String {
    let start_time = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        let (_, after_name) = stat.rsplit_once(')')?;
        // Field 22 of proc_pid_stat(5); the third is the first after the name.
        after_name.split_whitespace().nth(22 - 3).map(str::to_owned)
    });
    // Without it the process number alone must do, as it does unless a killed process of that number left a root.
    start_time.unwrap_or_else(|| "unknown".to_owned())
}

/// Makes the root, or takes over one that an earlier backend of this name left, and locks it.
fn claim_root(parent: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd, Error> {
    let failed = |error| {
        kernel_error(TRIED, format!("cgroup {}", path.display()), error)
            .remedy("mount cgroup v2 writable; under systemd, set Delegate=yes on the service")
    };
    let start = Instant::now();
    loop {
        let made = group::make(parent, name).map_err(failed)?;
        let is_new = made.is_some();
        let root = match made {
            Some(root) => Some(root),
            None => group::open(parent, name).map_err(failed)?,
        };
        if let Some(root) = root
            && (is_new || group::is_marked(&root))
            && rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive).is_ok()
            // Its zygotes may have removed it just before they ended and so gave the lock back.
            && is_still(parent, name, &root).map_err(failed)?
        {
            return Ok(root);
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                TRIED,
                format!(
                    "cgroup {} is in use, by another backend of the same name or by others",
                    path.display()
                ),
            )
            .remedy("end that one first, or give this one another name"));
        }
        workers::pause(PAUSE);
    }
}

fn is_still(parent: &OwnedFd, name: &str, root: &OwnedFd) -> io::Result<bool> {
    match group::open(parent, name)? {
        Some(now) => Ok(group::number(now)? == group::number(root)?),
        None => Ok(false),
    }
}

/// Kills and removes what is ours below the root, the leaf included. What lives there and is not ours stays.
fn clear(root: &OwnedFd) -> io::Result<()> {
    let start = Instant::now();
    loop {
        let mut waiting = false;
        for name in group::children(root)? {
            if !clear_one(root, &name)? {
                let ours = group::open(root, &name)?.is_some_and(group::is_marked);
                waiting |= ours;
            }
        }
        if !waiting {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(Errno::BUSY.into());
        }
        workers::pause(PAUSE);
    }
}

/// Kills what is ours in a group and removes it if nothing lives there. Whether it is gone.
fn clear_one(root: impl AsFd, name: &str) -> io::Result<bool> {
    let Some(group) = group::open(&root, name)? else { return Ok(true) };
    if group::is_populated(&group)? {
        if group::is_marked(&group) {
            group::kill(&group)?;
        }
        return Ok(false);
    }
    group::remove(root, name)
}
