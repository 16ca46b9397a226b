//! What the keeper says, as messages.

use super::generated as wire;
use super::timestamp;
use crate::controller::StartedSandbox;
use crate::events::Event;
use crate::id::{InvalidIdentifier, SandboxKey};
use crate::model::{Phase, Pong};
use crate::runtime::{LogChunk, LogStream, Platform, Report, Survivor};

impl From<&SandboxKey> for wire::SandboxName {
    fn from(key: &SandboxKey) -> Self {
        Self { namespace: key.namespace().to_string(), id: key.id().to_string() }
    }
}

impl TryFrom<&wire::SandboxName> for SandboxKey {
    type Error = InvalidIdentifier;

    fn try_from(name: &wire::SandboxName) -> Result<Self, InvalidIdentifier> {
        SandboxKey::new(&name.namespace, &name.id)
    }
}

/// The phase of this name: `running`.
pub fn phase_named(name: &str) -> Option<Phase> {
    Phase::ALL.into_iter().find(|phase| phase.name() == name)
}

impl From<StartedSandbox> for wire::StartResponse {
    fn from(sandbox: StartedSandbox) -> Self {
        let endpoint = sandbox.started.endpoint.as_ref();
        Self {
            life: sandbox.life.0,
            pid: sandbox.started.pid,
            isolation: sandbox.started.isolation.to_vec(),
            address: endpoint.map_or_else(String::new, |endpoint| endpoint.address.clone()),
            version: endpoint.map_or(0, |endpoint| endpoint.version),
        }
    }
}

impl From<Pong> for wire::PingResponse {
    fn from(pong: Pong) -> Self {
        Self {
            phase: pong.phase().name().to_owned(),
            marks: pong.marks().names().map(str::to_owned).collect(),
            life: pong.life().0,
        }
    }
}

impl From<(SandboxKey, Pong)> for wire::MarkedSandbox {
    fn from((key, pong): (SandboxKey, Pong)) -> Self {
        let wire::PingResponse { phase, marks, life: _ } = pong.into();
        Self { sandbox: Some((&key).into()), phase, marks }
    }
}

impl From<Report> for wire::ProbeResponse {
    fn from(report: Report) -> Self {
        Self { alive: report.alive, frozen: report.frozen, extra: report.extra }
    }
}

impl From<Platform> for wire::PlatformResponse {
    fn from(platform: Platform) -> Self {
        Self { os: platform.os, architecture: platform.architecture }
    }
}

impl From<LogChunk> for wire::LogsResponse {
    fn from(chunk: LogChunk) -> Self {
        let stream = match chunk.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        Self { at: timestamp(chunk.at_unix_nanos), stream: stream.to_owned(), data: chunk.bytes }
    }
}

impl From<&Survivor> for wire::Orphan {
    fn from(survivor: &Survivor) -> Self {
        Self {
            sandbox: Some((&survivor.key).into()),
            life: survivor.life.0,
            description: survivor.description.clone(),
        }
    }
}

impl wire::Event {
    /// An event of this epoch.
    pub fn of_epoch(epoch: u64, event: &Event) -> Self {
        Self {
            epoch,
            sequence: event.sequence,
            at: timestamp(event.at_unix_nanos),
            sandbox: Some((&event.key).into()),
            phase: event.phase.name().to_owned(),
            life: event.life.0,
            exit: event.exit.map(Into::into),
        }
    }
}
