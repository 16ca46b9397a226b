//! Network namespaces: a few kept ready, since making one is the dearest step of a start.
//!
//! One thread makes them. How many are kept follows demand: as many as were taken within the last second, within
//! bounds, and half as many again a second later, until only a few are left. Then the thread sleeps until one is taken.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};

use super::{kernel_error, sys};
use crate::error::{Error, ErrorKind};

/// How many are kept when nothing is going on.
const FEW: usize = 2;

/// How long demand is remembered.
const WINDOW: Duration = Duration::from_secs(1);

/// The file system that namespaces live in (`NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespaces kept ready.
pub(super) struct Networks {
    shared: Arc<Shared>,
}

struct Shared {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Vec<OwnedFd>,
    /// How many are to be ready.
    target: usize,
    /// How many were taken in this window.
    taken: usize,
    closed: bool,
}

impl Networks {
    /// Starts the thread, which keeps at most `most` ready.
    pub(super) fn start(most: usize) -> io::Result<Self> {
        let state = State { target: FEW.min(most), ..State::default() };
        let shared = Arc::new(Shared { most, state: Mutex::new(state), changed: Condvar::new() });
        let networks = Self { shared: Arc::clone(&shared) };
        std::thread::Builder::new().name("sandkeeper-net".to_owned()).spawn(move || shared.work())?;
        Ok(networks)
    }

    /// A namespace with a loopback device that is up, which nobody else has. Blocks while one is made, if none is ready.
    pub(super) fn take(&self) -> Result<OwnedFd, Error> {
        let ready = {
            let mut state = self.shared.state.lock();
            state.taken += 1;
            state.target = state.target.max(state.taken.min(self.shared.most));
            state.ready.pop()
        };
        self.shared.changed.notify_one();
        match ready {
            Some(ready) => Ok(ready),
            None => make().map_err(|error| kernel_error("start", "a new network namespace", error)),
        }
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.shared.state.lock().ready.len()
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.ready.clear();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut window = Instant::now();
        let mut state = self.state.lock();
        while !state.closed {
            let now = Instant::now();
            if now.duration_since(window) >= WINDOW {
                window = now;
                let kept = state.taken.max(state.target / 2);
                state.target = kept.clamp(FEW.min(self.most), self.most);
                state.taken = 0;
                let kept = state.target;
                state.ready.truncate(kept);
            }
            if state.ready.len() < state.target {
                let made = parking_lot::MutexGuard::unlocked(&mut state, make);
                match made {
                    Ok(made) if !state.closed => state.ready.push(made),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "no network namespace could be made ready");
                        // Whoever needs one tries for itself, and gets the error. This thread tries again later.
                        self.changed.wait_for(&mut state, WINDOW);
                    }
                }
            } else if state.taken == 0 && state.target <= FEW {
                self.changed.wait(&mut state);
                window = Instant::now();
            } else {
                self.changed.wait_until(&mut state, window + WINDOW);
            }
        }
    }
}

/// Makes a namespace with its loopback device up. The calling thread is back in its own when this returns.
fn make() -> io::Result<OwnedFd> {
    let open =
        || rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let own = open()?;
    sys::unshare_network()?;
    let made = open().map_err(io::Error::from).and_then(|made| {
        sys::bring_loopback_up()?;
        Ok(made)
    });
    // Left in the new namespace, this thread would keep it alive; but it needs no network for its work.
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    if let Err(error) = rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&own), network) {
        tracing::warn!(%error, "a thread of ours stays in a sandbox's network namespace");
    }
    made
}

/// Opens the network namespace at a path of the host.
pub(super) fn open(path: &Path) -> Result<OwnedFd, Error> {
    let refuse = |found: &str| {
        Error::new(ErrorKind::FailedPrecondition, "start", format!("{} {found}", path.display()))
            .remedy("make one with `ip netns add`, and give its path")
    };
    // NONBLOCK: a FIFO put there must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
        refuse("cannot be opened as a network namespace").caused_by(io::Error::from(error))
    })?;
    // The file system first: to a device, the request might mean something else.
    let on_nsfs = rustix::fs::fstatfs(&namespace).is_ok_and(|statfs| statfs.f_type as u64 == NSFS_MAGIC);
    if on_nsfs && sys::is_network_namespace(&namespace).unwrap_or(false) {
        return Ok(namespace);
    }
    Err(refuse("is not a network namespace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            super::super::workers::pause(Duration::from_millis(5));
        }
    }

    /// Needs root, as all that makes namespaces does.
    #[test]
    fn as_many_are_kept_as_were_taken_within_the_bound_and_few_when_idle() {
        let networks = Networks::start(8).unwrap();
        eventually("a few are made ready at once", || networks.ready() == FEW);
        let taken: Vec<OwnedFd> = (0..20).map(|_| networks.take().unwrap()).collect();
        let numbers: std::collections::HashSet<u64> =
            taken.iter().map(|namespace| rustix::fs::fstat(namespace).unwrap().st_ino).collect();
        assert_eq!(numbers.len(), 20, "no namespace is given out twice");
        eventually("the pool fills to its bound", || networks.ready() == 8);
        eventually("the pool shrinks when idle", || networks.ready() == FEW);
    }

    #[test]
    fn only_a_network_namespace_can_be_joined() {
        assert!(open(Path::new("/proc/self/ns/net")).is_ok());
        for wrong in ["/proc/self/ns/mnt", "/dev/null", "/", "/no/such/path"] {
            let error = open(Path::new(wrong)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
