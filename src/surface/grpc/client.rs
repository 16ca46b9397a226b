//! A client of the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use super::door::error;
use super::{CONNECTION_WINDOW, MESSAGE_BYTES};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::spec::{ProcessSpec, SandboxSpec};
use crate::wire;
use crate::wire::generated::keeper_client::KeeperClient;
use crate::wire::generated::*;

/// Longer than any message of an error, percent-encoded.
const HEADER_BYTES: u32 = 64 * 1_024;

/// Speaks to a daemon. Cloning gives another handle on the same connection, which is made anew if it breaks.
///
/// Errors are the daemon's own, word for word; `Unavailable` if it cannot be reached.
#[derive(Clone)]
pub struct Client {
    calls: KeeperClient<Channel>,
    within: Option<Duration>,
}

impl Client {
    /// Connects to the daemon that listens on the socket at `path`.
    ///
    /// # Errors
    /// - `Unavailable`: nobody listens there.
    /// - `PermissionDenied`: its socket refuses.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let socket = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| dial(socket.clone()));
        let channel = Endpoint::from_static("http://sandkeeper")
            .http2_max_header_list_size(HEADER_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(path, &error))?;
        // What is too large to send is refused by the daemon, which says so better.
        let calls = KeeperClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(Self { calls, within: None })
    }

    /// The same client, whose calls end within this long.
    pub fn within(&self, limit: Duration) -> Self {
        Self { calls: self.calls.clone(), within: Some(limit) }
    }

    /// The generated client, for what this one does not say.
    pub fn raw(&self) -> KeeperClient<Channel> {
        self.calls.clone()
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(limit) = self.within {
            request.set_timeout(limit);
        }
        request
    }
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn unreachable(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let denied = deepest
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    let (kind, remedy) = if denied {
        (ErrorKind::PermissionDenied, "ask as the daemon's own user, as root, or as a member of its group")
    } else {
        (ErrorKind::Unavailable, "start it with `sandkeeper serve`, or name its socket")
    };
    Error::new(kind, format!("reach the daemon at {}", path.display()), deepest.to_string()).remedy(remedy)
}

fn answered<M>(answer: Result<Response<M>, Status>) -> Result<M, Error> {
    answer.map(Response::into_inner).map_err(|status| error(&status))
}

fn incomplete(what: &str) -> Error {
    Error::from_remote(ErrorKind::Internal, format!("the daemon's answer has no {what}"), None)
}

/// The verbs. Each says what [`Controller`](crate::Controller) and [`Keeper`](crate::Keeper) say of it.
impl Client {
    /// Records what an ID is to be.
    ///
    /// # Errors
    /// Those of [`Keeper::define`](crate::Keeper::define).
    pub async fn define(&mut self, key: &SandboxKey, spec: &SandboxSpec) -> Result<(), Error> {
        let request = self.request(DefineRequest { sandbox: Some(key.into()), spec: Some(spec.into()) });
        answered(self.calls.define(request).await).map(drop)
    }

    /// Prepares what is defined, or what `spec` says.
    ///
    /// # Errors
    /// Those of [`Keeper::prepare`](crate::Keeper::prepare).
    pub async fn create(&mut self, key: &SandboxKey, spec: Option<&SandboxSpec>) -> Result<(), Error> {
        let request = self.request(CreateRequest { sandbox: Some(key.into()), spec: spec.map(Into::into) });
        answered(self.calls.create(request).await).map(drop)
    }

    /// Starts what is defined, or what `spec` says. Returns when its leader runs.
    ///
    /// # Errors
    /// Those of [`Keeper::run`](crate::Keeper::run).
    pub async fn start(
        &mut self,
        key: &SandboxKey,
        spec: Option<&SandboxSpec>,
    ) -> Result<StartResponse, Error> {
        let request = self.request(StartRequest { sandbox: Some(key.into()), spec: spec.map(Into::into) });
        answered(self.calls.start(request).await)
    }

    /// Ends the instance and keeps its record.
    ///
    /// # Errors
    /// Those of [`Controller::stop`](crate::Controller::stop).
    pub async fn stop(&mut self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error> {
        let grace = grace.map(wire::duration);
        let request = self.request(StopRequest { sandbox: Some(key.into()), grace });
        answered(self.calls.stop(request).await).map(drop)
    }

    /// Ends the instance and forgets it.
    ///
    /// # Errors
    /// Those of [`Controller::shutdown`](crate::Controller::shutdown).
    pub async fn shutdown(&mut self, key: &SandboxKey, grace: Option<Duration>) -> Result<(), Error> {
        let grace = grace.map(wire::duration);
        let request = self.request(ShutdownRequest { sandbox: Some(key.into()), grace });
        answered(self.calls.shutdown(request).await).map(drop)
    }

    /// Freezes every process.
    ///
    /// # Errors
    /// Those of [`Controller::pause`](crate::Controller::pause).
    pub async fn pause(&mut self, key: &SandboxKey) -> Result<(), Error> {
        let request = self.request(PauseRequest { sandbox: Some(key.into()) });
        answered(self.calls.pause(request).await).map(drop)
    }

    /// Thaws.
    ///
    /// # Errors
    /// Those of [`Controller::resume`](crate::Controller::resume).
    pub async fn resume(&mut self, key: &SandboxKey) -> Result<(), Error> {
        let request = self.request(ResumeRequest { sandbox: Some(key.into()) });
        answered(self.calls.resume(request).await).map(drop)
    }

    /// Says whether an instance is there.
    ///
    /// # Errors
    /// Those of [`Controller::ping`](crate::Controller::ping).
    pub async fn ping(&mut self, key: &SandboxKey) -> Result<PingResponse, Error> {
        let request = self.request(PingRequest { sandbox: Some(key.into()) });
        answered(self.calls.ping(request).await)
    }

    /// Asks the sandbox itself how it is.
    ///
    /// # Errors
    /// Those of [`Keeper::probe`](crate::Keeper::probe).
    pub async fn probe(&mut self, key: &SandboxKey) -> Result<ProbeResponse, Error> {
        let request = self.request(ProbeRequest { sandbox: Some(key.into()) });
        answered(self.calls.probe(request).await)
    }

    /// Says everything that is known of it.
    ///
    /// # Errors
    /// Those of [`Controller::status`](crate::Controller::status).
    pub async fn status(&mut self, key: &SandboxKey) -> Result<SandboxStatus, Error> {
        let request = self.request(StatusRequest { sandbox: Some(key.into()) });
        answered(self.calls.status(request).await)?.status.ok_or_else(|| incomplete("status"))
    }

    /// Waits for the end of the current life.
    ///
    /// # Errors
    /// Those of [`Controller::wait`](crate::Controller::wait).
    pub async fn wait(&mut self, key: &SandboxKey) -> Result<ExitStatus, Error> {
        let request = self.request(WaitRequest { sandbox: Some(key.into()) });
        answered(self.calls.wait(request).await)?.exit.ok_or_else(|| incomplete("exit status"))
    }

    /// Lists all that `request` selects, however many pages that takes; its `page_size` and `page_token` are not looked at.
    ///
    /// # Errors
    /// `InvalidArgument`: it names a namespace or phase that cannot be.
    pub async fn list(&mut self, request: ListRequest) -> Result<Vec<SandboxStatus>, Error> {
        let mut all = Vec::new();
        // The largest pages there are: each is a look over everything.
        let mut request = ListRequest { page_size: u32::MAX, page_token: String::new(), ..request };
        loop {
            let page = answered(self.calls.list(self.request(request.clone())).await)?;
            all.extend(page.sandboxes);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Counts all sandboxes by phase, and names those with a mark.
    ///
    /// # Errors
    /// `Unavailable`: the daemon cannot be reached.
    pub async fn sweep(&mut self) -> Result<SweepResponse, Error> {
        let request = self.request(SweepRequest {});
        answered(self.calls.sweep(request).await)
    }

    /// Watches every change of phase: from the event `next_sequence` of `epoch` on, or after a snapshot if that is not kept
    /// any more or both are 0.
    ///
    /// # Errors
    /// `ResourceExhausted`: there are too many watches.
    pub async fn watch(&mut self, epoch: u64, next_sequence: u64) -> Result<Watching<WatchResponse>, Error> {
        let request = self.request(WatchRequest { epoch, next_sequence });
        answered(self.calls.watch(request).await).map(Watching)
    }

    /// Runs a program inside a sandbox. Dropping what it gives kills the program, unless it is detached.
    ///
    /// # Errors
    /// Those of [`Keeper::exec`](crate::Keeper::exec).
    pub async fn exec(
        &mut self,
        key: &SandboxKey,
        process: &ProcessSpec,
        detached: bool,
        input: Option<ExecInput>,
    ) -> Result<ExecOutput, Error> {
        let begin = ExecBegin {
            sandbox: Some(key.into()),
            process: Some(process.into()),
            stdin: input.is_some(),
            detached,
        };
        let begin = ExecRequest { message: Some(exec_request::Message::Begin(begin)) };
        let input = input.unwrap_or_else(|| Box::pin(futures_util::stream::empty()));
        let stdin = input.map(|bytes| ExecRequest { message: Some(exec_request::Message::Stdin(bytes)) });
        let said = futures_util::stream::once(std::future::ready(begin)).chain(stdin);
        let request = self.request(said);
        answered(self.calls.exec(request).await).map(Watching)
    }

    /// Reads what a sandbox's main process has written: the last `tail_lines` lines or all that is kept, and with `follow` also
    /// what it writes from then on, until its life ends.
    ///
    /// # Errors
    /// Those of [`Keeper::logs`](crate::Keeper::logs).
    pub async fn logs(
        &mut self,
        key: &SandboxKey,
        follow: bool,
        tail_lines: Option<u64>,
    ) -> Result<Watching<LogsResponse>, Error> {
        let request = self.request(LogsRequest { sandbox: Some(key.into()), follow, tail_lines });
        answered(self.calls.logs(request).await).map(Watching)
    }

    /// Says what the sandbox's runtime runs on.
    ///
    /// # Errors
    /// `NotFound`: nobody has this name.
    pub async fn platform(&mut self, key: &SandboxKey) -> Result<PlatformResponse, Error> {
        let request = self.request(PlatformRequest { sandbox: Some(key.into()) });
        answered(self.calls.platform(request).await)
    }

    /// Says what the sandbox uses.
    ///
    /// # Errors
    /// Those of [`Controller::metrics`](crate::Controller::metrics).
    pub async fn metrics(&mut self, key: &SandboxKey) -> Result<prost_types::Any, Error> {
        let request = self.request(MetricsRequest { sandbox: Some(key.into()) });
        answered(self.calls.metrics(request).await)?.metrics.ok_or_else(|| incomplete("metrics"))
    }

    /// Changes what the sandbox may use.
    ///
    /// # Errors
    /// Those of [`Controller::update`](crate::Controller::update).
    pub async fn update(&mut self, key: &SandboxKey, resources: prost_types::Any) -> Result<(), Error> {
        let request = UpdateRequest { sandbox: Some(key.into()), resources: Some(resources) };
        answered(self.calls.update(self.request(request)).await).map(drop)
    }

    /// Says which daemon this is, and how it is doing.
    ///
    /// # Errors
    /// `Unavailable`: the daemon cannot be reached.
    pub async fn version(&mut self) -> Result<VersionResponse, Error> {
        let request = self.request(VersionRequest {});
        answered(self.calls.version(request).await)
    }

    /// Lists what exists without a record.
    ///
    /// # Errors
    /// `Unavailable`: the daemon cannot be reached.
    pub async fn orphans(&mut self) -> Result<OrphansResponse, Error> {
        let request = self.request(OrphansRequest {});
        answered(self.calls.orphans(request).await)
    }

    /// Ends and removes all that exists without a record.
    ///
    /// # Errors
    /// `Unavailable`: the daemon cannot be reached.
    pub async fn end_orphans(&mut self) -> Result<EndOrphansResponse, Error> {
        let request = self.request(EndOrphansRequest {});
        answered(self.calls.end_orphans(request).await)
    }
}

/// What a program is given to read, until this ends.
pub type ExecInput = std::pin::Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>;

/// What a program tells: that it runs, its output, and how it ended.
pub type ExecOutput = Watching<ExecResponse>;

/// An answer in parts. Dropping it ends the call.
pub struct Watching<M>(Streaming<M>);

impl<M> Watching<M> {
    /// The next part; nothing if there is none any more.
    ///
    /// # Errors
    /// What the daemon says, or `Unavailable` if it is gone.
    pub async fn next(&mut self) -> Result<Option<M>, Error> {
        self.0.message().await.map_err(|status| error(&status))
    }
}
