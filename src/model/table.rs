//! Makes the tables and the diagram of `docs/lifecycle.md` from the machine itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::search::{Move, explore};
use super::*;

const BEGIN: &str = "<!-- made from the machine: begin -->";
const END: &str = "<!-- made from the machine: end -->";

fn label(what: Move) -> (&'static str, &'static str) {
    match what {
        Move::Command(command) => ("command", command.verb()),
        Move::Observe(Observation::Ended { failed: false, .. }) => ("report", "operation done"),
        Move::Observe(Observation::Ended { failed: true, .. }) => ("report", "operation failed"),
        Move::Observe(Observation::Exited { .. }) => ("report", "exited"),
        Move::Observe(Observation::Due) => ("report", "deadline passed"),
        Move::Observe(Observation::OwnerLost) => ("report", "owner lost"),
        Move::Observe(Observation::Found { .. }) => ("report", "reality found"),
    }
}

fn tables() -> String {
    let mut rows = BTreeSet::new();
    let mut arrows = BTreeSet::new();
    explore(|edge| {
        let (from, to) = (edge.from.phase(), edge.to.phase());
        let (kind, what) = label(edge.what);
        if from == to && (kind == "report" || edge.effects.is_empty() && edge.answer != Some(Answer::Done)) {
            return;
        }
        rows.insert((from, kind, what, to));
        // One step may pass through several phases.
        let mut at = from;
        for effect in &edge.effects {
            if let Effect::Publish(next) = effect {
                arrows.insert((at, *next));
                at = *next;
            }
        }
    });
    let mut text = String::from("| phase | what happens | leads to |\n| --- | --- | --- |\n");
    for phase in Phase::ALL {
        let mut grouped: Vec<(&str, &str, Vec<Phase>)> = Vec::new();
        for (_, kind, what, to) in rows.iter().filter(|row| row.0 == phase) {
            match grouped.iter_mut().find(|row| row.0 == *kind && row.1 == *what) {
                Some(row) => row.2.push(*to),
                None => grouped.push((kind, what, vec![*to])),
            }
        }
        for (kind, what, to) in grouped {
            let to: Vec<&str> =
                to.into_iter().map(|to| if to == phase { "(unchanged)" } else { to.name() }).collect();
            let what = if kind == "command" { format!("**{what}**") } else { what.to_owned() };
            writeln!(text, "| {phase} | {what} | {} |", to.join(", ")).unwrap();
        }
    }
    text.push_str("\n```mermaid\nstateDiagram-v2\n");
    for (from, to) in arrows {
        writeln!(text, "    {from} --> {to}").unwrap();
    }
    text.push_str("```\n");
    text
}

/// Goal: a changed lifecycle is a visible diff. `SANDKEEPER_BLESS=1 cargo test lifecycle_document` writes it anew.
#[test]
fn the_lifecycle_document_is_what_the_machine_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lifecycle.md");
    let document = std::fs::read_to_string(path).expect("docs/lifecycle.md");
    let (head, rest) = document.split_once(BEGIN).expect("the begin mark");
    let (_, tail) = rest.split_once(END).expect("the end mark");
    let made = format!("{head}{BEGIN}\n{}{END}{tail}", tables());
    if std::env::var_os("SANDKEEPER_BLESS").is_some() {
        std::fs::write(path, &made).expect("docs/lifecycle.md");
    }
    assert!(
        made == document || std::env::var_os("SANDKEEPER_BLESS").is_some(),
        "docs/lifecycle.md is out of date; run SANDKEEPER_BLESS=1 cargo test lifecycle_document and read the diff"
    );
}
