//! A program inside a sandbox, as if it ran here.

use std::io::{self, Read as _};
use std::time::Duration;

use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;

use super::arguments::Exec;
use super::failure::Failure;
use super::json;
use super::one::{end, propagated};
use super::options::program;
use super::session::{Session, print, print_json};
use crate::error::{Error, ErrorKind};
use crate::surface::grpc::ExecInput;
use crate::wire::generated::exec_response::Message;

/// How much of our input is sent at a time.
const CHUNK_BYTES: usize = 32 * 1_024;
/// How many such pieces may be on their way.
const CHUNKS: usize = 8;

/// A line of `exec --json`.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Started {
        pid: u32,
    },
    /// Text; what is not UTF-8 is replaced.
    Stdout(std::borrow::Cow<'a, str>),
    Stderr(std::borrow::Cow<'a, str>),
    Exit(json::Exit<'a>),
}

pub(super) async fn exec(session: &Session, what: Exec) -> Result<(), Failure> {
    let key = session.key(&what.id)?;
    let process = program(what.argv, &what.env, what.user, what.cwd.as_deref());
    let input = what.interactive.then(standard_input).transpose()?;
    let mut client = session.client.clone();
    let mut output =
        session.answer(Some(Duration::ZERO), client.exec(&key, &process, what.detach, input)).await?;
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    while let Some(said) = output.next().await? {
        match said.message {
            Some(Message::Started(started)) if session.json => {
                print_json(&Line::Started { pid: started.pid })?
            }
            Some(Message::Started(started)) if what.detach => print(&started.pid.to_string())?,
            Some(Message::Started(_)) | None => {}
            Some(Message::Stdout(bytes)) if session.json => {
                print_json(&Line::Stdout(String::from_utf8_lossy(&bytes)))?;
            }
            Some(Message::Stderr(bytes)) if session.json => {
                print_json(&Line::Stderr(String::from_utf8_lossy(&bytes)))?;
            }
            Some(Message::Stdout(bytes)) => pass_on(&mut stdout, &bytes)?,
            Some(Message::Stderr(bytes)) => pass_on(&mut stderr, &bytes)?,
            Some(Message::Exit(exit)) => {
                if session.json {
                    print_json(&Line::Exit(json::Exit::from(&exit)))?;
                } else if exit.reason != "exited" {
                    super::say(&format!("the program {}", end(&exit)));
                }
                return match propagated(&exit) {
                    0 => Ok(()),
                    status => Err(Failure::Said(status)),
                };
            }
        }
    }
    if what.detach {
        return Ok(());
    }
    let found = "the daemon has ended, and the program with it";
    Err(Error::new(ErrorKind::Unavailable, "go on with a program in", found).on(&key).into())
}

fn pass_on(out: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// What we are given to read. A thread of its own reads it, which is left where it is when the program ends.
fn standard_input() -> Result<ExecInput, Failure> {
    let (send, receive) = mpsc::channel(CHUNKS);
    let read = move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(size) => {
                    if send.blocking_send(buffer[..size].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    // The end of our input is an empty piece, which closes the program's.
    let pieces = stream::unfold(Some(receive), async |receive| {
        let mut receive = receive?;
        match receive.recv().await {
            Some(piece) => Some((piece, Some(receive))),
            None => Some((Vec::new(), None)),
        }
    });
    Ok(Box::pin(pieces))
}
