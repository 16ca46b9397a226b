//! What is shown to no sandbox that has its owner among its users: the state directory, that of the logs, and whatever else the
//! configuration names, such as the daemon's socket. Whoever reaches the zygotes' sockets, or the daemon's, has every sandbox of the
//! machine.
//!
//! The modes there keep out all but its user, and the group if one was given. Where a sandbox's users are the host's own, or a range
//! with one of the two in it, or where this program is an ordinary user and every sandbox is that one, a mount or a root that shows
//! one of them is refused: by its path, by what is there (a path may lead there through another mount), or by what is mounted
//! anywhere below it, which comes along (`submounts`). The host's root comes without other mounts, and with an empty directory, or
//! an empty file, in the place of what is its own.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::host_files::{self, Identity, identity};
use super::kernel_error;
use super::plan::Plan;
use super::state_dir;
use super::submounts::{Mounts, Position};
use crate::error::{Error, ErrorKind};
use crate::runtime::Instance;
use crate::spec::{Mount, RootFs, SandboxSpec, Users};

/// What of the host is kept from sandboxes that have its owner.
#[derive(Debug, Clone)]
pub(super) struct OffLimits {
    /// Whether all sandboxes are this program's own user.
    one_user: bool,
    places: Vec<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    what: &'static str,
    /// Without links and dots.
    path: PathBuf,
}

impl Place {
    fn named(&self) -> String {
        format!("{} {}", self.what, self.path.display())
    }

    fn is_state(&self) -> bool {
        self.what == STATE
    }
}

const STATE: &str = "the state directory";

/// What a path leads to.
struct Shown {
    /// Without links and dots.
    real: PathBuf,
    identity: Identity,
    mount: u64,
}

impl OffLimits {
    /// Looks them up, once. What is named must be there. Blocks.
    pub(super) fn find(
        one_user: bool,
        state: Option<&Path>,
        logs: Option<&Path>,
        others: &[PathBuf],
    ) -> Result<Self, Error> {
        let named = state.map(|path| (STATE, path)).into_iter();
        let named = named.chain(logs.map(|path| ("the log directory", path)));
        let named = named.chain(others.iter().map(|path| ("what is off limits,", path.as_path())));
        let place = |(what, path): (&'static str, &Path)| {
            let failed =
                |error| kernel_error("set up the linux backend", format!("{what} {}", path.display()), error);
            Ok(Place { what, path: path.canonicalize().map_err(failed)? })
        };
        Ok(Self { one_user, places: named.map(place).collect::<Result<_, Error>>()? })
    }

    /// Those that this sandbox has the owner of. Blocks.
    pub(super) fn of(&self, spec: &SandboxSpec) -> Self {
        let has_owner = |place: &Place| match spec.isolation.users {
            _ if self.one_user => true,
            Users::Allocated => false,
            Users::Mapped { host_start, count } => {
                let has = |id: u32| id.checked_sub(host_start).is_some_and(|at| at < count);
                // If that cannot be told, it may be any.
                rustix::fs::stat(&place.path).map_or(true, |stat| has(stat.st_uid) || has(stat.st_gid))
            }
            Users::Host => true,
        };
        let places = self.places.iter().filter(|place| has_owner(place)).cloned().collect();
        Self { places, ..*self }
    }

    /// The life as it is to be planned: with an empty directory or file over what the host's root would show of a place through
    /// which this program is spoken to. Blocks.
    pub(super) fn cover(&self, instance: &Arc<Instance>) -> Result<Arc<Instance>, Error> {
        let spec = &instance.spec;
        if spec.root != RootFs::HostReadOnly {
            return Ok(Arc::clone(instance));
        }
        let mut covers = Vec::new();
        for place in &self.places {
            if let Some(source) = self.cover_of(place)
                && !(spec.process.is_some() && place.is_below_tmp())
                && place.is_on_root()?
            {
                covers.push(Mount { source, target: place.path.clone(), writable: false });
            }
        }
        if covers.is_empty() {
            return Ok(Arc::clone(instance));
        }
        let mounts = covers.into_iter().chain(spec.mounts.iter().cloned()).collect();
        Ok(instance.with_spec(SandboxSpec { mounts, ..SandboxSpec::clone(spec) }))
    }

    /// What is shown in its place; nothing where that of another covers it. Other directories, as that of the logs, take no commands.
    fn cover_of(&self, place: &Place) -> Option<PathBuf> {
        if place.is_state() {
            return Some(place.path.join(state_dir::EMPTY));
        }
        let inside = self.places.iter().any(|state| state.is_state() && place.path.starts_with(&state.path));
        // Without its rights as a device, nothing can be done with it.
        (!inside && !place.path.is_dir()).then(|| "/dev/null".into())
    }

    /// Refuses a plan whose trees show one of them, or something in it. Blocks.
    pub(super) fn check(&self, spec: &SandboxSpec, plan: &Plan) -> Result<(), Error> {
        if self.places.is_empty() || host_files::sources(spec).next().is_none() {
            return Ok(());
        }
        let failed =
            |error: std::io::Error| kernel_error("start", "the mounts of the host".to_owned(), error);
        let mounts = Mounts::parse(&std::fs::read("/proc/self/mountinfo").map_err(failed)?);
        let known: Vec<_> = self.places.iter().map(|place| place.look(&mounts)).collect::<Result<_, _>>()?;
        let state = self.places.iter().find(|place| place.is_state());
        let cover = state.map(|state| state.path.join(state_dir::EMPTY));
        let mut trees = plan.trees();
        let mut checked = plan.sources.iter().copied();
        for (what, path, _) in host_files::sources(spec) {
            let opened = match trees.next() {
                Some(tree) => rustix::fs::fstat(tree).ok().map(|stat| identity(&stat)),
                // As a builder will find it, or else refuse it.
                None => checked.next(),
            };
            // What is covered, and what covers it.
            let is_root = spec.root == RootFs::HostReadOnly && what == "the root";
            if is_root || cover.as_deref() == Some(path) {
                continue;
            }
            let shown = shown(path)
                .map_err(|error| kernel_error("start", format!("{what}, {path:?}"), error.into()))?;
            // A link on the way may have been turned between the two looks: what counts is what was opened.
            let is_other = opened != Some(shown.identity);
            for (place, (own, positions)) in self.places.iter().zip(&known) {
                let by_path = shown.real.starts_with(&place.path) || place.path.starts_with(&shown.real);
                let by_mount = |position| mounts.showing(&shown.real, shown.mount, position);
                if is_other || by_path || own.contains(&shown.identity) {
                    return Err(self.refuse(what, path, place, None));
                }
                if let Some(point) = positions.iter().find_map(by_mount) {
                    return Err(self.refuse(what, path, place, Some(point)));
                }
            }
        }
        Ok(())
    }

    fn refuse(&self, what: &str, path: &Path, place: &Place, by: Option<PathBuf>) -> Error {
        let by = by.map_or_else(String::new, |point| format!(" by the mount at {}", point.display()));
        let found = format!("{what}, {path:?} on the host, would show {} to the sandbox{by}", place.named());
        if self.one_user {
            return Error::new(ErrorKind::FailedPrecondition, "start", found)
                .remedy("show it a smaller directory, or keep what is named elsewhere");
        }
        let found = format!("{found}, which has its owner among its users");
        Error::new(ErrorKind::InvalidArgument, "start", found)
            .remedy("show it something else, or leave its users to be allocated")
    }
}

impl Place {
    /// Whether the host's root shows it.
    fn is_on_root(&self) -> Result<bool, Error> {
        let failed = |error: Errno| kernel_error("start", self.named(), error.into());
        let (root, own) = (stat_of(Path::new("/")), stat_of(&self.path));
        let (root, own) = (root.map_err(failed)?, own.map_err(failed)?);
        if root.stx_mnt_id == own.stx_mnt_id {
            return Ok(true);
        }
        let device = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor);
        if device(&root) == device(&own) {
            // Where in the root that is cannot be told.
            let found =
                format!("the host's root, \"/\" on the host, would show {} to the sandbox", self.named());
            return Err(Error::new(ErrorKind::InvalidArgument, "start", found)
                .remedy("show it something else, or leave its users to be allocated"));
        }
        // The host's root comes without other file systems.
        Ok(false)
    }

    /// Where a sandbox with a process has a file system of its own.
    fn is_below_tmp(&self) -> bool {
        Path::new("/tmp").canonicalize().is_ok_and(|tmp| self.path.starts_with(tmp))
    }

    /// It, what it is in, and the directory of the zygotes' sockets, by what they are; and where it is in its file system.
    fn look(&self, mounts: &Mounts) -> Result<(Vec<Identity>, Vec<Position>), Error> {
        let failed = |error: Errno| kernel_error("start", self.named(), error.into());
        let inner = self.path.join(state_dir::SOCKETS);
        let innermost = if self.is_state() { &inner } else { &self.path };
        let (mut own, mut positions) = (Vec::new(), Vec::new());
        for path in innermost.ancestors() {
            match stat_of(path) {
                Ok(stat) => {
                    own.push(identity(&rustix::fs::stat(path).map_err(failed)?));
                    if path.starts_with(&self.path) {
                        positions.extend(mounts.position(stat.stx_mnt_id, path));
                    }
                }
                // A socket that was taken away shows nothing.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok((own, positions))
    }
}

fn stat_of(path: &Path) -> Result<Statx, Errno> {
    rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// Where a path leads.
fn shown(path: &Path) -> Result<Shown, Errno> {
    let there = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let identity = identity(&rustix::fs::fstat(&there)?);
    let mount = rustix::fs::statx(&there, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    let real = rustix::fs::readlink(format!("/proc/self/fd/{}", there.as_raw_fd()), Vec::new())?;
    Ok(Shown { real: OsString::from_vec(real.into_bytes()).into(), identity, mount })
}
