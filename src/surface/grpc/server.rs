//! Serves a keeper over a unix socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, Context, Poll, StdError};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::door::{Ending, status};
use super::service::Service;
use super::{CONNECTION_WINDOW, MAX_STREAMS, MESSAGE_BYTES, SERVICE_NAME, Socket, peer};
use crate::error::{Error, ErrorKind};
use crate::keeper::Keeper;
use crate::wire::generated::keeper_server::KeeperServer;

/// A peer that has not answered for this long is let go. Generous: one that was only stopped for a while finds its calls
/// open when it goes on.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(300);

/// How many that are refused are told so, besides those that are served; others find their connection closed.
const MOST_REFUSED: usize = 64;
/// How long one that is refused may stay.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How many descriptors are kept for connections, should others have used up the rest.
const RESERVED_DESCRIPTORS: usize = 8;
/// How long nobody is let in when there is no descriptor left at all.
const PAUSE_WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(100);

/// What the daemon says of itself, besides what its keeper knows.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// When it was started, in nanoseconds since the Unix epoch.
    pub started_at_unix_nanos: i64,
    /// Its state directory; empty if it has none.
    pub state_dir: String,
    /// How many sandboxes its descriptors allow; 0 if that is unknown.
    pub capacity: u64,
    /// What was found out about the machine, by name.
    pub findings: BTreeMap<String, String>,
}

/// How it serves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many connections there may be.
    pub max_connections: usize,
    /// How long calls under way have to be done once the daemon ends.
    pub drain: Duration,
}

impl Default for Settings {
    /// 1,024 connections, and 5 seconds.
    fn default() -> Self {
        Self { max_connections: 1_024, drain: Duration::from_secs(5) }
    }
}

/// Serves `keeper` on `socket` until `end` resolves.
///
/// Then nobody is let in any more, open waits, watches, logs and programs end with `Unavailable`, and other calls have
/// [`Settings::drain`] to be done. Returns when no connection is left; the socket's file is gone by then. Neither the keeper nor
/// a sandbox is ended.
///
/// Needs a tokio runtime with I/O and time.
pub async fn serve(
    socket: Socket,
    keeper: Keeper,
    about: About,
    settings: Settings,
    end: impl Future<Output = ()>,
) {
    let (tell, told) = watch::channel(false);
    let ending = Ending(told);
    let reporter = HealthReporter::new();
    let _serving = reporter.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
    let service = Service::new(keeper, about, ending.clone());
    let keeper = KeeperServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let mut house = House {
        front: Front::Open { keeper, health },
        ending,
        drain: settings.drain,
        served: Arc::new(Semaphore::new(settings.max_connections)),
        most_served: settings.max_connections,
        refused: Arc::new(Semaphore::new(MOST_REFUSED)),
        reserve: Reserve::default(),
        connections: JoinSet::new(),
    };
    house.let_in(&socket, end).await;
    drop(socket);
    tell.send_replace(true);
    close_health(reporter).await;
    while house.connections.join_next().await.is_some() {}
}

/// Whoever watches the daemon's health is told, and has nothing more to watch.
async fn close_health(mut reporter: HealthReporter) {
    for name in [SERVICE_NAME, ""] {
        reporter.set_service_status(name, ServingStatus::NotServing).await;
        reporter.clear_service_status(name).await;
    }
}

struct House {
    front: Front,
    ending: Ending,
    drain: Duration,
    served: Arc<Semaphore>,
    most_served: usize,
    refused: Arc<Semaphore>,
    reserve: Reserve,
    connections: JoinSet<()>,
}

impl House {
    /// Lets callers in until `end`.
    async fn let_in(&mut self, socket: &Socket, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        self.reserve.fill();
        loop {
            let accepted = tokio::select! {
                () = &mut end => return,
                Some(_ended) = self.connections.join_next() => {
                    self.reserve.fill();
                    continue;
                }
                accepted = socket.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _address)) => self.receive(stream, socket.group),
                Err(error) => {
                    let exhausted = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
                    let exhausted =
                        exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                    if exhausted && self.reserve.release() {
                        tracing::warn!(%error, "a caller is let in with a descriptor that was kept for that");
                        continue;
                    }
                    tracing::warn!(%error, "cannot let a caller in; it has to wait");
                    tokio::select! {
                        () = &mut end => return,
                        () = tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS) => self.reserve.fill(),
                    }
                }
            }
        }
    }

    fn receive(&mut self, stream: UnixStream, group: Option<u32>) {
        let admitted = peer::admit(&stream, group).and_then(|()| {
            Arc::clone(&self.served).try_acquire_owned().map_err(|_full| {
                let found = format!("it has {} connections, its limit", self.most_served);
                Error::new(ErrorKind::ResourceExhausted, "speak to the daemon", found)
                    .remedy("try again later")
            })
        });
        let (front, permit, stay) = match admitted {
            Ok(permit) => (self.front.clone(), permit, None),
            Err(error) => {
                tracing::warn!(%error, "a caller is refused");
                let Ok(permit) = Arc::clone(&self.refused).try_acquire_owned() else { return };
                (Front::Closed(error), permit, Some(REFUSED_FOR))
            }
        };
        let (ending, drain) = (self.ending.clone(), self.drain);
        self.connections.spawn(converse(stream, front, permit, stay, ending, drain));
    }
}

/// Serves one connection to its end.
async fn converse(
    stream: UnixStream,
    front: Front,
    _permit: OwnedSemaphorePermit,
    stay: Option<Duration>,
    mut ending: Ending,
    drain: Duration,
) {
    let mut protocol = auto::Builder::new(TokioExecutor::new()).http2_only();
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Callers that give up before their call was even looked at are no attack here.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let mut connection =
        std::pin::pin!(protocol.serve_connection(TokioIo::new(stream), TowerToHyperService::new(front)));
    let stayed = async {
        match stay {
            Some(stay) => tokio::time::sleep(stay).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = &mut connection => return ended(end),
        () = ending.begun() => {}
        () = stayed => return,
    }
    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(drain, connection).await {
        Ok(end) => ended(end),
        Err(_elapsed) => tracing::warn!(?drain, "calls under way are cut off, for the daemon ends"),
    }
}

fn ended(end: Result<(), StdError>) {
    if let Err(error) = end {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Descriptors that are kept so that a caller can be let in when all others are used up: somebody has to be able to ask for
/// fewer sandboxes.
#[derive(Default)]
struct Reserve(Vec<File>);

impl Reserve {
    fn fill(&mut self) {
        while self.0.len() < RESERVED_DESCRIPTORS {
            let Ok(file) = File::open("/dev/null") else { return };
            self.0.push(file);
        }
    }

    /// Gives one up, if there is one.
    fn release(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

/// Where the calls of a connection go.
#[derive(Clone)]
enum Front {
    Open { keeper: KeeperServer<Service>, health: HealthServer<HealthService> },
    Closed(Error),
}

impl<B> tower::Service<Request<B>> for Front
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self {
            Front::Open { health, .. } if request.uri().path().starts_with("/grpc.health.v1.Health/") => {
                health.call(request)
            }
            Front::Open { keeper, .. } => keeper.call(request),
            Front::Closed(error) => {
                let refusal = status(error).into_http();
                Box::pin(async move { Ok(refusal) })
            }
        }
    }
}
