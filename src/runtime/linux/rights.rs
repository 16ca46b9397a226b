//! With whose rights sandboxes are made: root's; or one ordinary user's, with what user namespaces and a delegated cgroup allow.
//!
//! An ordinary user has one user to give to all sandboxes: itself. What that costs is said by name ([`OneUser::losses`]), and
//! whatever a spec asks for beyond it is refused ([`OneUser::check`]).

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::error::{Error, ErrorKind};
use crate::spec::{Network, ProcessSpec, RootFs, SandboxSpec, Users};

/// What root's way needs: number and name of each capability.
const NEEDED_CAPABILITIES: [(u32, &str); 6] = [
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
];

/// The capability with which a sandbox could mount cgroups.
const SYS_ADMIN: u32 = 21;

/// How to get a cgroup, for whoever has none.
pub(super) const DELEGATE: &str = "run it as root, or have root give it a cgroup G and start it in there: mkdir -p G/sandkeeper-host; \
     chown USER G G/cgroup.procs G/cgroup.subtree_control G/cgroup.threads; echo PID > G/sandkeeper-host/cgroup.procs; under \
     systemd: systemd-run --user -p Delegate=yes";

/// With whose rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rights {
    /// All that is needed for users, networks and mounts of the sandboxes' own.
    All,
    /// Those of an ordinary user.
    OneUser(OneUser),
}

/// An ordinary user, whom all sandboxes are to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneUser {
    pub(super) uid: u32,
    /// Supplementary groups, which nobody without rights can give up.
    pub(super) groups: Vec<u32>,
    /// The capabilities that it would need to be more.
    pub(super) lacks: Vec<&'static str>,
}

fn refuse(kind: ErrorKind, found: impl Into<String>) -> Error {
    Error::new(kind, "set up the linux backend", found.into())
}

impl Rights {
    /// Reads them from `/proc/self/status`.
    ///
    /// # Errors
    /// It is root's user, but lacks capabilities: as a user for sandboxes, that one would own the machine's files.
    pub(super) fn of(status: &str) -> Result<Self, Error> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let held = field("CapEff:").and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let lacks: Vec<&str> = NEEDED_CAPABILITIES
            .iter()
            .filter(|(number, _)| held & (1 << number) == 0)
            .map(|(_, name)| *name)
            .collect();
        if lacks.is_empty() {
            return Ok(Self::All);
        }
        // Real, effective, saved, and the one for files.
        let id = |name: &str| field(name)?.split_whitespace().nth(1)?.parse::<u32>().ok();
        match (id("Uid:"), id("Gid:")) {
            (Some(uid @ 1..), Some(gid)) => {
                let groups = field("Groups:").unwrap_or_default().split_whitespace();
                let groups = groups.filter_map(|group| group.parse().ok()).filter(|group| *group != gid);
                Ok(Self::OneUser(OneUser { uid, groups: groups.collect(), lacks }))
            }
            _ => Err(refuse(
                ErrorKind::PermissionDenied,
                format!("this process lacks {}", lacks.join(", ")),
            )
            .remedy(
                "run it as root with these capabilities, or as an ordinary user in a cgroup delegated to it",
            )),
        }
    }

    /// The ordinary user, if it is one.
    pub(super) fn one_user(&self) -> Option<&OneUser> {
        match self {
            Self::All => None,
            Self::OneUser(user) => Some(user),
        }
    }

    /// Refuses a spec that asks for more.
    pub(super) fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        self.one_user().map_or(Ok(()), |user| user.check(spec))
    }

    /// Refuses a program that is to run as somebody else.
    pub(super) fn check_process(&self, process: &ProcessSpec) -> Result<(), Error> {
        self.one_user().map_or(Ok(()), |user| user.check_process(process))
    }
}

/// Whether this machine's AppArmor takes the rights away again that a user namespace gives.
pub(super) fn is_restricted_by_apparmor() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        .is_ok_and(|text| text.trim() == "1")
}

/// Whether a cgroup is given to this process's user: groups can be made in it, and processes moved about below it.
pub(super) fn is_delegated(group: &Path) -> bool {
    let may = |path: &Path, access| accessat(CWD, path, access, AtFlags::EACCESS).is_ok();
    may(group, Access::WRITE_OK | Access::EXEC_OK) && may(&group.join("cgroup.procs"), Access::WRITE_OK)
}

impl OneUser {
    /// Refuses where ordinary users may make no user namespaces, as far as the machine says so beforehand. `read` gives what a
    /// file says, if it is there.
    pub(super) fn check_namespaces(&self, read: impl Fn(&str) -> Option<String>) -> Result<(), Error> {
        let files = [
            (
                "/proc/sys/user/max_user_namespaces",
                "run it as root, or as root: sysctl user.max_user_namespaces=15000",
            ),
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "run it as root, or as root: sysctl kernel.unprivileged_userns_clone=1",
            ),
        ];
        let is_zero = |path: &str| read(path).is_some_and(|text| text.trim() == "0");
        match files.into_iter().find(|(path, _)| is_zero(path)) {
            Some((path, remedy)) => {
                let found = format!("for sandboxes without them it needs user namespaces, and {path} is 0");
                Err(self.lacking(ErrorKind::FailedPrecondition, &found).remedy(remedy))
            }
            None => Ok(()),
        }
    }

    /// The error where no cgroup was found.
    pub(super) fn without_group(&self, looked_at: &Path) -> Error {
        let (uid, group) = (self.uid, looked_at.display());
        let found = format!(
            "for sandboxes without them it needs a cgroup of its own: neither {group} nor the one above is user {uid}'s to change"
        );
        self.lacking(ErrorKind::PermissionDenied, &found).remedy(DELEGATE)
    }

    fn lacking(&self, kind: ErrorKind, found: &str) -> Error {
        refuse(kind, format!("this process lacks {}, and {found}", self.lacks.join(", ")))
    }

    /// Refuses what this user cannot give.
    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        let isolation = &spec.isolation;
        if isolation.users != Users::Allocated {
            return Err(self.lost("users other than its own", "leave users at their default"));
        }
        if let Network::Join(path) = &spec.network {
            let what = format!("joining the network namespace {}, which belongs to the host", path.display());
            return Err(self.lost(&what, "take a new network or none"));
        }
        if spec.root == RootFs::HostReadOnly {
            let what = "the host's root, which could only be shown with all that is mounted on it and with sockets that take \
                        commands of this user";
            return Err(self.lost(what, "name a directory as the root, or mount /usr, /bin, /lib and /lib64"));
        }
        if isolation.no_seccomp {
            let what = "a sandbox without the system call filter: it could mount its cgroup, which is this user's, and lift its limits";
            return Err(self.lost(what, "keep the filter"));
        }
        if isolation.kept_capabilities >> SYS_ADMIN & 1 == 1 {
            let what = "CAP_SYS_ADMIN: with it a sandbox could mount its cgroup, which is this user's, and lift its limits";
            return Err(self.lost(what, "keep other capabilities only"));
        }
        spec.process.as_ref().map_or(Ok(()), |process| self.check_process(process))
    }

    fn check_process(&self, process: &ProcessSpec) -> Result<(), Error> {
        let user = &process.user;
        if (user.uid, user.gid) != (0, 0) || !user.groups.is_empty() {
            let (uid, gid) = (user.uid, user.gid);
            let what =
                format!("a process as user {uid} and group {gid} with {} more groups", user.groups.len());
            return Err(self.lost(&what, "run it as user and group 0, which are this program's own outside"));
        }
        Ok(())
    }

    fn lost(&self, what: &str, remedy: &'static str) -> Error {
        let found = format!("it runs as user {}, without root, and cannot give a sandbox {what}", self.uid);
        Error::new(ErrorKind::FailedPrecondition, "isolate", found).remedy(remedy)
    }

    /// What sandboxes do not have that they would have under root, by name.
    pub(super) fn losses(&self) -> Vec<(String, String)> {
        let uid = self.uid;
        let groups = if self.groups.is_empty() {
            "processes have one group, 0: none can be set".to_owned()
        } else {
            let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
            format!("none can be set, and processes keep this program's own: {}", groups.join(", "))
        };
        let losses = [
            (
                "users",
                format!(
                    "every sandbox is user {uid} to the host and has one user, 0: namespaces alone keep sandboxes from each \
                     other's processes, and what they are shown of the host they may read, and where it is writable change, as that user"
                ),
            ),
            ("groups", groups),
            (
                "limits per user",
                format!("processes (RLIMIT_NPROC), pending signals, inotify watches and namespaces of all sandboxes count as user {uid}'s together"),
            ),
            (
                "standard input",
                format!("a file given as standard input, read-only as it is opened, can be opened anew for writing (/proc/self/fd/0) where user {uid} may write it"),
            ),
            ("roots", "the host's root cannot be shown, only a directory or mounts, each with all that is mounted below".to_owned()),
            ("networks", "only none, or a new one with a loopback device; no namespace of the host's can be joined".to_owned()),
            (
                "zygotes",
                "a sandbox belongs to the zygote that made it: if that is killed, no other can run programs (exec) in it".to_owned(),
            ),
            (
                "rights inside",
                "the system call filter cannot be left out and CAP_SYS_ADMIN not be kept: the cgroups are this user's, and limits could be lifted from inside".to_owned(),
            ),
        ];
        losses.into_iter().map(|(name, loss)| (format!("lost without root: {name}"), loss)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Isolation;

    const STATUS: &str = "Uid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\nGroups:\t27 100 998 \nCapEff:\t0000000000000000\n";

    fn user() -> OneUser {
        OneUser { uid: 1000, groups: vec![27, 998], lacks: NEEDED_CAPABILITIES.map(|(_, name)| name).into() }
    }

    #[test]
    fn whoever_lacks_a_capability_is_one_user_unless_it_is_roots() {
        assert_eq!(Rights::of(STATUS).unwrap(), Rights::OneUser(user()));
        assert_eq!(Rights::of(&STATUS.replace("0000000000000000", "000001ffffffffff")).unwrap(), Rights::All);
        let some = STATUS.replace("0000000000000000", "00000000000000e0");
        let lacks = vec!["CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN"];
        assert_eq!(Rights::of(&some).unwrap(), Rights::OneUser(OneUser { lacks, ..user() }));
        let error = Rights::of(&some.replace("\t1000", "\t0")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(text.contains("lacks CAP_NET_ADMIN, CAP_SYS_CHROOT, CAP_SYS_ADMIN"), "{text}");
        // What cannot be read is nobody's.
        assert!(Rights::of("").is_err());
    }

    #[test]
    fn closed_user_namespaces_are_named_with_what_opens_them() {
        for name in ["user.max_user_namespaces", "kernel.unprivileged_userns_clone"] {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            let read = |asked: &str| (asked == path).then(|| "0\n".to_owned());
            let error = user().check_namespaces(read).unwrap_err().to_string();
            for part in [&path, "CAP_SYS_ADMIN", &format!("sysctl {name}=")] {
                assert!(error.contains(part), "{error}");
            }
        }
        assert!(user().check_namespaces(|_| None).is_ok());
        assert!(user().check_namespaces(|_| Some("1\n".to_owned())).is_ok());
    }

    #[test]
    fn what_one_user_cannot_give_is_refused_by_name() {
        let process = |change: fn(&mut crate::spec::User)| {
            let mut process = ProcessSpec::new(["/bin/true"]);
            change(&mut process.user);
            SandboxSpec { process: Some(process), ..SandboxSpec::default() }
        };
        let isolated = |change: fn(&mut Isolation)| {
            let mut spec = SandboxSpec::default();
            change(&mut spec.isolation);
            spec
        };
        let cases = [
            (isolated(|isolation| isolation.users = Users::Host), "users other than its own"),
            (
                isolated(|isolation| isolation.users = Users::Mapped { host_start: 1, count: 1 }),
                "users other than its own",
            ),
            (isolated(|isolation| isolation.no_seccomp = true), "without the system call filter"),
            (isolated(|isolation| isolation.kept_capabilities = 1 << 21), "CAP_SYS_ADMIN"),
            (process(|user| user.uid = 7), "as user 7 and group 0"),
            (process(|user| user.gid = 8), "as user 0 and group 8"),
            (process(|user| user.groups = vec![5]), "1 more groups"),
            (
                SandboxSpec { network: Network::Join("/run/netns/a".into()), ..SandboxSpec::default() },
                "/run/netns/a",
            ),
            (SandboxSpec { root: RootFs::HostReadOnly, ..SandboxSpec::default() }, "the host's root"),
        ];
        for (spec, expected) in cases {
            let error = Rights::OneUser(user()).check(&spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("user 1000, without root"), "{text}");
            assert!(Rights::All.check(&spec).is_ok());
        }
        let fits = isolated(|isolation| isolation.kept_capabilities = 1 << 10);
        assert!(Rights::OneUser(user()).check(&fits).is_ok());
    }

    #[test]
    fn groups_that_stay_are_told() {
        let of =
            |user: OneUser| user.losses().into_iter().find(|(name, _)| name.ends_with("groups")).unwrap().1;
        assert!(of(user()).contains("27, 998"));
        assert!(of(OneUser { groups: Vec::new(), ..user() }).contains("one group"));
    }
}
