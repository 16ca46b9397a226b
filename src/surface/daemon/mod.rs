//! The daemon: `sandkeeper serve`.
//!
//! ```text
//! configuration ─▶ descriptors ─▶ journal (locked) ─▶ socket ─▶ linux ─▶ keeper ─▶ served, READY=1
//! SIGTERM ─▶ STOPPING=1 ─▶ calls under way are done, in bounded time ─▶ sandboxes are left to the next daemon
//! ```
//! Callers can connect from the moment the socket is there, and are answered once the keeper is.

mod backend;
mod config;
mod descriptors;
mod log;
mod signals;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::{Error, ErrorKind};
use crate::journal::Journal;
use crate::keeper::{Keeper, KeeperBuilder};
use crate::runtime::linux::LinuxConfig;
use crate::runtime::unix_nanos;
use crate::surface::cli::{Failure, Serve, print, print_json};
use crate::surface::grpc::{self, About, Settings, Socket};
use backend::Backend;
use config::Config;
use descriptors::Room;
use log::Log;
use signals::Signals;

/// Somebody else has the directory or the socket: the exit code of what is busy.
const BUSY: u8 = 5;
/// How long calls under way have to be done.
const DRAINING: Duration = Duration::from_secs(2);
/// How long letting go of everything may take.
const LETTING_GO: Duration = Duration::from_millis(1_500);
/// How long threads of the async runtime may take to end.
const THREADS: Duration = Duration::from_millis(500);
/// How long the daemon takes to end at most, all together.
const ENDING: Duration = Duration::from_millis(4_500);
/// How long ending what is left of the sandboxes may take beyond that.
const CLOSING: Duration = Duration::from_secs(6);
/// How often it is said what a shutdown of all sandboxes waits for.
const PROGRESS: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to end.
pub(in crate::surface) fn run(said: Serve, socket: Option<PathBuf>, json: bool) -> Result<(), Failure> {
    let began = unix_nanos();
    let config = Config::gather(&said, socket)?;
    let filter = log::filter(&config)?;
    if said.check_config {
        return Ok(tell(&config, json)?);
    }
    Backend::check(&config)?;
    let failed = |error| {
        Error::new(ErrorKind::Internal, "begin", "there are no threads or descriptors").caused_by(error)
    };
    let log = log::begin(&config, filter).map_err(failed)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.thread_name("sandkeeper-work").enable_all().build().map_err(failed)?;
    let lived = runtime.block_on(live(config, began, &log));
    runtime.shutdown_timeout(THREADS);
    log.flush();
    lived
}

fn tell(config: &Config, json: bool) -> io::Result<()> {
    if json {
        return print_json(config);
    }
    let text = toml::to_string(config).map_err(io::Error::other)?;
    print("# the configuration is right; it comes to:")?;
    print(text.trim_end())
}

/// What has to be there before anybody can be served.
struct Parts {
    socket: Socket,
    keeper: Keeper,
    backend: Backend,
    room: Room,
}

async fn live(config: Config, began: i64, log: &Log) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let parts = tokio::select! {
        parts = come_up(&config) => parts?,
        signal = signals.first() => {
            tracing::info!(signal, "the daemon ends before it was up");
            return Ok(());
        }
    };
    let Parts { socket, keeper, backend, room } = parts;
    let about = About {
        started_at_unix_nanos: began,
        state_dir: config.state_dir.display().to_string(),
        capacity: most_sandboxes(&config, room) as u64,
        findings: findings(&backend, room),
    };
    let (known, recovering) = (keeper.len(), keeper.recovering());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.socket.display(),
        state_dir = %config.state_dir.display(),
        capacity = about.capacity,
        known,
        recovering,
        "the daemon is up"
    );
    let status = format!("up; {known} sandboxes taken over, room for {}", about.capacity);
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    let settings = Settings { max_connections: room.connections, drain: DRAINING };
    let end = async {
        let signal = signals.first().await;
        tracing::info!(signal, shutdown_sandboxes = config.shutdown_sandboxes, "the daemon ends");
        notify(&[NotifyState::Stopping]);
        tokio::spawn(signals.exit_at_the_next(log.clone()));
        if config.shutdown_sandboxes {
            shut_down(&keeper, config.shutdown_grace).await;
        }
        signals::exit_within(limit(&config, ENDING), log.clone());
    };
    grpc::serve(socket, keeper.clone(), about, settings, end).await;
    let let_go = async {
        keeper.leave().await;
        // Where there is nothing to leave, nothing stays to wait for the next daemon either.
        let nothing_left = keeper.is_empty() && backend.is_empty();
        backend.let_go(config.shutdown_sandboxes || nothing_left).await;
    };
    let limit = limit(&config, LETTING_GO);
    if tokio::time::timeout(limit, let_go).await.is_err() {
        tracing::warn!(?limit, "the daemon ends with something still under way");
    }
    Ok(())
}

/// What was found out about the machine and about what sandboxes lack on it; all of it is logged, too.
fn findings(backend: &Backend, room: Room) -> BTreeMap<String, String> {
    let found = backend.runtime().capabilities().findings;
    for (name, found) in &found {
        tracing::info!(name, found, "found out");
    }
    found.into_iter().chain([("descriptors".to_owned(), room.descriptors.to_string())]).collect()
}

/// How long something at the end may take, which takes longer where sandboxes end as well.
fn limit(config: &Config, usual: Duration) -> Duration {
    if config.shutdown_sandboxes { usual + CLOSING } else { usual }
}

/// Opens everything, beside whatever else the daemon hears: a lock or a disk may be waited for.
async fn come_up(config: &Config) -> Result<Parts, Failure> {
    let room = room(config);
    let state_dir = config.state_dir.clone();
    let journal = blocking(move || Journal::open(state_dir)).await;
    let journal = journal.map_err(|error| busy(error, ErrorKind::FailedPrecondition))?;
    open_to_group(config)?;
    let socket = Socket::bind(&config.socket, config.socket_group);
    let socket = socket.await.map_err(|error| busy(error, ErrorKind::AlreadyExists))?;
    let for_backend = config.clone();
    let backend = blocking(move || Backend::open(&for_backend)).await?;
    let keeper = keeper(config, room, &backend, journal)?;
    Ok(Parts { socket, keeper, backend, room })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "begin", "a part of the daemon failed").caused_by(error))
    })
}

/// An error of `kind` says that another daemon is there already.
fn busy(error: Error, kind: ErrorKind) -> Failure {
    if error.kind() == kind { Failure::Coded(error, BUSY) } else { Failure::Error(error) }
}

/// Ends all sandboxes, and says how far it is.
async fn shut_down(keeper: &Keeper, grace: Option<Duration>) {
    let mut progress = tokio::time::interval(PROGRESS);
    let mut close = std::pin::pin!(keeper.close(grace));
    let left = loop {
        tokio::select! {
            left = &mut close => break left,
            _second = progress.tick() => {
                let left = keeper.len();
                tracing::info!(left, "shutting all sandboxes down");
                notify(&[NotifyState::Status(&format!("shutting down; {left} sandboxes left"))]);
            }
        }
    };
    for (key, error) in left {
        tracing::warn!(sandbox = %key, %error, "a sandbox is not shut down");
    }
}

fn starts(config: &Config) -> usize {
    config.concurrent_starts.unwrap_or_else(KeeperBuilder::default_starts)
}

fn room(config: &Config) -> Room {
    let networks = config.ready_networks.unwrap_or(LinuxConfig::default().ready_networks);
    let room = descriptors::room(descriptors::raise(), starts(config), networks);
    tracing::info!(
        descriptors = room.descriptors,
        sandboxes = room.sandboxes,
        connections = room.connections,
        "what the limit on descriptors allows"
    );
    room
}

fn most_sandboxes(config: &Config, room: Room) -> usize {
    config.max_sandboxes.unwrap_or(usize::MAX).min(room.sandboxes)
}

fn keeper(config: &Config, room: Room, backend: &Backend, journal: Journal) -> Result<Keeper, Error> {
    let mut builder = Keeper::builder()
        .runtime(backend.name(), backend.runtime())
        .journal(journal)
        .max_sandboxes(most_sandboxes(config, room))
        .concurrent_starts(starts(config))
        .operation_deadlines(config.deadlines.clone());
    if let Some(records) = config.stopped_records {
        builder = builder.stopped_records(records);
    }
    builder.build()
}

/// Lets the group pass through the state directory to the socket in it. What else is there stays its owner's.
fn open_to_group(config: &Config) -> Result<(), Error> {
    let Some(group) = config.socket_group.filter(|_| config.socket.parent() == Some(&config.state_dir))
    else {
        return Ok(());
    };
    let failed = |error: io::Error| {
        let tried = format!("open {} to group {group}", config.state_dir.display());
        Error::new(ErrorKind::PermissionDenied, tried, "the system refuses").caused_by(error)
    };
    std::os::unix::fs::chown(&config.state_dir, None, Some(group)).map_err(failed)?;
    let mode = std::fs::metadata(&config.state_dir).map_err(failed)?.permissions().mode();
    std::fs::set_permissions(&config.state_dir, PermissionsExt::from_mode(mode | 0o010)).map_err(failed)
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
