//! The one thread that writes. Whatever waits when it comes round goes into one transaction.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::ballast::Ballast;
use super::batch::Batch;
use super::fault::Fault;
use super::lock::Lock;
use super::record::Meta;
use super::store::{FORMAT, Place, Store};
use super::{Change, Recovered, Source, Then, salvage};
use crate::error::{Error, ErrorKind};
use crate::failpoint;
use crate::id::SandboxKey;
use crate::telemetry;

/// How long after a failure it is tried again without being asked to.
const RETRY: Duration = Duration::from_secs(1);

/// How often one group is tried before its callers hear of the failure: as the file is, opened anew, made anew.
const MOST_TRIES: u32 = 3;

/// After how many groups refused in a row the file is set aside, once: it may lie on a bad place of a sound disk.
const PATIENCE: u32 = 5;

#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are the large one, and none is boxed on the way to disk"
)]
enum Job {
    Write(SandboxKey, Change, Option<Then>),
    AcceptLosses(Then),
    /// Is called back when everything before it has been.
    Mark(mpsc::Sender<()>),
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    ending: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    source: Mutex<Option<Source>>,
    trouble: Mutex<Option<String>>,
}

/// The journal's thread, seen from outside. Dropping it ends the thread after what is queued.
pub(super) struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(super) fn set_source(&self, source: Source) {
        *self.shared.source.lock() = Some(source);
    }

    pub(super) fn write(&self, key: SandboxKey, change: Change, then: Option<Then>) {
        self.enqueue(Job::Write(key, change, then));
    }

    fn enqueue(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push(job);
        let first = queue.jobs.len() == 1;
        drop(queue);
        if first {
            self.shared.filled.notify_one();
        }
    }

    pub(super) fn flush(&self) {
        let (done, all) = mpsc::channel();
        self.enqueue(Job::Mark(done));
        // An error says that the thread is gone, and with it all that waited.
        let _ = all.recv();
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }

    pub(super) fn accept_losses(&self) -> Result<(), Error> {
        let (done, outcome) = mpsc::channel();
        let then: Then = Box::new(move |result| {
            let _ = done.send(result);
        });
        self.enqueue(Job::AcceptLosses(then));
        outcome.recv().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "accept the losses", "the journal's thread is gone"))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.queue.lock().ending = true;
        self.shared.filled.notify_one();
        let Some(thread) = self.thread.take() else { return };
        // The last handle may go in one of our own callbacks.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
    }
}

/// The journal's thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    place: Place,
    /// Closed after a failure, until it is tried again.
    store: Option<Store>,
    /// The numbers as they were written last.
    meta: Meta,
    /// What could not be written yet.
    owed: Batch,
    retry_at: Option<Instant>,
    /// Groups refused in a row.
    refusals: u32,
    ballast: Ballast,
    /// After the store: the directory is ours until that is closed.
    _lock: Lock,
}

impl Writer {
    /// Opens the file, or makes one.
    pub(super) fn open(place: Place, lock: Lock) -> Result<(Self, Recovered), Error> {
        let ballast = place.dir.join("ballast");
        // They outlive the file if somebody takes that away; the ballast may have been given up.
        let used = lock.used || ballast.exists();
        let mut ballast = Ballast::hold(ballast);
        let mut opened = open(&place, used);
        if matches!(opened, Err(Fault::Full(_))) && ballast.release() {
            opened = open(&place, used);
        }
        let (store, recovered) = opened.map_err(|fault| fault.no_opening(&place.file()))?;
        let writer = Self {
            shared: Arc::default(),
            place,
            meta: store.meta.clone(),
            store: Some(store),
            owed: Batch::default(),
            retry_at: None,
            refusals: 0,
            ballast,
            _lock: lock,
        };
        telemetry::journal_damaged(recovered.damaged.len());
        Ok((writer, recovered))
    }

    /// Goes on in a thread of its own.
    pub(super) fn run(self) -> Result<Running, Error> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("sandkeeper-jrnl".to_owned()).spawn(move || self.work());
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::ResourceExhausted, "start the journal's thread", "the system refuses")
                .caused_by(error)
                .remedy("raise the limit on threads")
        })?;
        Ok(Running { shared, thread: Some(thread) })
    }

    fn work(mut self) {
        let mut jobs = Vec::new();
        loop {
            let ending = self.next(&mut jobs);
            // A fault of ours in one group must not take the next one along. Whoever waits for this one hears that nobody
            // will call.
            let done = catch_unwind(AssertUnwindSafe(|| self.serve(&mut jobs)));
            if done.is_err() {
                tracing::error!("the journal failed at a group of changes");
                self.store = None;
            }
            jobs.clear();
            if ending && self.shared.queue.lock().jobs.is_empty() {
                return;
            }
        }
    }

    /// Waits for something to do, and takes all of it. Whether the end is near.
    fn next(&self, jobs: &mut Vec<Job>) -> bool {
        let mut queue = self.shared.queue.lock();
        while queue.jobs.is_empty() && !queue.ending {
            match self.retry_at {
                None => self.shared.filled.wait(&mut queue),
                Some(at) => {
                    if self.shared.filled.wait_until(&mut queue, at).timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::swap(&mut queue.jobs, jobs);
        queue.ending
    }

    fn serve(&mut self, jobs: &mut Vec<Job>) {
        if !self.ballast.is_held() && self.retry_at.is_none_or(|at| at <= Instant::now()) {
            self.ballast.restore();
        }
        let mut batch = std::mem::take(&mut self.owed);
        let mut accept = false;
        for job in jobs.iter() {
            match job {
                Job::Write(key, change, _) => batch.add(key, change),
                Job::AcceptLosses(_) => accept = true,
                Job::Mark(_) => {}
            }
        }
        let mut refused = None;
        if !batch.is_empty() || accept || self.store.is_none() {
            let written = self.write(batch, accept);
            refused = written.err();
            self.note(refused.as_ref());
        }
        let due = self.retry_at.is_none_or(|at| at <= Instant::now());
        let wanting = !self.owed.is_empty() || self.store.is_none() || !self.ballast.is_held();
        self.retry_at = match wanting {
            true if due => Some(Instant::now() + RETRY),
            true => self.retry_at,
            false => None,
        };
        let error = refused.as_ref().map(|fault| fault.refusal(&self.place.file()));
        for job in jobs.drain(..) {
            match job {
                Job::Write(key, _, Some(then)) => {
                    let failed = error.as_ref().filter(|_| self.owed.contains(&key));
                    call(then, failed.map_or(Ok(()), |error| Err(error.clone().on(&key))));
                }
                Job::Write(_, _, None) => {}
                Job::AcceptLosses(then) => call(then, error.clone().map_or(Ok(()), Err)),
                // Nobody may be waiting any more.
                Job::Mark(done) => drop(done.send(())),
            }
        }
    }

    /// Writes a batch. What could not be written is owed afterwards, and the fault says why.
    fn write(&mut self, mut batch: Batch, accept: bool) -> Result<(), Fault> {
        let begun = Instant::now();
        let mut last = Fault::Io("it was tried too often".to_owned());
        for attempt in 0..MOST_TRIES {
            if !self.ballast.is_held() {
                // What room there is goes to ends, not to beginnings.
                self.owed.absorb(batch.split_off_defines());
            }
            match self.attempt(&batch, accept) {
                Ok(()) if self.owed.is_empty() => {
                    telemetry::journal_committed(batch.len(), begun.elapsed());
                    return Ok(());
                }
                Ok(()) => return Err(Fault::Full("what is left is kept for ends".to_owned())),
                Err(fault) => last = fault,
            }
            tracing::debug!(fault = %last, attempt, "a group of changes could not be written");
            self.store = None;
            let again = match &last {
                Fault::Full(_) => self.ballast.release(),
                Fault::Io(why) if self.refusals == PATIENCE => self.replace(why).is_ok(),
                Fault::Io(_) => true,
                Fault::Broken(why) => attempt == 0 || self.replace(why).is_ok(),
                Fault::Denied(_) | Fault::Scarce(_) => false,
            };
            if !again {
                break;
            }
        }
        self.owed.absorb(batch);
        Err(last)
    }

    fn attempt(&mut self, batch: &Batch, accept: bool) -> Result<(), Fault> {
        if self.store.is_none() {
            self.reopen()?;
        }
        let Some(store) = &mut self.store else { return Err(Fault::Io("it is closed".to_owned())) };
        if !batch.is_empty() || accept {
            failpoint::reach("journal.before-commit");
            store.write(batch, accept)?;
            failpoint::reach("journal.after-commit");
        }
        self.meta.clone_from(&store.meta);
        Ok(())
    }

    /// Opens the file again after a failure: redb serves no one after an error of the system's.
    fn reopen(&mut self) -> Result<(), Fault> {
        match Store::open(&self.place) {
            Ok(store) => {
                self.store = Some(store);
                Ok(())
            }
            Err(Fault::Broken(why)) => self.replace(&why),
            Err(fault) => Err(fault),
        }
    }

    /// Sets the file aside and makes it anew: from the source, which knows all there is, else from what can be read of it.
    fn replace(&mut self, why: &str) -> Result<(), Fault> {
        let source = self.shared.source.lock().clone();
        let mut store = salvage::replace(&self.place, why, Some(&self.meta))?;
        // One that knows of nothing may be gone, or not there yet: what can be read is not thrown away for that.
        match source.map(|source| source()) {
            Some(all) if !all.is_empty() => store.fill(&all, self.meta.incomplete)?,
            _ => salvage::save(&self.place, &mut store)?,
        }
        self.meta.clone_from(&store.meta);
        self.store = Some(store);
        Ok(())
    }

    /// Tells those who ask, the log and the metrics how it stands, and when it is tried again.
    fn note(&mut self, refused: Option<&Fault>) {
        let mut trouble = self.shared.trouble.lock();
        match (refused, &*trouble) {
            (Some(fault), before) => {
                self.refusals += 1;
                telemetry::journal_failed();
                if before.is_none() {
                    tracing::error!(
                        file = %self.place.file().display(), %fault,
                        "changes cannot be written; what ends is told all the same, and nothing new begins"
                    );
                }
                *trouble = Some(format!("{}: {fault}", self.place.file().display()));
            }
            (None, Some(before)) => {
                tracing::info!(was = before, "changes are written again");
                self.refusals = 0;
                *trouble = None;
            }
            (None, None) => {}
        }
    }
}

/// Opens the file, or makes one; `used` says that there has been one.
fn open(place: &Place, used: bool) -> Result<(Store, Recovered), Fault> {
    let _left_over = std::fs::remove_file(place.new_file());
    let fresh = Meta { format: FORMAT, boot: place.boot, ..Meta::default() };
    let opened = match std::fs::symlink_metadata(place.file()) {
        // Somebody took it away: what runs is not to be ended for want of a record, nor its life's number given again.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && used => {
            Err(Fault::Broken("it is gone".to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Store::create(place, fresh),
        _ => Store::open(place),
    };
    match opened.and_then(|store| begin(place, store)) {
        // A page that cannot be read is as lost as one that makes no sense, and a new file may lie better.
        Err(Fault::Broken(why) | Fault::Io(why)) => {
            let store = salvage::replace(place, &why, None)?;
            begin(place, store)
        }
        opened => opened,
    }
}

fn begin(place: &Place, mut store: Store) -> Result<(Store, Recovered), Fault> {
    salvage::save(place, &mut store)?;
    let recovered = store.begin_epoch()?;
    Ok((store, recovered))
}

/// Calls whoever waits. What a caller does wrong there is not the journal's fault.
fn call(then: Then, result: Result<(), Error>) {
    if catch_unwind(AssertUnwindSafe(|| then(result))).is_err() {
        tracing::error!("whoever waited for the journal panicked when it was called");
    }
}
