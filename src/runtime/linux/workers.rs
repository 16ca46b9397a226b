//! Threads for calls into the kernel that may wait: for a cgroup lock, or for a disk.
//!
//! They are few and the backend's own, so that a slow cgroup file system holds up neither the caller's async runtime
//! nor whatever else uses its pool of blocking threads, and so that a burst of 1,000 starts does not make 1,000 threads.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind};

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads and one queue. The threads end when this is dropped, after the jobs in the queue.
pub(super) struct Workers {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

impl Workers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        // Made first: should a thread fail to start, its drop ends those before it.
        let workers = Self { queue: Arc::clone(&queue) };
        for _ in 0..count {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name("sandkeeper-fs".to_owned()).spawn(move || queue.work())?;
        }
        Ok(workers)
    }

    /// Runs `job` on one of the threads. The job runs to its end even if the future is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        self.queue.push(Box::new(move || drop(sender.send(job()))));
        answer.await.map_err(|_| {
            Error::new(ErrorKind::Internal, "ask the kernel", "the job panicked; its message is on stderr")
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
    fn push(&self, job: Job) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            self.filled.notify_one();
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, || {
                    // A panic drops the job's sender, which tells its caller. The thread has others to serve.
                    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
                });
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                self.filled.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_job_is_an_error_and_the_thread_goes_on() {
        let workers = Workers::start(1).unwrap();
        let error = workers.run(|| panic!("on purpose")).await.map(|()| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(workers.run(|| 7).await.unwrap(), 7);
    }
}
