//! What runs the daemon's sandboxes.

use std::sync::Arc;

use super::config::Config;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::runtime::linux::{LinuxConfig, LinuxRuntime};
#[cfg(feature = "testing")]
use crate::runtime::memory::MemoryRuntime;

/// The kernel; or, for tests of the daemon itself, nothing at all.
#[derive(Clone)]
pub(super) enum Backend {
    Linux(Arc<LinuxRuntime>),
    #[cfg(feature = "testing")]
    Memory(Arc<MemoryRuntime>),
}

impl Backend {
    /// Says what is missing before anything is made.
    pub(super) fn check(config: &Config) -> Result<(), Error> {
        if config.in_memory { Ok(()) } else { LinuxRuntime::check_machine() }
    }

    /// Sets it up. Blocks: for some milliseconds, or until an earlier daemon is gone.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        #[cfg(feature = "testing")]
        if config.in_memory {
            return Ok(Self::Memory(MemoryRuntime::new()));
        }
        LinuxRuntime::new(linux_config(config)).map(Self::Linux)
    }

    /// By which name specs call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Linux(_) => "linux",
            #[cfg(feature = "testing")]
            Self::Memory(_) => "memory",
        }
    }

    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Self::Linux(linux) => Arc::clone(linux) as _,
            #[cfg(feature = "testing")]
            Self::Memory(memory) => Arc::clone(memory) as _,
        }
    }

    /// Whether it has nothing that could be left to the next daemon.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Linux(linux) => linux.left_behind().is_empty(),
            #[cfg(feature = "testing")]
            Self::Memory(memory) => memory.existing().is_empty(),
        }
    }

    /// Lets go of it. What exists goes on, unless it is to end.
    pub(super) async fn let_go(&self, end: bool) {
        match self {
            Self::Linux(linux) if end => linux.close().await,
            Self::Linux(linux) => linux.leave().await,
            #[cfg(feature = "testing")]
            Self::Memory(_) => {}
        }
    }
}

fn linux_config(config: &Config) -> LinuxConfig {
    let default = LinuxConfig::default();
    LinuxConfig {
        state_dir: Some(config.state_dir.clone()),
        log_dir: Some(config.log_dir.clone()),
        off_limits: vec![config.socket.clone()],
        id_start: config.id_start.unwrap_or(default.id_start),
        id_blocks: config.id_blocks.unwrap_or(default.id_blocks),
        zygotes: config.zygotes.unwrap_or(default.zygotes),
        ready_networks: config.ready_networks.unwrap_or(default.ready_networks),
        move_host_to_leaf: config.move_host_to_leaf,
        ..default
    }
}
