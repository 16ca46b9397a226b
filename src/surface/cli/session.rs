//! A connection to the daemon, and what holds for every verb.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::arguments::{Common, DEFAULT_SOCKET};
use super::json::Refusal;
use crate::error::{Error, ErrorKind};
use crate::id::{Namespace, SandboxId, SandboxKey};
use crate::surface::grpc::Client;

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
        let namespace = Namespace::new(&common.namespace).map_err(|error| invalid("namespace", &error))?;
        let path = common.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
        let client = Client::connect(path).await.map_err(|error| nobody(path, error))?;
        let client = common.timeout.map_or_else(|| client.clone(), |limit| client.within(limit));
        Ok(Self { client, namespace, json: common.json, timeout: common.timeout })
    }

    pub(super) fn key(&self, id: &str) -> Result<SandboxKey, Error> {
        let id = SandboxId::new(id).map_err(|error| invalid("sandbox ID", &error))?;
        Ok(SandboxKey::from_parts(self.namespace, id))
    }

    /// Waits for an answer for as long as the daemon may take for it: `longer` than usual, or for ever.
    pub(super) async fn answer<T>(
        &self,
        longer: Option<Duration>,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let limit = match (self.timeout, longer) {
            (Some(timeout), _) => timeout + LATENESS,
            (None, Some(longer)) => longer + PATIENCE,
            (None, None) => return call.await,
        };
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                "hear from the daemon",
                format!("no answer in {limit:?}"),
            )
            .remedy("see whether its process is stopped or starved"))
        })
    }
}

fn invalid(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, "", format!("the {what} is invalid: {error}"))
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

/// The answer to a command that failed as a whole.
#[derive(Serialize)]
pub(super) struct Refused {
    ok: bool,
    error: Refusal,
}

impl Refused {
    pub(super) fn of(error: &Error) -> Self {
        Self { ok: false, error: Refusal::of(error) }
    }
}
