//! Runs operations beside the actor: here is all the waiting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use crate::error::{Error, ErrorKind};
use crate::model::{Found, Life, OpId, Operation};
use crate::runtime::{Instance, Reality, Runtime, Urgency};
use crate::telemetry;

use super::cell::Cell;
use super::message::{Done, Ended, Message};

/// An operation to run.
pub(super) struct Performance {
    pub(super) op: OpId,
    pub(super) operation: Operation,
    pub(super) life: Life,
    /// When whoever asked for it gives up, for operations that are worth nothing then.
    pub(super) wanted_until: Option<Instant>,
    /// The permit of the start that this operation is a part of.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Whether it is a part of a start, and needs a permit.
    pub(super) starts: bool,
    /// Hears when the journal knows of it; nothing if there is nothing to wait for.
    pub(super) intent: Option<oneshot::Receiver<Result<(), Error>>>,
    /// The operation before, which was cancelled and must be over before this one touches the same things.
    pub(super) previous: Option<JoinHandle<()>>,
}

impl Performance {
    /// Spawns the operation; its end arrives at the actor as a message.
    pub(super) fn spawn(self, cell: &Arc<Cell>) -> JoinHandle<()> {
        let span = tracing::info_span!("operation", sandbox = %cell.key, life = %self.life, operation = ?self.operation);
        let cell = Arc::clone(cell);
        tokio::spawn(
            async move {
                let op = self.op;
                let (result, permit) = self.run(&cell).await;
                // Nobody there: the actor was lost, and its replacement begins anew.
                let _ = cell.tell(Message::Ended(Box::new(Ended { op, result, permit })));
            }
            .instrument(span),
        )
    }

    async fn run(mut self, cell: &Arc<Cell>) -> (Result<Done, Error>, Option<OwnedSemaphorePermit>) {
        if let Some(previous) = self.previous.take() {
            previous.abort();
            // It ends by being dropped at its next await; how, does not matter.
            let _ = previous.await;
        }
        if let Some(intent) = self.intent.take()
            && let Err(error) = written(intent, self.operation).await
        {
            return (Err(error.on(&cell.key)), self.permit);
        }
        crate::failpoint::reach("operation.after-intent");
        if self.starts && self.permit.is_none() {
            match start_permit(cell).await {
                Ok(permit) => self.permit = Some(permit),
                Err(error) => return (Err(error), None),
            }
        }
        // So that a thousand sandboxes of an earlier keeper are not all looked for at once.
        let _recovery = match self.operation {
            Operation::Reattach => cell.services.recoveries.acquire().await.ok(),
            _ => None,
        };
        let begun = Instant::now();
        let result = self.obey(cell).await.map_err(|error| error.on(&cell.key));
        crate::failpoint::reach("operation.after-effect");
        if let Operation::Reattach = self.operation {
            crate::failpoint::reach("operation.after-search");
        }
        telemetry::operation(
            self.operation,
            begun.elapsed(),
            result.as_ref().map(|_| ()).map_err(Error::kind),
        );
        if let Err(error) = &result {
            tracing::warn!(sandbox = %cell.key, life = %self.life, operation = ?self.operation, %error, "operation failed");
        }
        (result, self.permit)
    }

    async fn obey(&self, cell: &Arc<Cell>) -> Result<Done, Error> {
        let deadlines = &cell.services.deadlines;
        let limit = match self.operation {
            Operation::Create => deadlines.create,
            Operation::Start => deadlines.start,
            Operation::Pause => deadlines.pause,
            Operation::Resume => deadlines.resume,
            Operation::Ask => deadlines.ask,
            Operation::Kill => deadlines.kill,
            Operation::Delete => deadlines.delete,
            Operation::Reattach => deadlines.reattach,
        };
        // Of the time that somebody gives a freeze, a fifth is kept for withdrawing it, so that they hear how it ended.
        let wanted = self.wanted_until.map(|until| until.saturating_duration_since(Instant::now()) / 5 * 4);
        let limit = wanted.map_or(limit, |wanted| wanted.min(limit));
        let until = Instant::now() + limit;
        let instance = cell.instance(self.life);
        let call = AssertUnwindSafe(ask(&*cell.runtime, self.operation, &instance)).catch_unwind();
        match tokio::time::timeout_at(until, call).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                let found = format!("its runtime panicked: {}", panic_text(&*panic));
                Err(Error::new(ErrorKind::Internal, verb(self.operation), found))
            }
            Err(_) => Err(self.overdue(cell, &instance, limit).await),
        }
    }

    /// Says what was found when an operation did not end in time.
    async fn overdue(&self, cell: &Arc<Cell>, instance: &Arc<Instance>, limit: std::time::Duration) -> Error {
        let mut found = format!("its runtime did not finish within {limit:?}");
        if matches!(self.operation, Operation::Kill | Operation::Delete)
            && let Some(Some(holdup)) = cell.runtime.holdup(instance).now_or_never()
        {
            found = format!("{found}: {holdup}");
        }
        Error::new(ErrorKind::DeadlineExceeded, verb(self.operation), found)
    }
}

/// How long an operation that starts nothing waits for its intent to be written: what is to end must not wait for a disk.
const INTENT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Waits until the intent is written. Only what makes something depends on it.
async fn written(intent: oneshot::Receiver<Result<(), Error>>, operation: Operation) -> Result<(), Error> {
    if operation != Operation::Create {
        let _ = tokio::time::timeout(INTENT_PATIENCE, intent).await;
        return Ok(());
    }
    match intent.await {
        Ok(result) => result,
        Err(_dropped) => Err(Error::new(ErrorKind::Unavailable, verb(operation), "its journal was closed")),
    }
}

/// Waits for a start permit for as long as somebody waits for the start.
async fn start_permit(cell: &Arc<Cell>) -> Result<OwnedSemaphorePermit, Error> {
    let asked = Instant::now();
    let acquire = Arc::clone(&cell.services.starts).acquire_owned();
    let mut acquire = std::pin::pin!(acquire);
    loop {
        let until = cell.start_wanted_until();
        match tokio::time::timeout_at(until, &mut acquire).await {
            Ok(Ok(permit)) => {
                telemetry::start_queued(asked.elapsed());
                return Ok(permit);
            }
            Ok(Err(_closed)) => {
                return Err(Error::new(ErrorKind::Aborted, "start", "its keeper is closing"));
            }
            // Somebody with a later deadline may have joined meanwhile.
            Err(_) if cell.start_wanted_until() > until => {}
            Err(_) => {
                let found = format!(
                    "its deadline passed while {} other starts were running; it was not begun",
                    cell.services.bounds.starts
                );
                return Err(Error::new(ErrorKind::DeadlineExceeded, "start", found)
                    .remedy("try again, with a later deadline"));
            }
        }
    }
}

async fn ask(runtime: &dyn Runtime, operation: Operation, instance: &Arc<Instance>) -> Result<Done, Error> {
    match operation {
        Operation::Create => runtime.create(instance).await?,
        Operation::Start => return Ok(Done::Started(runtime.start(instance).await?)),
        Operation::Pause => runtime.pause(instance).await?,
        Operation::Resume => runtime.resume(instance).await?,
        Operation::Ask => runtime.stop(instance, Urgency::Ask).await?,
        Operation::Kill => runtime.stop(instance, Urgency::Now).await?,
        Operation::Delete => runtime.delete(instance).await?,
        Operation::Reattach => {
            let (found, started) = match runtime.reattach(instance).await? {
                Reality::Absent => (Found::Absent, None),
                Reality::Created => (Found::Created, None),
                Reality::Running { started, frozen } => (Found::Running { frozen }, Some(started)),
                Reality::Ended(exit) => (Found::Ended(exit), None),
            };
            return Ok(Done::Found(found, started));
        }
    }
    Ok(Done::Nothing)
}

fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "create",
        Operation::Start => "start",
        Operation::Pause => "pause",
        Operation::Resume => "resume",
        Operation::Ask | Operation::Kill => "stop",
        Operation::Delete => "remove",
        Operation::Reattach => "find out about",
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
