//! A connection to the daemon, and what holds for every verb.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::arguments::Common;
use crate::error::{Error, ErrorKind};
use crate::id::{Namespace, SandboxId, SandboxKey};
use crate::surface::grpc::Client;
use crate::surface::places;

/// How long the daemon may take over a verb with a deadline of its own: longer than any such deadline.
const PATIENCE: Duration = Duration::from_secs(90);
/// How much longer than it was told to take.
const LATENESS: Duration = Duration::from_secs(2);

/// A connection.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) namespace: Namespace,
    pub(super) json: bool,
    timeout: Option<Duration>,
}

impl Session {
    pub(super) async fn open(common: Common) -> Result<Self, Error> {
        let name = &common.namespace;
        let namespace = Namespace::new(name).map_err(|error| invalid("namespace", name, &error))?;
        let path = common.socket.unwrap_or_else(places::socket);
        let path = path.as_path();
        let timeout = common.timeout;
        let client = in_time(Some(timeout.unwrap_or(PATIENCE)), Client::connect(path)).await;
        let mut client = client.map_err(|error| nobody(path, error))?;
        if let Some(limit) = timeout {
            client = client.within(limit);
        }
        Ok(Self { client, namespace, json: common.json, timeout })
    }

    pub(super) fn key(&self, id: &str) -> Result<SandboxKey, Error> {
        let id = SandboxId::new(id).map_err(|error| invalid("sandbox ID", id, &error))?;
        Ok(SandboxKey::from_parts(self.namespace, id))
    }

    /// Waits for an answer for as long as the daemon may take for it: `longer` than usual, or for ever.
    pub(super) async fn answer<T>(
        &self,
        longer: Option<Duration>,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let limit = match (self.timeout, longer) {
            (Some(timeout), _) => Some(timeout + LATENESS),
            (None, Some(longer)) => Some(longer + PATIENCE),
            (None, None) => None,
        };
        in_time(limit, call).await
    }
}

/// Waits for something of the daemon, which may be stopped or starved.
async fn in_time<T>(
    limit: Option<Duration>,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(limit) = limit else { return call.await };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let found = format!("no answer in {limit:?}");
        Err(Error::new(ErrorKind::DeadlineExceeded, "hear from the daemon", found)
            .remedy("see whether its process is stopped or starved"))
    })
}

/// Names that are wrong are shown as they were given, escaped, and not in all their length.
fn invalid(what: &str, name: &str, error: &dyn std::fmt::Display) -> Error {
    const SHOWN: usize = 80;
    let mut shown: String = name.chars().take(SHOWN).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    Error::new(ErrorKind::InvalidArgument, "", format!("the {what} {shown:?} is invalid: {error}"))
}

/// Says it as somebody reads it who has just typed a command.
fn nobody(path: &Path, error: Error) -> Error {
    if error.kind() != ErrorKind::Unavailable {
        return error;
    }
    let found = format!("no daemon answers at {}", path.display());
    let text = error.to_string();
    let nobody = Error::new(ErrorKind::Unavailable, "", found)
        .remedy("start one with `sandkeeper serve`, or name its socket with --socket");
    // The usual reasons are no news: there is no such socket, or nobody listens on it.
    if text.contains("(os error 2)") || text.contains("(os error 111)") {
        return nobody;
    }
    nobody.caused_by(error)
}

/// Prints one line.
pub(in crate::surface) fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints one line of JSON.
pub(in crate::surface) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&serde_json::to_string(value)?)
}
