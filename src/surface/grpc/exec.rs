//! A program inside a sandbox: its input from the caller, its output to it.

use std::io;

use futures_util::stream::{self, Stream};
use tokio::net::unix::pipe;
use tonic::Streaming;

use super::door::Call;
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason};
use crate::runtime::{Exec, ExecRequest, unix_nanos};
use crate::wire::generated as wire;
use crate::wire::generated::exec_request::Message as Said;
use crate::wire::generated::exec_response::Message as Told;

/// How much output is sent at a time.
const CHUNK_BYTES: usize = 64 * 1_024;

/// The first message of a caller.
pub(super) async fn begin(
    call: &Call,
    input: &mut Streaming<wire::ExecRequest>,
) -> Result<(SandboxKey, ExecRequest), Error> {
    let refuse = |found: &str| Error::new(ErrorKind::InvalidArgument, call.verb, found.to_owned());
    let first = input.message().await.map_err(|status| refuse(status.message()))?;
    let Some(Said::Begin(begin)) = first.and_then(|first| first.message) else {
        return Err(refuse("the first message does not say what to run"));
    };
    let key = call.key(begin.sandbox)?;
    let process = begin.process.ok_or_else(|| refuse("the request names no program").on(&key))?;
    let process = process
        .try_into()
        .map_err(|error: crate::wire::MalformedSpec| refuse(&error.to_string()).on(&key))?;
    Ok((key, ExecRequest { process, stdin: begin.stdin, detached: begin.detached }))
}

/// A program that runs, and what goes to and fro.
struct Session {
    exec: Exec,
    input: Streaming<wire::ExecRequest>,
    /// Whether the caller may still say something.
    listening: bool,
    /// Input that the program has not taken yet.
    pending: Vec<u8>,
    detached: bool,
    told_started: bool,
    ended: Option<ExitReason>,
    told_ended: bool,
    buffer: Vec<u8>,
    key: SandboxKey,
    verb: &'static str,
}

/// What happens next.
enum Happened {
    Said(Option<Box<Said>>),
    Took(io::Result<usize>),
    Wrote(Output, io::Result<usize>),
    Ended(ExitReason),
}

#[derive(Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

/// Reads what is there, and waits if nothing is; never, if there is no such pipe.
async fn read(pipe: &Option<pipe::Receiver>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some(pipe) = pipe else { return std::future::pending().await };
    loop {
        pipe.readable().await?;
        match pipe.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Gives the program some of its input, and waits until it takes it.
async fn write(pipe: &Option<pipe::Sender>, bytes: &[u8]) -> io::Result<usize> {
    let Some(pipe) = pipe else { return std::future::pending().await };
    loop {
        pipe.writable().await?;
        match pipe.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return written,
        }
    }
}

impl Session {
    async fn happens(&mut self) -> Happened {
        let (out, err) = self.buffer.split_at_mut(CHUNK_BYTES);
        let Exec { stdin, stdout, stderr, exit, .. } = &mut self.exec;
        let listens = self.listening && self.pending.is_empty();
        let gives = !self.pending.is_empty();
        tokio::select! {
            said = self.input.message(), if listens => match said {
                Ok(Some(said)) => Happened::Said(said.message.map(Box::new)),
                // Its caller has said everything, or is gone; then all of this is dropped in a moment.
                Ok(None) | Err(_) => Happened::Said(None),
            },
            took = write(stdin, &self.pending), if gives => Happened::Took(took),
            read = read(stdout, out) => Happened::Wrote(Output::Stdout, read),
            read = read(stderr, err) => Happened::Wrote(Output::Stderr, read),
            reason = exit => Happened::Ended(reason),
        }
    }

    /// What the program wrote, or nothing if it closed that.
    fn wrote(&mut self, output: Output, read: io::Result<usize>) -> Option<Told> {
        let (out, err) = self.buffer.split_at(CHUNK_BYTES);
        let (pipe, bytes) = match output {
            Output::Stdout => (&mut self.exec.stdout, out),
            Output::Stderr => (&mut self.exec.stderr, err),
        };
        match read {
            Ok(count @ 1..) => {
                let bytes = bytes[..count].to_vec();
                Some(match output {
                    Output::Stdout => Told::Stdout(bytes),
                    Output::Stderr => Told::Stderr(bytes),
                })
            }
            // Nobody can read any more of it than this.
            Ok(0) | Err(_) => {
                *pipe = None;
                None
            }
        }
    }

    /// What it wrote before it ended and nobody has read: all of that is in its pipes already. What a child of it that
    /// lives on may write later is not waited for.
    fn left_over(&mut self) -> Option<Told> {
        for output in [Output::Stdout, Output::Stderr] {
            let (out, err) = self.buffer.split_at_mut(CHUNK_BYTES);
            let (pipe, bytes) = match output {
                Output::Stdout => (&self.exec.stdout, out),
                Output::Stderr => (&self.exec.stderr, err),
            };
            let Some(pipe) = pipe else { continue };
            // `try_read` trusts what tokio last heard of the pipe, which may be older than the last of the output.
            let read = rustix::io::read(pipe, bytes).map_err(io::Error::from);
            if let Some(told) = self.wrote(output, read) {
                return Some(told);
            }
        }
        None
    }

    fn said(&mut self, said: Option<Said>) -> Result<(), Error> {
        let refuse =
            |found: &'static str| Err(Error::new(ErrorKind::InvalidArgument, self.verb, found).on(&self.key));
        match said {
            None => {
                self.listening = false;
                self.exec.stdin = None;
            }
            Some(Said::Stdin(bytes)) if bytes.is_empty() => self.exec.stdin = None,
            // It has closed its input, or ended.
            Some(Said::Stdin(_)) if self.exec.stdin.is_none() => {}
            Some(Said::Stdin(bytes)) => self.pending = bytes,
            Some(Said::Begin(_)) => return refuse("a second message says what to run"),
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<wire::ExecResponse, Error>> {
        let told = |message| Some(Ok(wire::ExecResponse { message: Some(message) }));
        if !std::mem::replace(&mut self.told_started, true) {
            return told(Told::Started(wire::ExecStarted { pid: self.exec.pid }));
        }
        if self.detached || self.told_ended {
            return None;
        }
        while self.ended.is_none() {
            match self.happens().await {
                Happened::Ended(reason) => self.ended = Some(reason),
                Happened::Wrote(output, read) => {
                    if let Some(message) = self.wrote(output, read) {
                        return told(message);
                    }
                }
                Happened::Took(Ok(count)) => drop(self.pending.drain(..count)),
                Happened::Took(Err(_closed)) => {
                    self.pending.clear();
                    self.exec.stdin = None;
                }
                Happened::Said(said) => {
                    if let Err(error) = self.said(said.map(|said| *said)) {
                        return Some(Err(error));
                    }
                }
            }
        }
        if let Some(message) = self.left_over() {
            return told(message);
        }
        self.told_ended = true;
        let exit = Exit { reason: self.ended?, at_unix_nanos: unix_nanos() };
        told(Told::Exit(exit.into()))
    }
}

/// What a program that runs tells.
pub(super) fn session(
    verb: &'static str,
    key: SandboxKey,
    exec: Exec,
    detached: bool,
    input: Streaming<wire::ExecRequest>,
) -> impl Stream<Item = Result<wire::ExecResponse, Error>> + Send + 'static {
    let session = Session {
        exec,
        input,
        listening: true,
        pending: Vec::new(),
        detached,
        told_started: false,
        ended: None,
        told_ended: false,
        buffer: vec![0; 2 * CHUNK_BYTES],
        key,
        verb,
    };
    stream::unfold(session, async |mut session| {
        let part = session.next().await?;
        Some((part, session))
    })
}
