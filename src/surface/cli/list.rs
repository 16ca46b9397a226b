//! A table of sandboxes.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use super::arguments::List;
use super::escape::escaped;
use super::failure::Failure;
use super::one::{labels, phase, since};
use super::session::Session;
use super::{json, session};
use crate::surface::quantity;
use crate::wire::generated::{ListRequest, SandboxStatus};

/// A column is this far from the next.
const GAP: usize = 3;

pub(super) async fn list(session: &Session, which: List) -> Result<(), Failure> {
    let namespace = if which.all_namespaces { String::new() } else { session.namespace.to_string() };
    let request = ListRequest {
        namespace,
        phases: which.phase,
        labels: which.label.into_iter().collect(),
        ..Default::default()
    };
    let mut client = session.client.clone();
    let all = session.answer(Some(Duration::ZERO), client.list(request)).await?;
    if session.json {
        let all: Vec<_> = all.iter().map(json::Status::from).collect();
        return Ok(session::print_json(&all)?);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if which.quiet {
        for status in &all {
            match which.all_namespaces {
                true => writeln!(out, "{}/{}", status.namespace, status.id)?,
                false => writeln!(out, "{}", status.id)?,
            }
        }
        return Ok(out.flush()?);
    }
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let rows = rows(&all, which.all_namespaces, SystemTime::now());
    out.write_all(aligned(&rows, colour).as_bytes())?;
    Ok(out.flush()?)
}

/// A row of cells; of which the phase may be coloured.
type Row = Vec<String>;

fn rows(all: &[SandboxStatus], with_namespace: bool, now: SystemTime) -> Vec<Row> {
    let mut header = vec!["ID", "PHASE", "PID", "AGE", "RUNTIME", "LABELS"];
    if with_namespace {
        header.insert(0, "NAMESPACE");
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    for status in all {
        let age = status.created_at.as_ref().and_then(|at| since(at, now));
        let mut row = vec![
            status.id.clone(),
            phase(status),
            if status.pid == 0 { "-".to_owned() } else { status.pid.to_string() },
            age.map_or_else(|| "-".to_owned(), quantity::age),
            if status.runtime.is_empty() { "-".to_owned() } else { escaped(&status.runtime) },
            labels(status),
        ];
        if with_namespace {
            row.insert(0, status.namespace.clone());
        }
        rows.push(row);
    }
    rows
}

/// How a phase is coloured: green runs, yellow stands still, cyan is on its way, dim has ended.
fn colour_of(phase: &str) -> &'static str {
    match phase.split(' ').next().unwrap_or_default() {
        "running" => "\x1b[32m",
        "paused" => "\x1b[33m",
        "stopped" | "defined" | "created" => "\x1b[2m",
        _ => "\x1b[36m",
    }
}

fn aligned(rows: &[Row], colour: bool) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let phase_column = columns.saturating_sub(5);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        let mut owed = 0;
        for (column, cell) in row.iter().enumerate() {
            line.extend(std::iter::repeat_n(' ', owed));
            if colour && column == phase_column && number > 0 {
                line.push_str(colour_of(cell));
                line.push_str(cell);
                line.push_str("\x1b[0m");
            } else {
                line.push_str(cell);
            }
            owed = widths[column] - cell.chars().count() + GAP;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: &str, phase: &str, pid: u32) -> SandboxStatus {
        SandboxStatus {
            namespace: "default".into(),
            id: id.into(),
            phase: phase.into(),
            pid,
            created_at: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
            runtime: "linux".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let mut labelled = status("a-longer-one", "stopped", 0);
        labelled.labels.insert("app".into(), "web".into());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(105);
        let all = [status("web", "running", 4711), labelled];
        let expected = "\
ID             PHASE     PID    AGE   RUNTIME   LABELS
web            running   4711   5s    linux
a-longer-one   stopped   -      5s    linux     app=web
";
        assert_eq!(aligned(&rows(&all, false, now), false), expected);
        let with_namespaces = aligned(&rows(&all, true, now), false);
        assert!(with_namespaces.starts_with("NAMESPACE   ID "), "{with_namespaces}");
    }

    #[test]
    fn only_the_phase_is_coloured_and_the_columns_stay() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(105);
        let rows = rows(&[status("running", "running", 1), status("b", "paused", 2)], true, now);
        let coloured = aligned(&rows, true);
        assert!(coloured.contains("running   \x1b[32mrunning\x1b[0m"), "{coloured:?}");
        assert!(coloured.contains("\x1b[33mpaused\x1b[0m "), "{coloured:?}");
        let plain =
            ["\x1b[32m", "\x1b[33m", "\x1b[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(plain, aligned(&rows, false));
    }
}
