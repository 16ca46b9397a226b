//! The command line: the daemon, and the verbs that speak to it.
//!
//! ```text
//! arguments ──▶ serve ──▶ surface::daemon
//!      └──────▶ a verb ──▶ Session ── client ──▶ the daemon
//!                             └────── text or JSON to stdout, errors to stderr, an exit code
//! ```

mod arguments;
mod each;
mod escape;
mod exec;
mod failure;
mod fsck;
mod json;
mod list;
mod logs;
mod one;
mod options;
mod session;
mod watch;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::error::{Error, ErrorKind};
use arguments::{Arguments, Common, Verb};
use escape::{escaped, escaped_lines};
use session::Session;

pub(in crate::surface) use arguments::Serve;
pub(in crate::surface) use failure::Failure;
pub(in crate::surface) use session::{print, print_json};

/// How a command ends after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Arguments { common, verb } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refused) => return misunderstood(&refused),
    };
    let json = common.json;
    let done = match verb {
        Verb::Serve(serve) => crate::surface::daemon::run(*serve, common.socket, json),
        Verb::Completion(completion) => complete(completion.shell).map_err(Failure::from),
        verb => in_time(common, verb),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    if let Some(error) = failure.error() {
        complain(&error, json);
    }
    ExitCode::from(failure.code())
}

/// Says help, or what is wrong with the command line: in JSON too, where that was asked for.
fn misunderstood(refused: &clap::Error) -> ExitCode {
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if refused.use_stderr() && json {
        let text = refused.to_string();
        complain(&Error::new(ErrorKind::InvalidArgument, "", text.trim_end().to_owned()), json);
    } else if refused.use_stderr() && !io::stderr().is_terminal() {
        let _ = writeln!(io::stderr().lock(), "{}", escaped_lines(&refused.to_string()));
    } else {
        // If nobody reads it, that is no fault of ours.
        let _ = refused.print();
    }
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(1))
}

/// Says on stderr what is wrong.
fn complain(error: &Error, json: bool) {
    if !json {
        return say(&format!("{error}{}", retry(error)));
    }
    if let Ok(text) = serde_json::to_string(&json::Refused::of(error)) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

fn retry(error: &Error) -> String {
    error.retry_hint().map_or_else(String::new, |pause| format!(" (try again in {pause:?})"))
}

/// Says something on stderr, in one line. There is nobody to tell if that cannot be written.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "sandkeeper: {}", escaped(text));
}

fn complete(shell: clap_complete::Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "sandkeeper", &mut script);
    io::stdout().lock().write_all(&script)
}

/// Runs a verb until it is done or interrupted.
fn in_time(common: Common, verb: Verb) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Error::new(ErrorKind::Internal, "begin", "there are no threads or descriptors").caused_by(error)
    })?;
    runtime.block_on(async {
        tokio::select! {
            done = perform(common, verb) => done,
            _interrupted = tokio::signal::ctrl_c() => Err(Failure::Said(INTERRUPTED)),
        }
    })
}

async fn perform(common: Common, verb: Verb) -> Result<(), Failure> {
    if matches!(verb, Verb::Version) {
        return fsck::version(common).await;
    }
    let session = Session::open(common).await?;
    match verb {
        Verb::Serve(_) | Verb::Completion(_) | Verb::Version => Ok(()),
        Verb::Create(create) => one::create(&session, &create).await,
        Verb::Run(run) => one::run(&session, &run).await,
        Verb::Start(ids) => each::start(&session, ids.ids).await,
        Verb::Stop(end) => each::stop(&session, end.ids, end.grace).await,
        Verb::Shutdown(shutdown) => each::shutdown(&session, shutdown.which, shutdown.grace).await,
        Verb::Pause(ids) => each::pause(&session, ids.ids).await,
        Verb::Resume(ids) => each::resume(&session, ids.ids).await,
        Verb::Ping(which) => each::ping(&session, which).await,
        Verb::Probe(ids) => each::probe(&session, ids.ids).await,
        Verb::Status(id) => one::status(&session, &id.id).await,
        Verb::Wait(wait) => one::wait(&session, &wait).await,
        Verb::List(which) => list::list(&session, which).await,
        Verb::Watch(what) => watch::watch(&session, &what).await,
        Verb::Exec(what) => exec::exec(&session, what).await,
        Verb::Logs(which) => logs::logs(&session, &which).await,
        Verb::Fsck(what) => fsck::fsck(&session, &what).await,
    }
}
