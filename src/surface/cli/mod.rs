//! The command line: the daemon, and the verbs that speak to it.
//!
//! ```text
//! arguments ──▶ serve ──▶ surface::daemon
//!      └──────▶ a verb ──▶ Session ── client ──▶ the daemon
//!                             └────── text or JSON to stdout, errors to stderr, an exit code
//! ```

mod arguments;
mod each;
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

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::error::{Error, ErrorKind};
use arguments::{Arguments, Common, Verb};
use session::Session;

pub(in crate::surface) use arguments::Serve;
pub(in crate::surface) use failure::Failure;
pub(in crate::surface) use session::{print, print_json};

/// How a command ends after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Arguments { common, verb } = Arguments::parse();
    let json = common.json;
    let done = match verb {
        Verb::Serve(serve) => crate::surface::daemon::run(*serve, common.socket, json),
        Verb::Completion(completion) => complete(completion.shell).map_err(Failure::from),
        verb => in_time(common, verb),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    if json && let Failure::Error(error) | Failure::Coded(error, _) = &failure {
        // If nobody reads it, it is on stderr all the same.
        let _ = session::print_json(&session::Refused::of(error));
    }
    if let Some(text) = failure.text() {
        say(&text);
    }
    ExitCode::from(failure.code())
}

/// Says something on stderr. There is nobody to tell if that cannot be written.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "sandkeeper: {text}");
}

fn complete(shell: clap_complete::Shell) -> std::io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "sandkeeper", &mut script);
    std::io::stdout().lock().write_all(&script)
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
