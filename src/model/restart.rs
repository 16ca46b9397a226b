//! How often something may fail before it is given up: a window over the past, and no clock.

use super::BootMillis;

/// Allows a number of restarts within a span of time.
///
/// ```
/// use sandkeeper::model::{BootMillis, Intensity};
/// let mut intensity = Intensity::new(2, 1_000);
/// assert!(intensity.allows(BootMillis(0)));
/// assert!(intensity.allows(BootMillis(10)));
/// assert!(!intensity.allows(BootMillis(20)));
/// assert!(intensity.allows(BootMillis(1_500)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intensity {
    most: usize,
    span_millis: u64,
    past: Vec<BootMillis>,
}

impl Intensity {
    /// At most `most` restarts within any `span_millis`.
    pub fn new(most: usize, span_millis: u64) -> Self {
        Self { most, span_millis, past: Vec::new() }
    }

    /// Counts one more restart; says whether it is still allowed.
    pub fn allows(&mut self, now: BootMillis) -> bool {
        self.past.retain(|then| now.0.saturating_sub(then.0) < self.span_millis);
        if self.past.len() >= self.most {
            return false;
        }
        self.past.push(now);
        true
    }
}
