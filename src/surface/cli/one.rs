//! The verbs that are about one sandbox.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

use super::arguments::{Create, Wait};
use super::escape::escaped;
use super::failure::Failure;
use super::json::{self, Nothing, Outcome};
use super::options::explain;
use super::session::{Session, print, print_json};
use crate::error::ErrorKind;
use crate::surface::{quantity, rfc3339};
use crate::wire::generated as wire;

pub(super) async fn create(session: &Session, create: &Create) -> Result<(), Failure> {
    let key = session.key(&create.id)?;
    let spec = create.options.spec()?;
    let mut client = session.client.clone();
    let mut created = Ok(());
    let mut with_spec = true;
    if create.options.is_empty() {
        created = session.answer(Some(Duration::ZERO), client.create(&key, None)).await;
        with_spec = created.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    }
    if with_spec {
        created = session.answer(Some(Duration::ZERO), client.create(&key, Some(&spec))).await;
    }
    created.map_err(|error| explain(error, &spec))?;
    if session.json {
        let (namespace, id) = json::names(&key);
        return Ok(print_json(&Outcome::of(&namespace, &id, Ok(Nothing {})))?);
    }
    Ok(print(&format!("{} is created", create.id))?)
}

pub(super) async fn run(session: &Session, run: &Create) -> Result<(), Failure> {
    let key = session.key(&run.id)?;
    let spec = run.options.spec()?;
    let mut client = session.client.clone();
    let started = session.answer(Some(Duration::ZERO), client.start(&key, Some(&spec))).await;
    let started = started.map_err(|error| explain(error, &spec))?;
    if session.json {
        let (namespace, id) = json::names(&key);
        return Ok(print_json(&Outcome::of(&namespace, &id, Ok(json::Started::from(started))))?);
    }
    Ok(print(&format!("{} runs: leader {}, life {}", run.id, started.pid, started.life))?)
}

pub(super) async fn status(session: &Session, id: &str) -> Result<(), Failure> {
    let key = session.key(id)?;
    let mut client = session.client.clone();
    let status = session.answer(Some(Duration::ZERO), client.status(&key)).await?;
    if session.json {
        return Ok(print_json(&json::Status::from(&status))?);
    }
    for (name, value) in described(&status, SystemTime::now()) {
        print(&format!("{name:<10} {value}"))?;
    }
    Ok(())
}

pub(super) async fn wait(session: &Session, wait: &Wait) -> Result<(), Failure> {
    let key = session.key(&wait.id)?;
    let mut client = session.client.clone();
    let exit = session.answer(None, client.wait(&key)).await?;
    if session.json {
        let (namespace, id) = json::names(&key);
        print_json(&Outcome::of(&namespace, &id, Ok(json::Exit::from(&exit))))?;
    } else {
        print(&format!("{} {}", wait.id, end(&exit)))?;
    }
    match propagated(&exit) {
        status if wait.propagate && status != 0 => Err(Failure::Said(status)),
        _ => Ok(()),
    }
}

/// A process's status as our own.
pub(super) fn propagated(exit: &wire::ExitStatus) -> u8 {
    u8::try_from(exit.status).unwrap_or(u8::MAX)
}

/// How it ended, in words.
pub(super) fn end(exit: &wire::ExitStatus) -> String {
    match exit.reason.as_str() {
        "exited" => format!("exited with {}", exit.status),
        "signalled" => format!("was ended by signal {}", exit.status.saturating_sub(128)),
        "oom-killed" => "was ended by the kernel for want of memory".to_owned(),
        "lost" => "is gone, nobody can tell how".to_owned(),
        "never-ran" => "was stopped before it ran".to_owned(),
        other => format!("ended: {other} {}", exit.status),
    }
}

/// How long ago something was.
pub(super) fn since(at: &Timestamp, now: SystemTime) -> Option<Duration> {
    let at = Duration::new(u64::try_from(at.seconds).ok()?, u32::try_from(at.nanos).ok()?);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(now.saturating_sub(at))
}

/// A moment for people, in whole seconds.
pub(super) fn moment(at: &Timestamp) -> String {
    rfc3339::text(&Timestamp { nanos: 0, ..*at }).replace(".000000000", "")
}

/// A phase and what stands beside it.
pub(super) fn phase(status: &wire::SandboxStatus) -> String {
    // That what is stopped has exited is no news.
    let news = |mark: &&String| !(status.phase == "stopped" && *mark == "exited");
    let marks: Vec<&str> = status.marks.iter().filter(news).map(String::as_str).collect();
    if marks.is_empty() {
        return status.phase.clone();
    }
    format!("{} ({})", status.phase, marks.join(", "))
}

/// Labels as they are given: `a=b,c=d`.
pub(super) fn labels(status: &wire::SandboxStatus) -> String {
    let labels: Vec<_> = status.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    escaped(&labels.join(","))
}

fn described(status: &wire::SandboxStatus, now: SystemTime) -> Vec<(&'static str, String)> {
    let ago = |at: &Timestamp| {
        let age = since(at, now).map(|age| format!(" ({} ago)", quantity::age(age)));
        format!("{}{}", moment(at), age.unwrap_or_default())
    };
    let mut lines =
        vec![("sandbox", format!("{}/{}", status.namespace, status.id)), ("phase", phase(status))];
    if !status.runtime.is_empty() {
        lines.push(("runtime", escaped(&status.runtime)));
    }
    if status.pid != 0 {
        lines.push(("pid", status.pid.to_string()));
    }
    if status.life != 0 {
        lines.push(("life", status.life.to_string()));
    }
    lines.extend(status.created_at.as_ref().map(|at| ("created", ago(at))));
    lines.extend(status.started_at.as_ref().map(|at| ("started", ago(at))));
    if let Some(exit) = &status.exit {
        let at = exit.exited_at.as_ref().map(|at| format!(", {}", ago(at)));
        lines.push(("ended", format!("it {}{}", end(exit), at.unwrap_or_default())));
    }
    if !status.labels.is_empty() {
        lines.push(("labels", labels(status)));
    }
    if !status.isolation.is_empty() {
        lines.push(("isolation", status.isolation.join(", ")));
    }
    if !status.address.is_empty() {
        lines.push(("address", format!("{} (version {})", escaped(&status.address), status.version)));
    }
    if status.stale {
        lines.push(("stale", "it did not answer; this is what was last known".to_owned()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_well() {
        let status = wire::SandboxStatus {
            namespace: "default".into(),
            id: "web".into(),
            phase: "stopped".into(),
            marks: vec!["exited".into(), "recovering".into()],
            life: 3,
            created_at: Some(Timestamp { seconds: 100, nanos: 0 }),
            exit: Some(wire::ExitStatus {
                status: 137,
                reason: "signalled".into(),
                exited_at: Some(Timestamp { seconds: 160, nanos: 0 }),
            }),
            runtime: "linux".into(),
            ..Default::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(165);
        let expected = [
            ("sandbox", "default/web"),
            ("phase", "stopped (recovering)"),
            ("runtime", "linux"),
            ("life", "3"),
            ("created", "1970-01-01T00:01:40Z (1m5s ago)"),
            ("ended", "it was ended by signal 9, 1970-01-01T00:02:40Z (5s ago)"),
        ];
        assert_eq!(described(&status, now), expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn a_status_that_is_unknown_is_never_propagated_as_success() {
        let exit = |status| wire::ExitStatus { status, reason: "lost".into(), exited_at: None };
        assert_eq!((propagated(&exit(255)), propagated(&exit(256)), propagated(&exit(7))), (255, 255, 7));
    }
}
