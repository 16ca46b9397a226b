//! Descriptors that tokio watches.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;

/// Has the current runtime watch a descriptor.
pub(super) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// How often it is looked whether a process has ended that cannot be watched.
const LOOKS: Duration = Duration::from_millis(50);

/// A process, to wait for its end.
pub(super) enum Ending {
    /// The runtime tells of it.
    Watched(AsyncFd<OwnedFd>),
    /// The kernel would not watch it, for want of memory or of watches: it is looked at now and then.
    Looked(OwnedFd),
}

impl Ending {
    /// Takes a pidfd.
    pub(super) fn of(pidfd: OwnedFd) -> Self {
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
        match unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
            Ok(watched) => Self::Watched(watched),
            Err(refused) => {
                let (pidfd, error) = refused.into_parts();
                tracing::warn!(%error, "the end of a process cannot be watched, and is looked for now and then");
                Self::Looked(pidfd)
            }
        }
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        match self {
            Self::Watched(watched) => watched.get_ref(),
            Self::Looked(pidfd) => pidfd,
        }
    }

    /// Waits until it has ended, reaped or not.
    pub(super) async fn ended(&self) {
        if let Self::Watched(watched) = self
            && watched.readable().await.is_ok()
        {
            return;
        }
        while !sys::is_readable(self.pidfd()) {
            tokio::time::sleep(LOOKS).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// Goal: the end of a process is heard of whether or not the kernel watches it. Method: one of each kind; and that a
    /// descriptor which cannot be watched becomes the second kind, with a plain file, which epoll refuses.
    #[tokio::test]
    async fn an_end_is_heard_of_watched_or_not() {
        type Take = fn(OwnedFd) -> Ending;
        let takes: [(Take, bool); 2] = [(Ending::of, true), (Ending::Looked, false)];
        for (take, watched) in takes {
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = Pid::from_raw(child.id() as i32).unwrap();
            let ending = take(pidfd_open(pid, PidfdFlags::empty()).unwrap());
            assert_eq!(matches!(ending, Ending::Watched(_)), watched);
            let early = tokio::time::timeout(LOOKS * 2, ending.ended()).await;
            child.kill().unwrap();
            ending.ended().await;
            child.wait().unwrap();
            assert!(early.is_err(), "it had not ended yet");
        }
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Ending::of(file.into()), Ending::Looked(_)));
    }
}
