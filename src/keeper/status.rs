//! Says what is known of a sandbox.

use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;

use crate::actor::Cell;
use crate::model::Phase;
use crate::wire::{SandboxStatus, timestamp};

/// What is published.
pub(super) fn published(cell: &Cell) -> SandboxStatus {
    let (pulse, facts) = cell.snapshot();
    let started = facts.started.unwrap_or_default();
    let exit = facts.exit.filter(|(life, _)| *life == pulse.life()).map(|(_, exit)| exit);
    let runs = pulse.phase().is_alive() && exit.is_none();
    let endpoint = started.endpoint.as_ref().filter(|_| runs);
    SandboxStatus {
        namespace: cell.key.namespace().to_string(),
        id: cell.key.id().to_string(),
        phase: pulse.phase().name().to_owned(),
        marks: pulse.marks().names().map(str::to_owned).collect(),
        life: pulse.life().0,
        pid: if runs { started.pid } else { 0 },
        created_at: timestamp(facts.created_at_unix_nanos),
        started_at: timestamp(facts.started_at_unix_nanos),
        exit: exit.map(Into::into),
        labels: cell.spec.labels.clone(),
        runtime: cell.spec.runtime.clone(),
        isolation: started.isolation.to_vec(),
        address: endpoint.map(|endpoint| endpoint.address.clone()).unwrap_or_default(),
        version: endpoint.map_or(0, |endpoint| endpoint.version),
        extra: None,
        stale: false,
    }
}

/// What is published, and what the sandbox itself adds if it answers in time.
pub(super) async fn asked(cell: &Arc<Cell>, limit: Duration) -> Any {
    let before = cell.pulse();
    let mut status = published(cell);
    if matches!(before.phase(), Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming)
        && let Some(instance) = cell.instance_of(before.life())
    {
        match tokio::time::timeout(limit, cell.runtime.probe(&instance)).await {
            Ok(Ok(report)) => {
                // It may have gone on while it was asked: what was published meanwhile is newer.
                status = published(cell);
                status.extra = report.extra;
            }
            Ok(Err(_)) | Err(_) => {
                status = published(cell);
                status.stale = true;
            }
        }
    }
    Any::from_msg(&status).expect("a message always encodes into memory")
}
