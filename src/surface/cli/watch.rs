//! Everything that happens, as it happens.

use std::time::Duration;

use super::arguments::Watch;
use super::failure::Failure;
use super::json;
use super::one::{end, moment, phase};
use super::session::{Session, print, print_json};
use crate::error::{Error, ErrorKind};
use crate::wire::generated::watch_response::Item;
use crate::wire::generated::{Event, SandboxName, Snapshot};

pub(super) async fn watch(session: &Session, what: &Watch) -> Result<(), Failure> {
    let (epoch, next_sequence) = what.from.unwrap_or_default();
    let namespace = (!what.all_namespaces).then(|| session.namespace.to_string());
    let wanted = |of: &str| namespace.as_deref().is_none_or(|namespace| namespace == of);
    let mut client = session.client.clone();
    let mut watching = session.answer(Some(Duration::ZERO), client.watch(epoch, next_sequence)).await?;
    while let Some(told) = watching.next().await? {
        match told.item {
            Some(Item::Snapshot(snapshot)) => tell_snapshot(&snapshot, session.json, wanted)?,
            Some(Item::Event(event)) => {
                let name = event.sandbox.clone().unwrap_or_default();
                if wanted(&name.namespace) {
                    tell_event(&event, &name, session.json)?;
                }
            }
            None => {}
        }
    }
    let found = "the daemon has ended; what happens meanwhile is not told";
    Err(Error::new(ErrorKind::Unavailable, "go on watching", found)
        .remedy("watch again when it is back")
        .into())
}

fn tell_snapshot(snapshot: &Snapshot, json: bool, wanted: impl Fn(&str) -> bool) -> std::io::Result<()> {
    let mut sandboxes = snapshot.sandboxes.iter().filter(|status| wanted(&status.namespace));
    if json {
        let sandboxes = sandboxes.map(json::Status::from).collect();
        return print_json(&json::Snapshot::of(snapshot, sandboxes));
    }
    sandboxes
        .try_for_each(|status| print(&format!("{}/{} is {}", status.namespace, status.id, phase(status))))
}

fn tell_event(event: &Event, name: &SandboxName, json: bool) -> std::io::Result<()> {
    if json {
        return print_json(&json::Event::of(event, name));
    }
    let at = event.at.as_ref().map(moment).unwrap_or_default();
    let life = if event.life == 0 { String::new() } else { format!(", life {}", event.life) };
    let exit = event.exit.as_ref().map(|exit| format!(": it {}", end(exit))).unwrap_or_default();
    let position = format!("{}:{}", event.epoch, event.sequence);
    print(&format!("{at} {position} {}/{} {}{life}{exit}", name.namespace, name.id, event.phase))
}
