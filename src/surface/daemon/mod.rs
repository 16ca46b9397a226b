//! The daemon: `sandkeeper serve`.
//!
//! ```text
//! configuration ─▶ descriptors ─▶ journal (locked) ─▶ socket ─▶ linux ─▶ keeper ─▶ served, READY=1
//! SIGTERM ─▶ STOPPING=1 ─▶ calls under way are done, in bounded time ─▶ sandboxes are left to the next daemon
//! ```
//! Callers can connect from the moment the socket is there, and are answered once the keeper is.

mod config;
mod descriptors;
mod signals;

use std::io::{self, IsTerminal as _};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, ErrorKind};
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::runtime::linux::{LinuxConfig, LinuxRuntime};
use crate::runtime::unix_nanos;
use crate::surface::cli::{Failure, Serve, print, print_json};
use crate::surface::grpc::{self, About, Settings, Socket};
use config::{Config, LogFormat};
use descriptors::Room;
use signals::Signals;

/// Somebody else has the directory or the socket: the exit code of what is busy.
const BUSY: u8 = 5;
/// How long letting go of everything may take.
const LETTING_GO: Duration = Duration::from_secs(10);
/// How long ending everything may take beyond what the sandboxes' graces are.
const THREADS: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to end.
pub(in crate::surface) fn run(said: Serve, socket: Option<PathBuf>, json: bool) -> Result<(), Failure> {
    let began = unix_nanos();
    let config = Config::gather(&said, socket)?;
    let filter = filter(&config)?;
    if said.check_config {
        return Ok(tell(&config, json)?);
    }
    log_to_stderr(&config, filter);
    LinuxRuntime::check_machine()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Error::new(ErrorKind::Internal, "begin", "there are no threads or descriptors").caused_by(error)
    })?;
    let lived = runtime.block_on(live(config, began));
    runtime.shutdown_timeout(THREADS);
    lived
}

fn tell(config: &Config, json: bool) -> io::Result<()> {
    if json {
        return print_json(config);
    }
    print("the configuration is right; it comes to:")?;
    print(&serde_json::to_string_pretty(config)?)
}

fn filter(config: &Config) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(&config.log_level).map_err(|error| {
        let found = format!("log_level {:?} is no filter", config.log_level);
        Error::new(ErrorKind::InvalidArgument, "begin with this configuration", found)
            .caused_by(error)
            .remedy("write info, debug, or info,sandkeeper::journal=debug")
    })
}

fn log_to_stderr(config: &Config, filter: EnvFilter) {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
}

async fn live(config: Config, began: i64) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let room = room(&config);
    let journal =
        Journal::open(&config.state_dir).map_err(|error| busy(error, ErrorKind::FailedPrecondition))?;
    open_to_group(&config)?;
    let socket = Socket::bind(&config.socket, config.socket_group);
    let socket = socket.await.map_err(|error| busy(error, ErrorKind::AlreadyExists))?;
    let linux = LinuxRuntime::new(linux_config(&config))?;
    let keeper = keeper(&config, room, Arc::clone(&linux), journal)?;
    let about = About {
        started_at_unix_nanos: began,
        state_dir: config.state_dir.display().to_string(),
        capacity: most_sandboxes(&config, room) as u64,
        findings: [("descriptors".to_owned(), room.descriptors.to_string())].into(),
    };
    let settings = Settings { max_connections: room.connections, ..Settings::default() };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.socket.display(),
        state_dir = %config.state_dir.display(),
        capacity = about.capacity,
        known = keeper.len(),
        recovering = keeper.recovering(),
        "the daemon is up"
    );
    notify(NotifyState::Ready);
    let end = async {
        let signal = signals.first().await;
        tracing::info!(signal, shutdown_sandboxes = config.shutdown_sandboxes, "the daemon ends");
        notify(NotifyState::Stopping);
        tokio::spawn(signals.exit_at_the_next());
        if config.shutdown_sandboxes {
            for (key, error) in keeper.close(None).await {
                tracing::warn!(sandbox = %key, %error, "a sandbox is not shut down");
            }
        }
    };
    grpc::serve(socket, keeper.clone(), about, settings, end).await;
    let let_go = async {
        keeper.leave().await;
        if config.shutdown_sandboxes { linux.close().await } else { linux.leave().await }
    };
    if tokio::time::timeout(LETTING_GO, let_go).await.is_err() {
        tracing::warn!(limit = ?LETTING_GO, "the daemon ends with something still under way");
    }
    Ok(())
}

/// An error of `kind` says that another daemon is there already.
fn busy(error: Error, kind: ErrorKind) -> Failure {
    if error.kind() == kind { Failure::Coded(error, BUSY) } else { Failure::Error(error) }
}

fn starts(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.concurrent_starts.unwrap_or(4 * cores)
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

fn linux_config(config: &Config) -> LinuxConfig {
    let default = LinuxConfig::default();
    LinuxConfig {
        state_dir: Some(config.state_dir.clone()),
        log_dir: Some(config.log_dir.clone()),
        id_start: config.id_start.unwrap_or(default.id_start),
        id_blocks: config.id_blocks.unwrap_or(default.id_blocks),
        zygotes: config.zygotes.unwrap_or(default.zygotes),
        ready_networks: config.ready_networks.unwrap_or(default.ready_networks),
        // A service manager has given the daemon a cgroup of its own (`Delegate=yes`), which holds nothing else.
        ..default
    }
}

fn keeper(config: &Config, room: Room, linux: Arc<LinuxRuntime>, journal: Journal) -> Result<Keeper, Error> {
    let mut builder = Keeper::builder()
        .runtime("linux", linux)
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
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
