//! Named moments at which the program can be made to die, so that tests kill it where it hurts most.
//!
//! Without the feature `failpoints` a point is nothing at all. With it, `SANDKEEPER_FAILPOINT=NAME:N` makes the process
//! kill itself, as `kill -9` would, when it comes by that point for the N-th time.

/// Every point there is: `journal.…` around commits, the others around the steps of an operation.
pub const NAMES: &[&str] = &[
    "journal.before-commit",
    "journal.after-commit",
    "operation.after-intent",
    "operation.after-effect",
    "operation.after-outcome",
    "operation.after-removal",
    "operation.after-search",
    "linux.after-group",
    "linux.after-log",
    "linux.before-spawn",
    "linux.after-spawn",
    "linux.after-stage",
    "linux.after-freeze",
    "linux.after-thaw",
    "linux.after-kill",
    "linux.after-remove",
    "linux.after-program",
];

/// Comes by a point.
#[inline(always)]
pub(crate) fn reach(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::reach(_name);
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn armed() -> Option<Armed> {
        let setting = std::env::var("SANDKEEPER_FAILPOINT").ok()?;
        let (name, count) = setting.split_once(':').unwrap_or((&setting, "1"));
        assert!(super::NAMES.contains(&name), "there is no fail-point {name:?}");
        Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().expect("a number")) })
    }

    pub(super) fn reach(name: &'static str) {
        debug_assert!(super::NAMES.contains(&name), "fail-point {name:?} is not on the list");
        let Some(armed) = ARMED.get_or_init(armed) else { return };
        if armed.name == name && armed.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}
