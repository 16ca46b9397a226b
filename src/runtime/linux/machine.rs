//! What this machine offers, found out once: kernel, rights, and where cgroup v2 is.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// The oldest kernel with all that is needed: `cgroup.kill` came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// What cannot be done without: number and name of each capability.
const NEEDED_CAPABILITIES: [(u32, &str); 6] = [
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// The kernel's release, as it names itself.
    pub(super) kernel: String,
    /// Where the cgroup v2 file system is mounted.
    pub(super) mount: PathBuf,
    /// The directory of the cgroup that this process is in.
    pub(super) own_group: PathBuf,
    /// Whether v1 hierarchies are mounted besides, which then hold the controllers.
    pub(super) hybrid: bool,
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
        check_rights(&read("/proc/self/status")?)?;
        let mounts = read("/proc/self/mountinfo")?;
        let (mount, own_group) = find_group(&mounts, &read("/proc/self/cgroup")?)?;
        let hybrid = mounts.lines().any(|line| line.contains(" - cgroup "));
        Ok(Self { kernel, mount, own_group, hybrid })
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

fn check_rights(status: &str) -> Result<(), Error> {
    let held = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> = NEEDED_CAPABILITIES
        .iter()
        .filter(|(number, _)| held & (1 << number) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(refuse(ErrorKind::PermissionDenied, format!("this process lacks {}", missing.join(", ")))
        .remedy("run it as root, or give it these capabilities"))
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
fn cgroup2_mount(line: &str) -> Option<(String, PathBuf)> {
    let (fields, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    Some((unescape(fields.next()?), PathBuf::from(unescape(fields.next()?))))
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, character);
    }
    text
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
    fn what_is_missing_is_named_with_its_remedy() {
        let error = find_group("", "0::/\n").unwrap_err().to_string();
        assert!(error.contains("mount -t cgroup2"), "{error}");
        let error = check_kernel("5.10.0-28-amd64").unwrap_err().to_string();
        assert!(error.contains("Linux 5.10.0-28-amd64, and 5.14"), "{error}");
        for release in ["5.14.0", "6.1.0-56-cloud-amd64", "5.15+", "nightly"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
        let error = check_rights("CapEff:\t0000000000000000\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
        assert!(check_rights("CapEff:\t000001ffffffffff\n").is_ok());
    }
}
