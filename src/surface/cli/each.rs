//! The verbs that take several sandboxes: all are tried, many at a time, and told in the order in which they were named.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use super::arguments::Several;
use super::failure::{Failure, code};
use super::json::{self, Nothing, Outcome};
use super::session::{Session, print, print_json};
use crate::error::Error;
use crate::id::SandboxKey;
use crate::surface::grpc::Client;
use crate::wire::generated::ListRequest;

/// How many are under way at a time. Large, so that one that takes its grace does not hold up the others.
const AT_A_TIME: usize = 1_024;

/// From how many on it is told on a terminal how far it is.
const MANY: usize = 64;

/// What a verb says of one sandbox.
struct Said<T> {
    /// What follows its ID: `is stopped`.
    text: String,
    json: T,
}

fn said(text: &str) -> Said<Nothing> {
    Said { text: text.to_owned(), json: Nothing {} }
}

/// A name as it was given, and what it names.
type Named = (String, Result<SandboxKey, Error>);

fn named(session: &Session, ids: Vec<String>) -> Vec<Named> {
    ids.into_iter().map(|id| (session.key(&id), id)).map(|(key, id)| (id, key)).collect()
}

/// All of the namespace, or those named.
async fn chosen(session: &Session, which: Several) -> Result<Vec<Named>, Error> {
    if !which.all {
        return Ok(named(session, which.ids));
    }
    let request = ListRequest { namespace: session.namespace.to_string(), ..Default::default() };
    let mut client = session.client.clone();
    let all = session.answer(Some(Duration::ZERO), client.list(request)).await?;
    Ok(named(session, all.into_iter().map(|status| status.id).collect()))
}

/// Does it to each. The first that fails decides how it ends.
async fn each<T: Serialize, F: Future<Output = Result<Said<T>, Error>>>(
    session: &Session,
    which: Vec<Named>,
    longer: Option<Duration>,
    verb: impl Fn(Client, SandboxKey) -> F,
) -> Result<(), Failure> {
    let namespace = session.namespace.to_string();
    let total = which.len();
    let progress = total >= MANY && io::stderr().is_terminal();
    let verb = &verb;
    let calls = which.into_iter().map(|(id, key)| async move {
        let answer = match key {
            Ok(key) => session.answer(longer, verb(session.client.clone(), key)).await,
            Err(error) => Err(error),
        };
        (id, answer)
    });
    let mut answers = stream::iter(calls).buffered(AT_A_TIME).enumerate();
    let mut first = None;
    while let Some((number, (id, answer))) = answers.next().await {
        if let Err(error) = &answer {
            first.get_or_insert(code(error.kind()));
        }
        if progress {
            let end = if number + 1 == total { '\n' } else { '\r' };
            let _ = write!(io::stderr().lock(), "{} of {total}{end}", number + 1);
        }
        match answer {
            Ok(said) if session.json => print_json(&Outcome::of(&namespace, &id, Ok(said.json)))?,
            Ok(said) => print(&format!("{id} {}", said.text))?,
            Err(error) => {
                if session.json {
                    print_json(&Outcome::<T>::of(&namespace, &id, Err(&error)))?;
                }
                super::complain(&error, session.json);
            }
        }
    }
    first.map_or(Ok(()), |code| Err(Failure::Said(code)))
}

pub(super) async fn start(session: &Session, ids: Vec<String>) -> Result<(), Failure> {
    each(session, named(session, ids), Some(Duration::ZERO), async |mut client: Client, key: SandboxKey| {
        let started = client.start(&key, None).await?;
        let text = format!("runs: leader {}, life {}", started.pid, started.life);
        Ok(Said { text, json: json::Started::from(started) })
    })
    .await
}

pub(super) async fn stop(
    session: &Session,
    ids: Vec<String>,
    grace: Option<Duration>,
) -> Result<(), Failure> {
    each(session, named(session, ids), grace, async |mut client: Client, key: SandboxKey| {
        client.stop(&key, grace).await.map(|()| said("is stopped"))
    })
    .await
}

pub(super) async fn shutdown(
    session: &Session,
    which: Several,
    grace: Option<Duration>,
) -> Result<(), Failure> {
    let which = chosen(session, which).await?;
    each(session, which, grace, async |mut client: Client, key: SandboxKey| {
        client.shutdown(&key, grace).await.map(|()| said("is gone"))
    })
    .await
}

pub(super) async fn pause(session: &Session, ids: Vec<String>) -> Result<(), Failure> {
    each(session, named(session, ids), Some(Duration::ZERO), async |mut client: Client, key: SandboxKey| {
        client.pause(&key).await.map(|()| said("is paused"))
    })
    .await
}

pub(super) async fn resume(session: &Session, ids: Vec<String>) -> Result<(), Failure> {
    each(session, named(session, ids), Some(Duration::ZERO), async |mut client: Client, key: SandboxKey| {
        client.resume(&key).await.map(|()| said("is running"))
    })
    .await
}

pub(super) async fn ping(session: &Session, which: Several) -> Result<(), Failure> {
    let which = chosen(session, which).await?;
    each(session, which, Some(Duration::ZERO), async |mut client: Client, key: SandboxKey| {
        let pong = client.ping(&key).await?;
        let marks =
            if pong.marks.is_empty() { String::new() } else { format!(" ({})", pong.marks.join(", ")) };
        Ok(Said { text: format!("is {}{marks}", pong.phase), json: json::Pong::from(pong) })
    })
    .await
}

pub(super) async fn probe(session: &Session, ids: Vec<String>) -> Result<(), Failure> {
    each(session, named(session, ids), Some(Duration::ZERO), async |mut client: Client, key: SandboxKey| {
        let answer = client.probe(&key).await?;
        let text = match (answer.alive, answer.frozen) {
            (true, false) => "is alive",
            (true, true) => "is alive, and frozen",
            (false, _) => "is not alive",
        };
        Ok(Said { text: text.to_owned(), json: json::Probed::from(&answer) })
    })
    .await
}
