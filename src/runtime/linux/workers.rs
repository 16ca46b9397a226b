//! Threads for calls into the kernel that may wait: for a cgroup lock, or for a disk.
//!
//! They are few and the backend's own, so that a slow cgroup file system holds up neither the caller's async runtime
//! nor whatever else uses its pool of blocking threads, and so that a burst of 1,000 starts does not make 1,000 threads.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind};

type Job = Box<dyn FnOnce() + Send>;

/// How long a thread that was made on demand waits for more to do.
const LINGER: Duration = Duration::from_secs(5);

/// Lets the calling thread rest. Only for a thread of ours, and for what is said to block.
#[expect(
    clippy::disallowed_methods,
    reason = "never on a thread of the async runtime, or documented to block it"
)]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Some threads and one queue. The threads end when this is dropped, after the jobs in the queue.
pub(super) struct Workers {
    queue: Arc<Queue>,
}

struct Queue {
    /// The most threads that are made on demand.
    most: usize,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads, and those of them that have nothing to do.
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Workers {
    /// Starts `count` threads, which stay.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        // Made first: should a thread fail to start, its drop ends those before it.
        let workers = Self::on_demand(0);
        for _ in 0..count {
            workers.queue.add_thread(&mut workers.queue.state.lock(), None)?;
        }
        Ok(workers)
    }

    /// Makes threads when there is something to do, up to `most`; they go when there is nothing.
    pub(super) fn on_demand(most: usize) -> Self {
        Self { queue: Arc::new(Queue { most, state: Mutex::default(), filled: Condvar::new() }) }
    }

    /// Runs `job` on one of the threads. The job runs to its end even if the future is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        self.queue.push(Box::new(move || drop(sender.send(job()))));
        answer.await.map_err(|_| {
            Error::new(
                ErrorKind::Internal,
                "ask the kernel",
                "the job panicked, or no thread could be made for it",
            )
        })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.filled.notify_all();
    }
}

impl Queue {
    fn add_thread(self: &Arc<Self>, state: &mut State, linger: Option<Duration>) -> io::Result<()> {
        let queue = Arc::clone(self);
        std::thread::Builder::new().name("sandkeeper-fs".to_owned()).spawn(move || queue.work(linger))?;
        state.threads += 1;
        Ok(())
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            self.filled.notify_one();
        }
        if state.jobs.len() > state.idle
            && state.threads < self.most
            && let Err(error) = self.add_thread(&mut state, Some(LINGER))
        {
            tracing::warn!(%error, threads = state.threads, "no further thread can be made");
            if state.threads == 0 {
                // Nobody would ever take it. Dropped, it tells its caller.
                state.jobs.pop_back();
            }
        }
    }

    fn work(&self, linger: Option<Duration>) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, || {
                    // A panic drops the job's sender, which tells its caller. The thread has others to serve.
                    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
                });
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let late = match linger {
                Some(linger) => self.filled.wait_for(&mut state, linger).timed_out(),
                None => {
                    self.filled.wait(&mut state);
                    false
                }
            };
            state.idle -= 1;
            if late && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_job_is_an_error_and_the_thread_goes_on() {
        let workers = Workers::start(1).unwrap();
        let error = workers.run(|| -> () { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(workers.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn threads_made_on_demand_are_bounded_and_serve_all() {
        let workers = Workers::on_demand(3);
        let at_once = Arc::new(Mutex::new((0, 0)));
        let jobs = (0..20).map(|i| {
            let at_once = Arc::clone(&at_once);
            workers.run(move || {
                let mut count = at_once.lock();
                count.0 += 1;
                count.1 = count.1.max(count.0);
                parking_lot::MutexGuard::unlocked(&mut count, || pause(Duration::from_millis(5)));
                count.0 -= 1;
                i
            })
        });
        let mut jobs: Vec<_> = jobs.map(Box::pin).collect();
        let mut sum = 0;
        std::future::poll_fn(|context| {
            jobs.retain_mut(|job| match job.as_mut().poll(context) {
                std::task::Poll::Ready(i) => {
                    sum += i.unwrap();
                    false
                }
                std::task::Poll::Pending => true,
            });
            if jobs.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        assert_eq!((sum, at_once.lock().1), (190, 3));
    }
}
