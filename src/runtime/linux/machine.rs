//! What this machine offers, found out once: kernel, rights, and where cgroup v2 is.

use std::path::{Path, PathBuf};

use super::rights::{self, OneUser, Rights};
use super::submounts::unescape;
use super::tree::HOST;
use crate::error::{Error, ErrorKind};

/// The oldest kernel with all that is needed: `cgroup.kill` came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// The kernel's release, as it names itself.
    pub(super) kernel: String,
    /// Where the cgroup v2 file system is mounted.
    pub(super) mount: PathBuf,
    /// The group that ours are made in: the one that this process is in, or the one above if it stands in a leaf of that.
    pub(super) base: PathBuf,
    /// Whether v1 hierarchies are mounted besides, which then hold the controllers.
    pub(super) hybrid: bool,
    /// With whose rights sandboxes are made.
    pub(super) rights: Rights,
}

fn refuse(kind: ErrorKind, found: impl Into<String>) -> Error {
    Error::new(kind, "set up the linux backend", found.into())
}

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// One for the first thing that is missing, with what to do about it.
    pub(super) fn detect() -> Result<Self, Error> {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        check_kernel(&kernel)?;
        let rights = Rights::of(&read("/proc/self/status")?)?;
        if let Some(user) = rights.one_user() {
            user.check_namespaces(|path| std::fs::read_to_string(path).ok())?;
        }
        let mounts = read("/proc/self/mountinfo")?;
        let (mount, own) = find_group(&mounts, &read("/proc/self/cgroup")?)?;
        let base = match &rights {
            Rights::All => base_of(&own).to_owned(),
            Rights::OneUser(user) => delegated_base(user, &mount, &own, rights::is_delegated)?,
        };
        let hybrid = mounts.lines().any(|line| line.contains(" - cgroup "));
        Ok(Self { kernel, mount, base, hybrid, rights })
    }
}

impl super::LinuxRuntime {
    /// Says whether this machine and the rights of this process suffice, without making anything.
    ///
    /// # Errors
    /// Those of [`new`](Self::new) for what is missing.
    pub fn check_machine() -> Result<(), Error> {
        Machine::detect().map(drop)
    }
}

/// Our own group, or the one that the host was moved down from.
fn base_of(own: &Path) -> &Path {
    let moved_down = own.file_name().is_some_and(|name| name == HOST);
    if moved_down { own.parent().unwrap_or(own) } else { own }
}

/// The group that was given to this user: our own, or the one above it. Only within one that is its own may a user move
/// processes about.
fn delegated_base(
    user: &OneUser,
    mount: &Path,
    own: &Path,
    is_delegated: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Error> {
    let base = base_of(own);
    let above = own.parent().filter(|above| above.starts_with(mount));
    let found = [Some(base), above].into_iter().flatten().find(|group| is_delegated(group));
    found.map(Path::to_owned).ok_or_else(|| user.without_group(own))
}

fn read(path: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| {
        refuse(ErrorKind::FailedPrecondition, format!("{path} cannot be read"))
            .remedy("mount proc at /proc")
            .caused_by(error)
    })
}

fn check_kernel(release: &str) -> Result<(), Error> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        // A kernel that names itself in some other way is taken at its features.
        _ => return Ok(()),
    };
    if version >= OLDEST_KERNEL {
        return Ok(());
    }
    let (major, minor) = OLDEST_KERNEL;
    Err(refuse(
        ErrorKind::FailedPrecondition,
        format!("this is Linux {release}, and {major}.{minor} or later is needed"),
    ))
}

/// The mount point of cgroup v2 and the directory of our own group below it.
fn find_group(mounts: &str, own: &str) -> Result<(PathBuf, PathBuf), Error> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(|| {
        refuse(ErrorKind::FailedPrecondition, "this kernel runs without cgroup v2")
            .remedy("boot without cgroup_no_v1 and similar parameters, with CONFIG_CGROUPS on")
    })?;
    let own = own.strip_suffix(" (deleted)").unwrap_or(own);
    let mut found_any = false;
    for (root, point) in mounts.lines().filter_map(cgroup2_mount) {
        found_any = true;
        // A mount may show a part of the tree only. `..` says that our group lies outside the cgroup namespace.
        if let Ok(below) = Path::new(own).strip_prefix(&root)
            && !below.starts_with("..")
        {
            let group = if below.as_os_str().is_empty() { point.clone() } else { point.join(below) };
            return Ok((point, group));
        }
    }
    Err(if found_any {
        refuse(ErrorKind::FailedPrecondition, format!("no mount of cgroup v2 shows our own cgroup, {own}"))
            .remedy("mount cgroup2 in our own cgroup namespace: mount -t cgroup2 none /sys/fs/cgroup")
    } else {
        refuse(ErrorKind::FailedPrecondition, "no cgroup v2 file system is mounted")
            .remedy("mount one: mount -t cgroup2 none /sys/fs/cgroup (beside v1: /sys/fs/cgroup/unified)")
    })
}

/// Root and mount point of a line of mountinfo, if it is a cgroup v2 mount.
///
/// Source: proc_pid_mountinfo(5).
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (fields, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    let mut path = || Some(unescape(fields.next()?.as_bytes()));
    Some((path()?, path()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE: &str = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn our_group_is_found_on_pure_and_hybrid_machines() {
        let own = "0::/system.slice/agent.service\n";
        let (mount, group) = find_group(PURE, own).unwrap();
        assert_eq!(mount, Path::new("/sys/fs/cgroup"));
        assert_eq!(group, Path::new("/sys/fs/cgroup/system.slice/agent.service"));
        let (mount, group) = find_group(HYBRID, "4:memory:/a\n0::/\n").unwrap();
        assert_eq!((mount.as_path(), group), (Path::new("/sys/fs/cgroup/unified"), mount.clone()));
    }

    #[test]
    fn a_mount_that_shows_a_part_of_the_tree_is_understood() {
        let mounts = "50 1 0:22 /pod /mnt/a\\040b rw - cgroup2 none rw";
        let (_, group) = find_group(mounts, "0::/pod/c\n").unwrap();
        assert_eq!(group, Path::new("/mnt/a b/c"));
        let error = find_group(mounts, "0::/other\n").unwrap_err();
        assert!(error.to_string().contains("/other"), "{error}");
        assert!(find_group(PURE, "0::/../x\n").is_err());
    }

    #[test]
    fn without_root_the_base_is_the_group_that_was_given() {
        let user = OneUser { uid: 1000, groups: Vec::new(), lacks: vec!["CAP_KILL"] };
        let (mount, own) = (Path::new("/c"), Path::new("/c/given/leaf"));
        let base = |own: &Path, given: &[&str]| {
            delegated_base(&user, mount, own, |group| given.iter().any(|path| group == Path::new(path)))
        };
        assert_eq!(base(own, &["/c/given", "/c/given/leaf"]).unwrap(), own);
        assert_eq!(base(own, &["/c/given"]).unwrap(), Path::new("/c/given"));
        let moved = Path::new("/c/given/sandkeeper-host");
        assert_eq!(base(moved, &["/c/given", "/c/given/sandkeeper-host"]).unwrap(), Path::new("/c/given"));
        // Nothing above the mount is a cgroup.
        assert!(base(mount, &["/"]).is_err());
        let error = base(own, &["/c"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        let error = error.to_string();
        for part in ["CAP_KILL", "/c/given/leaf", "user 1000", "chown", "cgroup.procs", "Delegate=yes"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let error = find_group("", "0::/\n").unwrap_err().to_string();
        assert!(error.contains("mount -t cgroup2"), "{error}");
        let error = check_kernel("5.10.0-28-amd64").unwrap_err().to_string();
        assert!(error.contains("Linux 5.10.0-28-amd64, and 5.14"), "{error}");
        for release in ["5.14.0", "6.1.0-56-cloud-amd64", "5.15+", "nightly"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
    }
}
