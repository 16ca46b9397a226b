//! Which controllers work in our groups, and what stands in the way of those that do not.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::machine::Machine;
use super::tree::HOST;
use super::{group, kernel_error};
use crate::error::{Error, ErrorKind};
use crate::spec::Limits;

/// The controllers that limits need.
const NEEDED: [&str; 3] = ["memory", "pids", "cpu"];

/// The period of a CPU limit, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// The longest period, for limits whose share of the usual one would be under the kernel's least, 1,000 µs.
const LONGEST_CPU_PERIOD: u64 = 1_000_000;

/// What can be limited in our groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Controllers {
    /// `memory.max`, and `memory.events` to learn of kills for want of memory.
    pub(super) memory: bool,
    /// `memory.swap.max`; there may be none even where there is a memory controller.
    pub(super) swap: bool,
    /// `cpu.max`.
    pub(super) cpu: bool,
    /// `pids.max`.
    pub(super) pids: bool,
    /// Why those that are missing are, and what to do about it.
    pub(super) obstacle: Option<Obstacle>,
}

/// Why a controller is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// cgroup v1 holds it.
    HeldByV1,
    /// The host itself, or others, are in the group whose children are to be limited.
    ProcessesInside(PathBuf),
    /// A group further up does not pass it down.
    NotPassedDown(PathBuf),
}

impl Obstacle {
    /// What is the matter, and what to do.
    pub(super) fn explain(&self) -> (String, &'static str) {
        match self {
            Self::HeldByV1 => (
                "cgroup v1 holds it on this machine".to_owned(),
                "boot with cgroup_no_v1=all, under systemd with systemd.unified_cgroup_hierarchy=1",
            ),
            Self::ProcessesInside(group) => (
                format!(
                    "this program itself is in cgroup {}, and a group that holds processes cannot limit those below it",
                    group.display()
                ),
                "start it in a leaf group of its own, or set move_host_to_leaf",
            ),
            Self::NotPassedDown(group) => (
                format!("cgroup {} does not have it to give", group.display()),
                "enable it in cgroup.subtree_control of the groups above; under systemd, set Delegate=yes on the service",
            ),
        }
    }
}

/// Enables what is needed from the top of the tree down to our root. What cannot be had is left out, with the reason.
pub(super) fn enable(
    machine: &Machine,
    base: &Path,
    parent: &OwnedFd,
    root: &OwnedFd,
    move_host_to_leaf: bool,
) -> Controllers {
    pass_down_to(machine, base);
    let offered = list(parent, "cgroup.controllers");
    let on = list(parent, "cgroup.subtree_control");
    let lacking: Vec<&str> =
        NEEDED.into_iter().filter(|name| holds(&offered, name) && !holds(&on, name)).collect();
    let mut obstacle = None;
    if !lacking.is_empty() {
        let free = !is_in_the_way(parent) || (move_host_to_leaf && move_down(parent));
        if free {
            switch_on(parent, &lacking);
        } else {
            obstacle = Some(Obstacle::ProcessesInside(base.to_owned()));
        }
    }
    let passed = list(root, "cgroup.controllers");
    let wanted: Vec<&str> = NEEDED.into_iter().filter(|name| holds(&passed, name)).collect();
    switch_on(root, &wanted);
    let on = list(root, "cgroup.subtree_control");
    if NEEDED.iter().any(|name| !holds(&on, name)) && obstacle.is_none() {
        obstacle =
            Some(if machine.hybrid { Obstacle::HeldByV1 } else { Obstacle::NotPassedDown(base.to_owned()) });
    }
    let memory = holds(&on, "memory");
    Controllers {
        memory,
        // The root has the files of the controllers that its parent passes down, as its own children have them.
        swap: memory && group::has(root, "memory.swap.max"),
        cpu: holds(&on, "cpu"),
        pids: holds(&on, "pids"),
        obstacle,
    }
}

/// Enables what is needed in the groups above `base` where that takes no more than asking.
fn pass_down_to(machine: &Machine, base: &Path) {
    let mut above: Vec<&Path> =
        base.ancestors().skip(1).take_while(|group| group.starts_with(&machine.mount)).collect();
    above.reverse();
    for path in above {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(group) = rustix::fs::open(path, flags, Mode::empty()) else { return };
        let offered = list(&group, "cgroup.controllers");
        let on = list(&group, "cgroup.subtree_control");
        let lacking: Vec<&str> =
            NEEDED.into_iter().filter(|name| holds(&offered, name) && !holds(&on, name)).collect();
        if !lacking.is_empty() && !is_in_the_way(&group) {
            switch_on(&group, &lacking);
        }
    }
}

fn list(group: &OwnedFd, file: &str) -> String {
    // A file that is absent, or cannot be read, offers nothing.
    group::read(group, file).unwrap_or_else(|_| String::new())
}

fn holds(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|listed| listed == name)
}

fn switch_on(group: &OwnedFd, names: &[&str]) {
    // One by one: a controller that is refused must not keep the others away. What came of it is read back.
    for name in names {
        if let Err(error) = group::write(group, "cgroup.subtree_control", &format!("+{name}")) {
            tracing::debug!(controller = name, %error, "controller not enabled");
        }
    }
}

/// Whether processes in this group keep its children from being limited.
///
/// To be asked before enabling: with processes inside, the kernel refuses `memory`, but lets `cpu` and `pids` turn the
/// group into the root of a threaded tree, in which no group can be joined any more. Only the root of the whole
/// hierarchy, which alone has no `cgroup.type`, may have both.
fn is_in_the_way(group: &OwnedFd) -> bool {
    group::has(group, "cgroup.type") && !list(group, "cgroup.procs").trim().is_empty()
}

/// Moves every process of the group into a leaf below it. Whether none is left.
fn move_down(group: &OwnedFd) -> bool {
    let leaf = match group::make(group, HOST) {
        Ok(Some(leaf)) => Some(leaf),
        Ok(None) => group::open(group, HOST).ok().flatten(),
        Err(_) => None,
    };
    let Some(leaf) = leaf else { return false };
    // They may fork meanwhile; each round moves the children that the one before missed.
    for _ in 0..16 {
        let procs = list(group, "cgroup.procs");
        if procs.trim().is_empty() {
            return true;
        }
        for pid in procs.lines() {
            if let Err(error) = group::write(&leaf, "cgroup.procs", pid) {
                tracing::debug!(pid, %error, "process not moved to the host's leaf");
            }
        }
    }
    false
}

impl Controllers {
    /// Refuses limits that could not be put in force.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), Error> {
        let asked = [
            ("memory", limits.memory_bytes, self.memory),
            ("swap", limits.swap_bytes, self.swap),
            ("cpu", limits.cpu_millis, self.cpu),
            ("pids", limits.pids, self.pids),
        ];
        match asked.into_iter().find(|(_, limit, works)| limit.is_some() && !works) {
            Some((limit, ..)) => Err(self.missing(limit)),
            None => Ok(()),
        }
    }

    fn missing(&self, limit: &str) -> Error {
        let controller = if limit == "swap" { "memory" } else { limit };
        let (why, remedy) = match &self.obstacle {
            _ if limit == "swap" && self.memory => (
                "this kernel does not account for swap".to_owned(),
                "boot with swapaccount=1, or leave the swap limit out",
            ),
            Some(obstacle) => obstacle.explain(),
            None => ("the kernel refused to enable it".to_owned(), "leave the limit out"),
        };
        Error::new(
            ErrorKind::FailedPrecondition,
            "limit",
            format!("the {limit} limit needs the {controller} controller of cgroup v2, and {why}"),
        )
        .remedy(remedy)
    }

    /// Puts limits in force in a new group.
    pub(super) fn limit(&self, group: &OwnedFd, limits: &Limits) -> Result<(), Error> {
        self.check(limits)?;
        let set = |file: &str, value: String| {
            group::write(group, file, &value)
                .map_err(|error| kernel_error("limit", format!("{file} = {value}"), error))
        };
        if let Some(bytes) = limits.memory_bytes {
            set("memory.max", bytes.to_string())?;
            // The sandbox is one thing: it is not to go on with some of its processes missing.
            set("memory.oom.group", "1".to_owned())?;
        }
        if let Some(bytes) = limits.swap_bytes {
            set("memory.swap.max", bytes.to_string())?;
        }
        if let Some(millis) = limits.cpu_millis {
            set("cpu.max", cpu_max(millis))?;
        }
        if let Some(pids) = limits.pids {
            set("pids.max", pids.to_string())?;
        }
        Ok(())
    }
}

/// Quota and period for so many thousandths of a CPU.
fn cpu_max(millis: u64) -> String {
    let period = if millis < 10 { LONGEST_CPU_PERIOD } else { CPU_PERIOD };
    format!("{} {period}", millis.saturating_mul(period / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_limit_is_never_under_the_kernels_least_quota() {
        assert_eq!(cpu_max(1), "1000 1000000");
        assert_eq!(cpu_max(9), "9000 1000000");
        assert_eq!(cpu_max(10), "1000 100000");
        assert_eq!(cpu_max(1_500), "150000 100000");
    }

    #[test]
    fn a_limit_without_its_controller_is_refused_with_the_remedy() {
        let controllers = Controllers {
            obstacle: Some(Obstacle::ProcessesInside("/sys/fs/cgroup/a".into())),
            ..Controllers::default()
        };
        let limits = Limits { pids: Some(5), ..Limits::default() };
        let error = controllers.check(&limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let text = error.to_string();
        for part in ["pids controller", "/sys/fs/cgroup/a", "move_host_to_leaf"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(controllers.check(&Limits::default()).is_ok());
        let controllers = Controllers { memory: true, ..Controllers::default() };
        let limits = Limits { swap_bytes: Some(5), ..Limits::default() };
        assert!(controllers.check(&limits).unwrap_err().to_string().contains("swapaccount"));
    }
}
