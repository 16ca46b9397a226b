//! Protobuf messages, and how our own values become them.

use std::time::Duration;

use prost_types::Timestamp;

use crate::model::Exit;

/// Made from `proto/sandkeeper/v1`; a test keeps it current.
#[allow(missing_docs, clippy::all, unreachable_pub, rust_2018_idioms)]
pub mod generated {
    include!("generated/sandkeeper.v1.rs");
}

mod keeper;
mod spec;

pub use generated::{ExitStatus, SandboxStatus};
pub use keeper::phase_named;
pub use spec::{
    MalformedSpec, decode_spec, duration, encode_spec, positive_duration, resource_name, resource_named,
};

/// A moment in nanoseconds since the Unix epoch; nothing for 0, which stands for "unknown".
pub(crate) fn timestamp(unix_nanos: i64) -> Option<Timestamp> {
    let since = Duration::from_nanos(u64::try_from(unix_nanos).ok().filter(|nanos| *nanos > 0)?);
    Some(Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 })
}

impl From<Exit> for ExitStatus {
    fn from(exit: Exit) -> Self {
        Self {
            status: exit.status(),
            reason: exit.reason.name().to_owned(),
            exited_at: timestamp(exit.at_unix_nanos),
        }
    }
}
