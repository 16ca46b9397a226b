//! The pure heart: decides, and never acts.

mod exit;

pub use exit::{BootMillis, Exit, ExitReason, Life};
