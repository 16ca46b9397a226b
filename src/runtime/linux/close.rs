//! The end of a backend: with all that it has, or without.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::state_dir::StateDir;
use super::zygote::Zygotes;
use super::{CLOSING, Inner, workers};

impl Inner {
    /// Ends and removes everything. Blocks.
    pub(super) fn shut_down(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let all = self.lives.all();
        all.iter().for_each(|sandbox| sandbox.end());
        let start = Instant::now();
        // While the zygotes are up, so that ends are told with their statuses, and reaped.
        while start.elapsed() < CLOSING {
            let left = self.tree.clear_sandboxes();
            let all_told = all.iter().all(|sandbox| sandbox.is_told());
            if all_told && !matches!(left, Ok(1..)) {
                break;
            }
            workers::pause(Duration::from_millis(1));
        }
        self.stop_watching();
        let zygotes = self.hang_up();
        if !self.tree.remove_all() {
            tracing::warn!(left = ?self.tree.left_behind(), "cgroups are left behind");
        } else if let Some(state) = &self.state {
            state.clear();
            zygotes.iter().for_each(|zygotes| zygotes.reap_own());
        }
        self.remove_logs_of(&all);
        self.release();
    }

    /// Lets go of everything and leaves it as it is. Blocks for a moment.
    pub(super) fn let_go(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop_watching();
        drop(self.hang_up());
        self.release();
    }

    fn hang_up(&self) -> Option<Arc<Zygotes>> {
        let zygotes = self.zygotes.lock().take();
        // Others may have it still: what is under way, and what was not asked for.
        zygotes.iter().for_each(|zygotes| zygotes.hang_up());
        zygotes
    }

    fn release(&self) {
        self.tree.release();
        self.state.iter().for_each(StateDir::release);
    }

    fn stop_watching(&self) {
        self.exits.stop();
        if let Some(thread) = self.exit_thread.lock().take()
            // An observer may hold the last reference to us, and be what drops it.
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
        }
    }
}
