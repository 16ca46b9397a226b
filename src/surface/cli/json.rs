//! The answers as JSON. Times are RFC 3339 with nanoseconds; what is absent or unknown is null.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use serde::Serialize;

use crate::error::Error;
use crate::id::SandboxKey;
use crate::surface::rfc3339;
use crate::wire::generated as wire;

/// A moment, if it is known.
pub(super) fn moment(at: Option<&Timestamp>) -> Option<String> {
    at.map(rfc3339::text)
}

fn number(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number != 0)
}

fn text(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// What is known of a sandbox: `status`, and each item of `list`.
#[derive(Debug, Serialize)]
pub(super) struct Status<'a> {
    namespace: &'a str,
    id: &'a str,
    phase: &'a str,
    paused: bool,
    pid: Option<u64>,
    life: Option<u64>,
    created_at: Option<String>,
    started_at: Option<String>,
    exited_at: Option<String>,
    exit_status: Option<u32>,
    exit_reason: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    runtime: Option<&'a str>,
    address: Option<&'a str>,
    version: Option<u64>,
    marks: &'a [String],
    isolation: &'a [String],
    stale: bool,
}

impl<'a> From<&'a wire::SandboxStatus> for Status<'a> {
    fn from(status: &'a wire::SandboxStatus) -> Self {
        let exit = status.exit.as_ref();
        Self {
            namespace: &status.namespace,
            id: &status.id,
            phase: &status.phase,
            paused: status.phase == "paused",
            pid: number(status.pid.into()),
            life: number(status.life),
            created_at: moment(status.created_at.as_ref()),
            started_at: moment(status.started_at.as_ref()),
            exited_at: moment(exit.and_then(|exit| exit.exited_at.as_ref())),
            exit_status: exit.map(|exit| exit.status),
            exit_reason: exit.map(|exit| exit.reason.as_str()),
            labels: &status.labels,
            runtime: text(&status.runtime),
            address: text(&status.address),
            version: number(status.version.into()),
            marks: &status.marks,
            isolation: &status.isolation,
            stale: status.stale,
        }
    }
}

/// How a life ended: `wait`, and the end of `exec`.
#[derive(Debug, Serialize)]
pub(super) struct Exit<'a> {
    exit_status: u32,
    exit_reason: &'a str,
    exited_at: Option<String>,
}

impl<'a> From<&'a wire::ExitStatus> for Exit<'a> {
    fn from(exit: &'a wire::ExitStatus) -> Self {
        Self {
            exit_status: exit.status,
            exit_reason: &exit.reason,
            exited_at: moment(exit.exited_at.as_ref()),
        }
    }
}

/// A change of phase.
#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    r#type: &'static str,
    epoch: u64,
    sequence: u64,
    at: Option<String>,
    namespace: &'a str,
    id: &'a str,
    phase: &'a str,
    life: Option<u64>,
    exited_at: Option<String>,
    exit_status: Option<u32>,
    exit_reason: Option<&'a str>,
}

impl<'a> Event<'a> {
    pub(super) fn of(event: &'a wire::Event, name: &'a wire::SandboxName) -> Self {
        let exit = event.exit.as_ref();
        Self {
            r#type: "event",
            epoch: event.epoch,
            sequence: event.sequence,
            at: moment(event.at.as_ref()),
            namespace: &name.namespace,
            id: &name.id,
            phase: &event.phase,
            life: number(event.life),
            exited_at: moment(exit.and_then(|exit| exit.exited_at.as_ref())),
            exit_status: exit.map(|exit| exit.status),
            exit_reason: exit.map(|exit| exit.reason.as_str()),
        }
    }
}

/// A part of what there is when a watch begins.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot<'a> {
    r#type: &'static str,
    epoch: u64,
    next_sequence: u64,
    sandboxes: Vec<Status<'a>>,
    last: bool,
}

impl<'a> Snapshot<'a> {
    pub(super) fn of(snapshot: &'a wire::Snapshot, sandboxes: Vec<Status<'a>>) -> Self {
        let wire::Snapshot { epoch, next_sequence, last, .. } = *snapshot;
        Self { r#type: "snapshot", epoch, next_sequence, sandboxes, last }
    }
}

/// What became of one sandbox: a line of whatever takes several.
#[derive(Debug, Serialize)]
pub(super) struct Outcome<'a, T> {
    namespace: &'a str,
    id: &'a str,
    ok: bool,
    #[serde(flatten)]
    answer: Option<T>,
    error: Option<Refusal>,
}

impl<'a, T: Serialize> Outcome<'a, T> {
    pub(super) fn of(namespace: &'a str, id: &'a str, answer: Result<T, &Error>) -> Self {
        let ok = answer.is_ok();
        let (answer, error) = match answer {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(Refusal::of(error))),
        };
        Self { namespace, id, ok, answer, error }
    }
}

/// An error.
#[derive(Debug, Serialize)]
pub(super) struct Refusal {
    kind: &'static str,
    message: String,
    retry_after_ms: Option<u64>,
}

/// An error that stands for itself: what is on stderr, an object a line.
#[derive(Debug, Serialize)]
pub(super) struct Refused {
    error: Refusal,
}

impl Refused {
    pub(super) fn of(error: &Error) -> Self {
        Self { error: Refusal::of(error) }
    }
}

impl Refusal {
    pub(super) fn of(error: &Error) -> Self {
        let millis = |pause: std::time::Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Self {
            kind: error.kind().name(),
            message: error.to_string(),
            retry_after_ms: error.retry_hint().map(millis),
        }
    }
}

/// `start` and `run`.
#[derive(Debug, Serialize)]
pub(super) struct Started {
    life: u64,
    pid: u32,
    isolation: Vec<String>,
    address: Option<String>,
    version: Option<u64>,
}

impl From<wire::StartResponse> for Started {
    fn from(started: wire::StartResponse) -> Self {
        Self {
            life: started.life,
            pid: started.pid,
            isolation: started.isolation,
            address: Some(started.address).filter(|address| !address.is_empty()),
            version: number(started.version.into()),
        }
    }
}

/// `ping`.
#[derive(Debug, Serialize)]
pub(super) struct Pong {
    phase: String,
    paused: bool,
    life: Option<u64>,
    marks: Vec<String>,
}

impl From<wire::PingResponse> for Pong {
    fn from(pong: wire::PingResponse) -> Self {
        let paused = pong.phase == "paused";
        Self { phase: pong.phase, paused, life: number(pong.life), marks: pong.marks }
    }
}

/// `probe`.
#[derive(Debug, Serialize)]
pub(super) struct Probed {
    alive: bool,
    frozen: bool,
}

impl From<&wire::ProbeResponse> for Probed {
    fn from(answer: &wire::ProbeResponse) -> Self {
        Self { alive: answer.alive, frozen: answer.frozen }
    }
}

/// What verbs say that have nothing to say.
#[derive(Debug, Serialize)]
pub(super) struct Nothing {}

/// The daemon's side of `version`.
#[derive(Debug, Serialize)]
pub(super) struct Daemon<'a> {
    version: &'a str,
    pid: u32,
    started_at: Option<String>,
    epoch: u64,
    state_dir: Option<&'a str>,
    capacity: Option<u64>,
    recovering: u64,
    journal_trouble: Option<&'a str>,
    orphans: u64,
    findings: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a wire::VersionResponse> for Daemon<'a> {
    fn from(daemon: &'a wire::VersionResponse) -> Self {
        Self {
            version: &daemon.version,
            pid: daemon.pid,
            started_at: moment(daemon.started_at.as_ref()),
            epoch: daemon.epoch,
            state_dir: text(&daemon.state_dir),
            capacity: number(daemon.capacity),
            recovering: daemon.recovering,
            journal_trouble: text(&daemon.journal_trouble),
            orphans: daemon.orphans,
            findings: &daemon.findings,
        }
    }
}

/// The name of a sandbox.
#[derive(Debug, Serialize)]
pub(super) struct Name<'a> {
    namespace: &'a str,
    id: &'a str,
}

impl<'a> From<&'a wire::SandboxName> for Name<'a> {
    fn from(name: &'a wire::SandboxName) -> Self {
        Self { namespace: &name.namespace, id: &name.id }
    }
}

/// Something that exists without a record.
#[derive(Debug, Serialize)]
pub(super) struct Orphan<'a> {
    namespace: &'a str,
    id: &'a str,
    life: u64,
    description: &'a str,
}

impl<'a> From<&'a wire::Orphan> for Orphan<'a> {
    fn from(orphan: &'a wire::Orphan) -> Self {
        let name = orphan.sandbox.as_ref();
        Self {
            namespace: name.map_or("", |name| &name.namespace),
            id: name.map_or("", |name| &name.id),
            life: orphan.life,
            description: &orphan.description,
        }
    }
}

/// The key of a sandbox as its two names.
pub(super) fn names(key: &SandboxKey) -> (String, String) {
    (key.namespace().to_string(), key.id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_every_field_and_null_for_what_is_absent() {
        let status = wire::SandboxStatus {
            namespace: "default".into(),
            id: "web".into(),
            phase: "defined".into(),
            runtime: "linux".into(),
            created_at: Some(Timestamp { seconds: 1, nanos: 5 }),
            ..Default::default()
        };
        let expected = concat!(
            r#"{"namespace":"default","id":"web","phase":"defined","paused":false,"pid":null,"life":null,"#,
            r#""created_at":"1970-01-01T00:00:01.000000005Z","started_at":null,"exited_at":null,"exit_status":null,"#,
            r#""exit_reason":null,"labels":{},"runtime":"linux","address":null,"version":null,"marks":[],"#,
            r#""isolation":[],"stale":false}"#
        );
        assert_eq!(serde_json::to_string(&Status::from(&status)).unwrap(), expected);
    }

    #[test]
    fn an_end_of_which_nobody_knows_when_it_was_has_no_moment() {
        let exit = wire::ExitStatus { status: 255, reason: "lost".into(), exited_at: None };
        let text = serde_json::to_string(&Exit::from(&exit)).unwrap();
        assert_eq!(text, r#"{"exit_status":255,"exit_reason":"lost","exited_at":null}"#);
    }

    #[test]
    fn an_outcome_is_one_flat_object() {
        let pong = wire::PingResponse { phase: "paused".into(), marks: vec![], life: 3 };
        let text = serde_json::to_string(&Outcome::of("a", "b", Ok(Pong::from(pong)))).unwrap();
        let expected = r#"{"namespace":"a","id":"b","ok":true,"phase":"paused","paused":true,"life":3,"marks":[],"error":null}"#;
        assert_eq!(text, expected);
        let error = Error::new(crate::ErrorKind::NotFound, "ping", "nobody has this name");
        let text = serde_json::to_string(&Outcome::<Pong>::of("a", "b", Err(&error))).unwrap();
        let expected = concat!(
            r#"{"namespace":"a","id":"b","ok":false,"error":{"kind":"NotFound","#,
            r#""message":"cannot ping: nobody has this name","retry_after_ms":null}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn an_event_has_its_position() {
        let name = wire::SandboxName { namespace: "a".into(), id: "b".into() };
        let event =
            wire::Event { epoch: 2, sequence: 9, phase: "running".into(), life: 4, ..Default::default() };
        let expected = concat!(
            r#"{"type":"event","epoch":2,"sequence":9,"at":null,"namespace":"a","id":"b","phase":"running","life":4,"#,
            r#""exited_at":null,"exit_status":null,"exit_reason":null}"#
        );
        assert_eq!(serde_json::to_string(&Event::of(&event, &name)).unwrap(), expected);
    }
}
