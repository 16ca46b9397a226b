//! The one thread that writes. Whatever waits when it comes round goes into one transaction.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::ballast::Ballast;
use super::batch::{Batch, Extent};
use super::fault::Fault;
use super::lock::Lock;
use super::record::{Meta, Quarantined};
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
    /// Records are missing, and lives up to this one may have been used.
    NoteLosses(u64),
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

    pub(super) fn note_losses(&self, life: u64) {
        self.enqueue(Job::NoteLosses(life));
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
    /// Damaged records that nobody has accepted as lost: they go into a file that is made anew, too.
    apart: Vec<Quarantined>,
    /// What is to be written, and has not been yet.
    owed: Batch,
    /// As in [`Job::NoteLosses`], and as long as that is not written.
    losses: Option<u64>,
    retry_at: Option<Instant>,
    /// Groups refused in a row.
    refusals: u32,
    ballast: Ballast,
    /// After the store: the directory is ours until that is closed.
    _lock: Lock,
}

impl Writer {
    /// Opens the file, or makes one.
    pub(super) fn open(place: Place, mut lock: Lock) -> Result<(Self, Recovered), Error> {
        let mut ballast = Ballast::at(place.dir.join("ballast"));
        // They outlive the file if somebody takes that away; the ballast may have been given up.
        let used = lock.used || ballast.exists();
        if used {
            ballast.restore();
        }
        let mut opened = open(&place, used);
        if matches!(opened, Err(Fault::Full(_))) && ballast.release() {
            opened = open(&place, used);
        }
        let (store, recovered, apart) = opened.map_err(|fault| fault.no_opening(&place.file()))?;
        // In a fresh directory only now, since both say that there was a journal.
        ballast.restore();
        lock.note_holder();
        let writer = Self {
            shared: Arc::default(),
            place,
            meta: store.meta.clone(),
            store: Some(store),
            apart,
            owed: Batch::default(),
            losses: None,
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
            // A fault of ours in one group must not take the next one along.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve(&mut jobs))) {
                let fault = self.has_failed(&*panic);
                self.retry_at = Some(Instant::now() + RETRY);
                self.answer(&mut jobs, Some(&fault), true);
            }
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
        // Before all that may fail: what is owed is tried again.
        let mut accept = false;
        for job in jobs.iter() {
            match job {
                Job::Write(key, change, _) => self.owed.add(key, change),
                Job::NoteLosses(life) => self.losses = Some(*life),
                Job::AcceptLosses(_) => accept = true,
                Job::Mark(_) => {}
            }
        }
        let done = catch_unwind(AssertUnwindSafe(|| self.write(&mut accept)));
        let refused = done.unwrap_or_else(|panic| Some(Err(self.has_failed(&*panic))));
        if let Some(written) = &refused {
            self.note(written.as_ref().err());
        }
        let due = self.retry_at.is_none_or(|at| at <= Instant::now());
        let wanting =
            !self.owed.is_empty() || self.losses.is_some() || self.store.is_none() || !self.ballast.is_held();
        self.retry_at = match wanting {
            true if due => Some(Instant::now() + RETRY),
            true => self.retry_at,
            false => None,
        };
        let fault = refused.and_then(Result::err);
        self.answer(jobs, fault.as_ref(), accept);
    }

    /// A fault of this program's own: nothing is known of the file, which is opened anew.
    fn has_failed(&mut self, panic: &(dyn Any + Send)) -> Fault {
        let fault = Fault::of_our_own(panic);
        tracing::error!(%fault, "the journal failed at a group of changes");
        self.store = None;
        fault
    }

    /// Calls back everybody, in the order in which they came; `not_accepted` says that losses are not.
    fn answer(&self, jobs: &mut Vec<Job>, fault: Option<&Fault>, not_accepted: bool) {
        let error = fault.map(|fault| fault.refusal(&self.place.file()));
        for job in jobs.drain(..) {
            match job {
                Job::Write(key, change, Some(then)) => {
                    let failed = error.as_ref().filter(|_| self.owed.owes(&key, &change));
                    call(then, failed.map_or(Ok(()), |error| Err(error.clone().on(&key))));
                }
                Job::Write(_, _, None) | Job::NoteLosses(_) => {}
                Job::AcceptLosses(then) => {
                    call(then, error.clone().filter(|_| not_accepted).map_or(Ok(()), Err));
                }
                // Nobody may be waiting any more.
                Job::Mark(done) => drop(done.send(())),
            }
        }
    }

    /// Writes what is owed, and whatever of it could not be written is owed afterwards; the fault says why. Nothing where
    /// there is nothing to do. `accept` is no longer set once losses are accepted.
    fn write(&mut self, accept: &mut bool) -> Option<Result<(), Fault>> {
        if !self.ballast.is_held() && self.retry_at.is_none_or(|at| at <= Instant::now()) {
            self.ballast.restore();
        }
        let losses = *accept || self.losses.is_some();
        if self.owed.is_empty() && !losses && self.store.is_some() {
            return None;
        }
        let (begun, size) = (Instant::now(), self.owed.len());
        let mut last = Fault::Io("it was tried too often".to_owned());
        for attempt in 0..MOST_TRIES {
            // What room there is goes to ends, not to beginnings.
            let extent = if self.ballast.is_held() { Extent::All } else { Extent::NoBeginnings };
            match self.attempt(extent, accept) {
                Ok(()) if self.owed.is_empty() => {
                    telemetry::journal_committed(size, begun.elapsed());
                    return Some(Ok(()));
                }
                Ok(()) => return Some(Err(Fault::Full("what is left is kept for ends".to_owned()))),
                Err(fault) => last = fault,
            }
            tracing::debug!(fault = %last, attempt, "a group of changes could not be written");
            self.store = None;
            let again = match &last {
                Fault::Full(_) => self.ballast.release(),
                Fault::Io(why) if self.refusals == PATIENCE => self.replace(why).is_ok(),
                Fault::Io(_) => true,
                Fault::Broken(why) => attempt == 0 || self.replace(why).is_ok(),
                Fault::Denied(_) | Fault::Scarce(_) | Fault::Ours(_) => false,
            };
            if !again {
                break;
            }
        }
        Some(Err(last))
    }

    fn attempt(&mut self, extent: Extent, accept: &mut bool) -> Result<(), Fault> {
        if self.store.is_none() {
            self.reopen()?;
        }
        let Some(store) = &mut self.store else { return Err(Fault::Io("it is closed".to_owned())) };
        if *accept || self.losses.is_some() || self.owed.iter(extent).next().is_some() {
            failpoint::reach("journal.before-commit");
            store.write(&self.owed, extent, (self.losses, *accept))?;
            failpoint::reach("journal.after-commit");
        }
        self.meta.clone_from(&store.meta);
        self.owed.written(extent);
        self.losses = None;
        if std::mem::take(accept) {
            self.apart.clear();
        }
        Ok(())
    }

    /// Opens the file again after a failure: redb serves no one after an error of the system's.
    fn reopen(&mut self) -> Result<(), Fault> {
        match Store::open(&self.place) {
            Ok(store) if store.meta.salvage.is_empty() => {
                self.store = Some(store);
                Ok(())
            }
            // The making of it was cut short.
            Ok(store) => self.complete(store),
            Err(Fault::Broken(why)) => self.replace(&why),
            Err(fault) => Err(fault),
        }
    }

    /// Sets the file aside and makes it anew.
    fn replace(&mut self, why: &str) -> Result<(), Fault> {
        let store = salvage::replace(&self.place, why, Some(&self.meta))?;
        self.complete(store)
    }

    /// Fills a file that is made anew: from the source, which knows all there is, and with what lay in quarantine; else from
    /// what can be read of the one that was set aside.
    fn complete(&mut self, mut store: Store) -> Result<(), Fault> {
        let source = self.shared.source.lock().clone();
        // One that knows of nothing may be gone, or not there yet: what can be read is not thrown away for that.
        match source.map(|source| source()) {
            Some(all) if !all.is_empty() => store.fill(&all, &self.apart, self.meta.incomplete)?,
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

/// The file, what it held, and what of that is in quarantine.
type Opened = (Store, Recovered, Vec<Quarantined>);

/// Opens the file, or makes one; `used` says that there has been one.
fn open(place: &Place, used: bool) -> Result<Opened, Fault> {
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

fn begin(place: &Place, mut store: Store) -> Result<Opened, Fault> {
    salvage::save(place, &mut store)?;
    let (recovered, apart) = store.begin_epoch()?;
    Ok((store, recovered, apart))
}

/// Calls whoever waits. What a caller does wrong there is not the journal's fault.
fn call(then: Then, result: Result<(), Error>) {
    if catch_unwind(AssertUnwindSafe(|| then(result))).is_err() {
        tracing::error!("whoever waited for the journal panicked when it was called");
    }
}
