//! What is shown to no sandbox that has its owner among its users: the state directory. Whoever reaches the zygotes' sockets, or
//! the daemon's in the same place, has every sandbox of the machine.
//!
//! The modes there keep out all but its user, and the group if one was given. Where a sandbox's users are the host's own, or a range
//! with one of the two in it, a mount or a root that shows the directory is refused; the host's root is shown with an empty directory
//! in its place.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::kernel_error;
use super::plan::Plan;
use super::state_dir;
use crate::error::{Error, ErrorKind};
use crate::runtime::Instance;
use crate::spec::{Mount, RootFs, SandboxSpec, Users};

/// The state directory, to a sandbox that has its owner.
pub(super) struct OffLimits {
    state: PathBuf,
}

/// A directory or file, by whatever path.
type Identity = (u64, u64);

impl OffLimits {
    /// Nothing where the sandbox does not have the directory's owner, or there is none.
    pub(super) fn of(spec: &SandboxSpec, state: Option<&Path>) -> Option<Self> {
        let state = state?;
        let has_owner = match spec.isolation.users {
            Users::Allocated => false,
            Users::Mapped { host_start, count } => {
                let has = |id: u32| id.checked_sub(host_start).is_some_and(|at| at < count);
                // If that cannot be told, it may be any.
                rustix::fs::stat(state).map_or(true, |stat| has(stat.st_uid) || has(stat.st_gid))
            }
            Users::Host => true,
        };
        has_owner.then(|| Self { state: state.to_owned() })
    }

    /// The life as it is to be planned: with an empty directory over what the host's root would show. Blocks.
    pub(super) fn cover(&self, instance: &Arc<Instance>) -> Result<Arc<Instance>, Error> {
        let spec = &instance.spec;
        let own_tmp = spec.process.is_some() && self.is_below_tmp();
        if spec.root != RootFs::HostReadOnly || own_tmp {
            return Ok(Arc::clone(instance));
        }
        let failed = |error: Errno| kernel_error("start", self.named(), error.into());
        let mount_of = |path: &Path| {
            let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
            let found = rustix::fs::statx(CWD, path, AtFlags::empty(), flags)?;
            Ok((found.stx_mnt_id, (found.stx_dev_major, found.stx_dev_minor)))
        };
        let (root, state) = (mount_of(Path::new("/")), mount_of(&self.state));
        let (root, state) = (root.map_err(failed)?, state.map_err(failed)?);
        if root.0 == state.0 {
            let source = self.state.join(state_dir::EMPTY);
            let cover = Mount { source, target: self.state.clone(), writable: false };
            let mounts = std::iter::once(cover).chain(spec.mounts.iter().cloned()).collect();
            return Ok(instance.with_spec(SandboxSpec { mounts, ..SandboxSpec::clone(spec) }));
        }
        if root.1 == state.1 {
            // Where in the root that is cannot be told.
            return Err(self.refuse("the host's root", Path::new("/")));
        }
        // The host's root comes without other file systems.
        Ok(Arc::clone(instance))
    }

    /// Where a sandbox with a process has a file system of its own.
    fn is_below_tmp(&self) -> bool {
        Path::new("/tmp").canonicalize().is_ok_and(|tmp| self.state.starts_with(tmp))
    }

    /// Refuses a plan whose trees show the directory, or something in it. Blocks.
    pub(super) fn check(&self, spec: &SandboxSpec, plan: &Plan) -> Result<(), Error> {
        let root = match &spec.root {
            RootFs::Minimal => None,
            RootFs::Directory { path, .. } => Some(Some(("the root", path.as_path()))),
            RootFs::HostReadOnly => Some(None),
        };
        let cover = self.state.join(state_dir::EMPTY);
        let mounts = spec.mounts.iter().map(|mount| mount.source.as_path());
        let mounts = mounts.map(|path| (path != cover).then_some(("the source of a mount", path)));
        let own = self.own().map_err(|error| kernel_error("start", self.named(), error.into()))?;
        for (named, tree) in root.into_iter().chain(mounts).zip(plan.trees()) {
            // What is covered, and what covers it.
            let Some((what, path)) = named else { continue };
            let shown = shown(path)
                .map_err(|error| kernel_error("start", format!("{what}, {path:?}"), error.into()))?;
            // A link on the way may have been turned between the two looks: what counts is what was opened.
            let opened = rustix::fs::fstat(tree).is_ok_and(|stat| identity(&stat) == shown.1);
            let (real, identity) = shown;
            if !opened
                || real.starts_with(&self.state)
                || self.state.starts_with(&real)
                || own.contains(&identity)
            {
                return Err(self.refuse(what, path));
            }
        }
        Ok(())
    }

    /// The directory, those it is in, and that of the sockets, by what they are: a path may lead there through another mount.
    fn own(&self) -> Result<Vec<Identity>, Errno> {
        let sockets = self.state.join(state_dir::SOCKETS);
        sockets.ancestors().map(|path| Ok(identity(&rustix::fs::stat(path)?))).collect()
    }

    fn named(&self) -> String {
        format!("the state directory {}", self.state.display())
    }

    fn refuse(&self, what: &str, path: &Path) -> Error {
        let found = format!(
            "{what}, {path:?} on the host, shows {}, and the sandbox has its owner among its users",
            self.named()
        );
        Error::new(ErrorKind::InvalidArgument, "start", found)
            .remedy("show it something else, or leave its users to be allocated")
    }
}

fn identity(stat: &rustix::fs::Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// Where a path leads, without links and dots, and what is there.
fn shown(path: &Path) -> Result<(PathBuf, Identity), Errno> {
    let there = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let identity = identity(&rustix::fs::fstat(&there)?);
    let real = rustix::fs::readlink(format!("/proc/self/fd/{}", there.as_raw_fd()), Vec::new())?;
    Ok((OsString::from_vec(real.into_bytes()).into(), identity))
}
