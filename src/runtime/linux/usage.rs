//! What a backend uses, and what it has found out about the machine.

use super::{Inner, LinuxRuntime, ids};

/// What a backend uses at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Lives it knows, from their creation to the end of their deletion.
    pub sandboxes: usize,
    /// Blocks of user IDs given out.
    pub id_blocks: usize,
    /// Network namespaces kept ready.
    pub networks_ready: usize,
    /// The zygotes' process IDs.
    pub zygotes: Vec<u32>,
    /// Descriptors of this whole process, whoever opened them.
    pub descriptors: usize,
}

impl LinuxRuntime {
    /// What it uses at the moment.
    pub fn usage(&self) -> Usage {
        let inner = &self.inner;
        Usage {
            sandboxes: inner.lives.len(),
            id_blocks: inner.ids.in_use(),
            networks_ready: inner.networks.ready(),
            zygotes: inner.zygotes.lock().as_ref().map(|zygotes| zygotes.pids()).unwrap_or_default(),
            descriptors: std::fs::read_dir("/proc/self/fd")
                .map_or(0, |entries| entries.count().saturating_sub(1)),
        }
    }
}

impl Inner {
    /// What it has found out, for people.
    pub(super) fn findings(&self) -> Vec<(String, String)> {
        let controllers = &self.tree.controllers;
        let mut limits: Vec<&str> = Vec::new();
        for (name, works) in [
            ("memory", controllers.memory),
            ("swap", controllers.swap),
            ("cpu", controllers.cpu),
            ("pids", controllers.pids),
        ] {
            if works {
                limits.push(name);
            }
        }
        let layout = if self.machine.hybrid { "v2 beside v1" } else { "v2 alone" };
        let mut findings = vec![
            ("kernel".to_owned(), self.machine.kernel.clone()),
            (
                "rights".to_owned(),
                self.one_user().map_or_else(|| "root's".to_owned(), |user| format!("user {}'s", user.uid)),
            ),
            ("cgroups".to_owned(), format!("{layout}, at {}", self.machine.mount.display())),
            ("cgroup root".to_owned(), self.tree.path.display().to_string()),
            ("limits".to_owned(), if limits.is_empty() { "none".to_owned() } else { limits.join(", ") }),
        ];
        if let Some(obstacle) = &controllers.obstacle {
            let (why, remedy) = obstacle.explain();
            findings.push(("missing limits".to_owned(), format!("{why}; {remedy}")));
        }
        let ids = (self.config.id_start, self.config.id_blocks);
        if let Some(state) = &self.state {
            findings.push(("state directory".to_owned(), state.path.display().to_string()));
        }
        if !self.left_alone.is_empty() {
            findings.push(("zygotes left alone".to_owned(), self.left_alone.join(", ")));
        }
        match self.one_user() {
            Some(user) => findings.extend(user.losses()),
            None => {
                let blocks = format!("{} blocks of {} from {}", ids.1, ids::BLOCK, ids.0);
                findings.push(("user IDs".to_owned(), blocks));
            }
        }
        findings
    }
}
