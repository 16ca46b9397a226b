//! Which daemon answers, and the state of what it has written down.

use std::time::Duration;

use serde::Serialize;

use super::arguments::{Common, Fsck};
use super::escape::escaped;
use super::failure::{Failure, code};
use super::json::{Daemon, Name, Orphan};
use super::one::moment;
use super::session::{Session, print, print_json};
use crate::wire::generated::{EndOrphansResponse, OrphansResponse, SandboxName, VersionResponse};

/// `version`.
#[derive(Serialize)]
struct Versions<'a> {
    version: &'static str,
    daemon: Option<Daemon<'a>>,
}

/// Says its own version whether or not a daemon answers.
pub(super) async fn version(common: Common) -> Result<(), Failure> {
    let json = common.json;
    let version = env!("CARGO_PKG_VERSION");
    let asked = async {
        let session = Session::open(common).await?;
        let mut client = session.client.clone();
        session.answer(Some(Duration::ZERO), client.version()).await
    };
    let answer = asked.await;
    if json {
        print_json(&Versions { version, daemon: answer.as_ref().ok().map(Daemon::from) })?;
    } else {
        print(&format!("sandkeeper {version}"))?;
    }
    match answer {
        Ok(daemon) if !json => Ok(tell(&daemon)?),
        Ok(_) => Ok(()),
        Err(error) => {
            super::complain(&error, json);
            Err(Failure::Said(code(error.kind())))
        }
    }
}

fn tell(daemon: &VersionResponse) -> std::io::Result<()> {
    let VersionResponse { version, pid, epoch, state_dir, capacity, .. } = daemon;
    print(&format!("daemon {version}, process {pid}, its {epoch}. start on {state_dir}"))?;
    if let Some(at) = &daemon.started_at {
        print(&format!("up since {}", moment(at)))?;
    }
    if *capacity != 0 {
        print(&format!("room for {capacity} sandboxes"))?;
    }
    daemon.findings.iter().try_for_each(|(name, found)| print(&format!("{name}: {found}")))
}

/// `fsck`.
#[derive(Serialize)]
struct Findings<'a> {
    daemon: Daemon<'a>,
    orphans: Vec<Orphan<'a>>,
    total_orphans: u64,
    damaged_records: u64,
    waiting_records: Vec<Name<'a>>,
    ended: Option<u64>,
    left: Option<&'a [String]>,
    ok: bool,
}

pub(super) async fn fsck(session: &Session, what: &Fsck) -> Result<(), Failure> {
    let mut client = session.client.clone();
    let orphans = session.answer(Some(Duration::ZERO), client.orphans()).await?;
    let mut ended = None;
    if what.end_orphans {
        ended = Some(session.answer(Some(Duration::ZERO), client.end_orphans()).await?);
    }
    let daemon = session.answer(Some(Duration::ZERO), client.version()).await?;
    let ok = match &ended {
        // What is missing is accepted as lost once all is ended.
        Some(ended) => ended.total_left == 0,
        None => orphans.total == 0 && orphans.damaged_records == 0,
    };
    let ok = ok && daemon.journal_trouble.is_empty() && orphans.waiting_records.is_empty();
    if session.json {
        print_json(&Findings {
            daemon: Daemon::from(&daemon),
            orphans: orphans.orphans.iter().map(Orphan::from).collect(),
            total_orphans: orphans.total,
            damaged_records: orphans.damaged_records,
            waiting_records: orphans.waiting_records.iter().map(Name::from).collect(),
            ended: ended.as_ref().map(|ended| ended.ended),
            left: ended.as_ref().map(|ended| ended.left.as_slice()),
            ok,
        })?;
    } else {
        report(&daemon, &orphans, ended.as_ref()).iter().try_for_each(|line| print(line))?;
    }
    if ok { Ok(()) } else { Err(Failure::Said(1)) }
}

/// What is found, in words.
fn report(
    daemon: &VersionResponse,
    orphans: &OrphansResponse,
    ended: Option<&EndOrphansResponse>,
) -> Vec<String> {
    let records = if daemon.journal_trouble.is_empty() { "can be written" } else { &daemon.journal_trouble };
    let mut lines = vec![
        format!("state directory   {}", escaped(&daemon.state_dir)),
        format!("records           {}", escaped(records)),
        format!("damaged records   {}", orphans.damaged_records),
        format!("waiting records   {}", orphans.waiting_records.len()),
    ];
    lines.extend(orphans.waiting_records.iter().map(|SandboxName { namespace, id }| {
        format!("  {namespace}/{id}: this daemon does not have its runtime")
    }));
    lines.push(format!("still looked for  {}", daemon.recovering));
    lines.push(format!("without a record  {}", orphans.total));
    lines.extend(orphans.orphans.iter().map(|orphan| {
        let SandboxName { namespace, id } = orphan.sandbox.clone().unwrap_or_default();
        format!("  {namespace}/{id}, life {}: {}", orphan.life, escaped(&orphan.description))
    }));
    match ended {
        Some(ended) => {
            lines.push(format!("ended             {}", ended.ended));
            lines.push(format!("left              {}", ended.total_left));
            lines.extend(ended.left.iter().map(|left| format!("  {}", escaped(left))));
        }
        None if orphans.total > 0 => lines.push(
            "They run, and no record says why: `sandkeeper fsck --end-orphans` ends and removes them.".into(),
        ),
        None if orphans.damaged_records > 0 => lines.push(
            "What was in damaged records is lost: `sandkeeper fsck --end-orphans` accepts that.".into(),
        ),
        None => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::generated::Orphan;

    #[test]
    fn what_has_no_record_is_listed_with_what_to_do() {
        let daemon = VersionResponse { state_dir: "/run/s".into(), recovering: 2, ..Default::default() };
        let name = |id: &str| SandboxName { namespace: "default".into(), id: id.into() };
        let orphan =
            Orphan { sandbox: Some(name("web")), life: 3, description: "cgroup /sandkeeper/x\n".into() };
        let orphans = OrphansResponse {
            orphans: vec![orphan],
            total: 1,
            damaged_records: 4,
            waiting_records: vec![name("old")],
        };
        let expected = [
            "state directory   /run/s",
            "records           can be written",
            "damaged records   4",
            "waiting records   1",
            "  default/old: this daemon does not have its runtime",
            "still looked for  2",
            "without a record  1",
            "  default/web, life 3: cgroup /sandkeeper/x\\n",
        ];
        let lines = report(&daemon, &orphans, None);
        assert_eq!(lines[..8], expected);
        assert!(lines[8].contains("fsck --end-orphans"), "{lines:?}");
        let ended =
            EndOrphansResponse { ended: 0, left: vec!["default/web: it is busy".into()], total_left: 1 };
        let lines = report(&daemon, &orphans, Some(&ended));
        assert_eq!(lines[8..], ["ended             0", "left              1", "  default/web: it is busy"]);
    }
}
