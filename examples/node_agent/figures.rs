//! Durations, and what stands for many of them.

use std::time::Duration;

/// Durations in order.
#[derive(Default)]
pub(crate) struct Sorted(Vec<Duration>);

impl From<Vec<Duration>> for Sorted {
    fn from(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self(durations)
    }
}

impl Sorted {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest that at least `percent` of them do not exceed; 0 if there are none.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}
