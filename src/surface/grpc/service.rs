//! The service: each verb of `keeper.proto` as a call of the keeper's.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Call, Ending, answer, daemon_ends, status};
use super::list::take_part;
use super::server::About;
use super::{PART_BYTES, Parts, exec, list, logs, watch};
use crate::controller::Controller as _;
use crate::error::{Error, ErrorKind};
use crate::keeper::Keeper;
use crate::model::Phase;
use crate::runtime::Survivor;
use crate::wire;
use crate::wire::generated::keeper_server;
use crate::wire::generated::*;

/// How many watches there may be at a time: one that does not read may hold a whole snapshot.
const MOST_WATCHES: usize = 4_096;

/// Serves a keeper.
pub(super) struct Service {
    keeper: Keeper,
    about: About,
    ending: Ending,
    watches: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(keeper: Keeper, about: About, ending: Ending) -> Self {
        Self { keeper, about, ending, watches: Arc::new(Semaphore::new(MOST_WATCHES)) }
    }

    async fn list_page(&self, request: Request<ListRequest>) -> Result<ListResponse, Error> {
        let call = Call::new("list sandboxes", request.metadata())?;
        let (filter, size) = list::filter(&call, request.into_inner())?;
        let keeper = self.keeper.clone();
        // A look over all of very many takes its time, and others have calls on this thread.
        let page = tokio::task::spawn_blocking(move || list::page(&keeper, &filter, size));
        page.await
            .map_err(|panic| Error::new(ErrorKind::Internal, call.verb, "the list failed").caused_by(panic))
    }

    fn watching(&self, request: Request<WatchRequest>) -> Result<Parts<WatchResponse>, Error> {
        let call = Call::new("watch sandboxes", request.metadata())?;
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_full| {
            let found = format!("there are {MOST_WATCHES} watches already");
            Error::new(ErrorKind::ResourceExhausted, call.verb, found).remedy("end some first")
        })?;
        let watch = watch::watch(&self.keeper, request.into_inner(), permit);
        Ok(call.parts(self.ending.clone(), watch))
    }

    async fn program(&self, request: Request<Streaming<ExecRequest>>) -> Result<Parts<ExecResponse>, Error> {
        let call = Call::new("run a program in", request.metadata())?;
        let mut input = request.into_inner();
        let begun = async {
            let (key, program) = exec::begin(&call, &mut input).await?;
            let exec = call.keeper(&self.keeper).exec(&key, &program).await?;
            Ok((key, exec, program.detached))
        };
        let (key, exec, detached) = tokio::select! {
            begun = begun => begun?,
            error = call.cut_short(self.ending.clone()) => return Err(error),
        };
        let verb = call.verb;
        Ok(call.parts(self.ending.clone(), exec::session(verb, key, exec, detached, input)))
    }

    async fn log(&self, request: Request<LogsRequest>) -> Result<Parts<LogsResponse>, Error> {
        let call = Call::new("read the log of", request.metadata())?;
        let mut request = request.into_inner();
        let key = call.key(request.sandbox.take())?;
        // The keeper's deadline is for each look; the call's own is for all of them.
        let looks = logs::logs(self.keeper.clone(), key, &request);
        let log = tokio::select! {
            log = looks => log?,
            error = call.cut_short(self.ending.clone()) => return Err(error.on(&key)),
        };
        Ok(call.parts(self.ending.clone(), log))
    }
}

async fn ended_orphans(keeper: Keeper) -> EndOrphansResponse {
    let (ended, left) = keeper.end_orphans().await;
    let total_left = left.len() as u64;
    let told = |(survivor, error): (Survivor, Error)| format!("{}: {error}", survivor.description);
    let mut left = left.into_iter().map(told).peekable();
    let left = take_part(&mut left, usize::MAX, PART_BYTES);
    EndOrphansResponse { ended: ended as u64, left, total_left }
}

/// What a call comes to, once its deadline and its sandbox are known.
macro_rules! verb {
    ($self:ident, $request:ident, $verb:literal, |$call:ident, $keeper:ident, $key:ident, $body:ident| $answer:expr) => {
        answer(
            async {
                let $call = Call::new($verb, $request.metadata())?;
                let $keeper = $call.keeper(&$self.keeper);
                #[allow(unused_mut)]
                let mut $body = $request.into_inner();
                let $key = $call.key($body.sandbox.take())?;
                $answer
            }
            .await,
        )
    };
}

#[tonic::async_trait]
impl keeper_server::Keeper for Service {
    async fn define(&self, request: Request<DefineRequest>) -> Result<Response<DefineResponse>, Status> {
        verb!(self, request, "define", |call, keeper, key, body| {
            keeper.define(&key, call.spec(&key, body.spec)?).await?;
            Ok(DefineResponse {})
        })
    }

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        verb!(self, request, "create", |call, keeper, key, body| {
            match body.spec {
                None => keeper.create(&key).await?,
                spec => keeper.prepare(&key, call.spec(&key, spec)?).await?,
            }
            Ok(CreateResponse {})
        })
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        verb!(self, request, "start", |call, keeper, key, body| {
            let started = match body.spec {
                None => keeper.start(&key).await?,
                spec => keeper.run(&key, call.spec(&key, spec)?).await?,
            };
            Ok(started.into())
        })
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        verb!(self, request, "stop", |call, keeper, key, body| {
            keeper.stop(&key, call.grace(&key, body.grace)?).await?;
            Ok(StopResponse {})
        })
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        verb!(self, request, "shut down", |call, keeper, key, body| {
            keeper.shutdown(&key, call.grace(&key, body.grace)?).await?;
            Ok(ShutdownResponse {})
        })
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        verb!(self, request, "pause", |call, keeper, key, body| {
            keeper.pause(&key).await?;
            Ok(PauseResponse {})
        })
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        verb!(self, request, "resume", |call, keeper, key, body| {
            keeper.resume(&key).await?;
            Ok(ResumeResponse {})
        })
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let answered = || {
            let call = Call::new("ping", request.metadata())?;
            let key = call.key(request.into_inner().sandbox)?;
            Ok(self.keeper.ping(&key)?.into())
        };
        answer(answered())
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        verb!(self, request, "probe", |call, keeper, key, body| Ok(keeper.probe(&key).await?.into()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        verb!(self, request, "ask for the status of", |call, keeper, key, body| {
            let status = keeper.status(&key).await?.to_msg().map_err(|error| {
                Error::new(ErrorKind::Internal, call.verb, "its status is malformed")
                    .on(&key)
                    .caused_by(error)
            })?;
            Ok(StatusResponse { status: Some(status) })
        })
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        verb!(self, request, "wait for", |call, keeper, key, body| {
            let mut ending = self.ending.clone();
            let exit = tokio::select! {
                exit = keeper.wait(&key) => exit?,
                () = ending.begun() => return Err(daemon_ends(call.verb).on(&key)),
            };
            Ok(WaitResponse { exit: Some(exit.into()) })
        })
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        answer(self.list_page(request).await)
    }

    async fn sweep(&self, _request: Request<SweepRequest>) -> Result<Response<SweepResponse>, Status> {
        let sweep = self.keeper.sweep();
        let count = |phase: Phase| (phase.name().to_owned(), sweep.count(phase));
        let (total, total_marked) = (sweep.total(), sweep.marked.len() as u64);
        let phases = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Gone).map(count);
        let phases = phases.filter(|(_, count)| *count > 0).collect();
        let mut marked = sweep.marked.into_iter().map(MarkedSandbox::from).peekable();
        let marked = take_part(&mut marked, usize::MAX, PART_BYTES);
        Ok(Response::new(SweepResponse { phases, total, marked, total_marked }))
    }

    type WatchStream = Parts<WatchResponse>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        answer(self.watching(request))
    }

    type ExecStream = Parts<ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        answer(self.program(request).await)
    }

    type LogsStream = Parts<LogsResponse>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        answer(self.log(request).await)
    }

    async fn platform(
        &self,
        request: Request<PlatformRequest>,
    ) -> Result<Response<PlatformResponse>, Status> {
        verb!(self, request, "ask for the platform of", |call, keeper, key, body| {
            Ok(keeper.platform(&key).await?.into())
        })
    }

    async fn metrics(&self, request: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        verb!(self, request, "read metrics of", |call, keeper, key, body| {
            Ok(MetricsResponse { metrics: Some(keeper.metrics(&key).await?) })
        })
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        verb!(self, request, "update", |call, keeper, key, body| {
            keeper.update(&key, &body.resources.unwrap_or_default()).await?;
            Ok(UpdateResponse {})
        })
    }

    async fn version(&self, _request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: wire::timestamp(self.about.started_at_unix_nanos),
            epoch: self.keeper.epoch(),
            state_dir: self.about.state_dir.clone(),
            capacity: self.about.capacity,
            recovering: self.keeper.recovering() as u64,
            journal_trouble: self.keeper.journal_trouble().unwrap_or_default(),
            orphans: self.keeper.orphans().len() as u64,
            findings: self.about.findings.clone(),
        }))
    }

    async fn orphans(&self, _request: Request<OrphansRequest>) -> Result<Response<OrphansResponse>, Status> {
        let orphans = self.keeper.orphans();
        let total = orphans.len() as u64;
        let mut orphans = orphans.iter().map(Orphan::from).peekable();
        // Each of the two lists has half of a message.
        let orphans = take_part(&mut orphans, usize::MAX, PART_BYTES / 2);
        let (damaged, waiting) = self.keeper.unread_records();
        let mut waiting = waiting.iter().map(SandboxName::from).peekable();
        let waiting_records = take_part(&mut waiting, usize::MAX, PART_BYTES / 2);
        Ok(Response::new(OrphansResponse {
            orphans,
            total,
            damaged_records: damaged as u64,
            waiting_records,
        }))
    }

    async fn end_orphans(
        &self,
        request: Request<EndOrphansRequest>,
    ) -> Result<Response<EndOrphansResponse>, Status> {
        let call = Call::new("end what has no record", request.metadata()).map_err(|error| status(&error))?;
        // Whether or not its caller stays: what is begun is done to the end.
        let work = tokio::spawn(ended_orphans(self.keeper.clone()));
        let done = tokio::select! {
            done = work => done,
            error = call.cut_short(self.ending.clone()) => return Err(status(&error)),
        };
        answer(
            done.map_err(|panic| {
                Error::new(ErrorKind::Internal, call.verb, "the work failed").caused_by(panic)
            }),
        )
    }
}
