//! A keeper that is served on a socket of its own.
#![allow(dead_code)]

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandkeeper::runtime::Runtime;
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::surface::grpc::{About, Client, Settings, Socket, serve};
use sandkeeper::{Keeper, KeeperBuilder, SandboxKey};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Runs a test on one core, and then on two.
pub(crate) fn on_one_core_and_on_two<F: Future<Output = ()>>(test: impl Fn() -> F) {
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let two = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for runtime in [one, two] {
        runtime.block_on(async { tokio::time::timeout(3 * LONG, test()).await.expect("it does not stick") });
    }
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
    let begun = tokio::time::Instant::now();
    let (what, caller) = (what.to_owned(), std::panic::Location::caller());
    async move {
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < LONG, "{caller}: still not so: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(crate) fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

pub(crate) struct House {
    pub(crate) keeper: Keeper,
    pub(crate) memory: Arc<MemoryRuntime>,
    pub(crate) path: PathBuf,
    directory: tempfile::TempDir,
    end: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl House {
    pub(crate) async fn open() -> Self {
        let memory = MemoryRuntime::new();
        Self::of(Arc::clone(&memory) as _, memory, |keeper| keeper).await
    }

    pub(crate) async fn of(
        runtime: Arc<dyn Runtime>,
        memory: Arc<MemoryRuntime>,
        set_up: impl FnOnce(KeeperBuilder) -> KeeperBuilder,
    ) -> Self {
        let keeper = set_up(Keeper::builder().runtime("memory", runtime)).build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.sock");
        let socket = Socket::bind(&path, None).await.unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let about = About { started_at_unix_nanos: 1, state_dir: "/state".into(), ..About::default() };
        let settings = Settings { drain: Duration::from_secs(2), ..Settings::default() };
        let serving = serve(socket, keeper.clone(), about, settings, async {
            let _told_or_dropped = ended.await;
        });
        let served = tokio::spawn(serving);
        Self { keeper, memory, path, directory, end, served }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.path).await.expect("it is served")
    }

    /// Tells the server to end; resolves when it has.
    pub(crate) fn end(self) -> impl Future<Output = Keeper> {
        let Self { keeper, path, directory, end, served, .. } = self;
        drop(end);
        async move {
            served.await.expect("no panic");
            assert!(!path.exists(), "the socket's file is gone");
            drop(directory);
            keeper
        }
    }

    pub(crate) async fn close(self) {
        self.end().await.close(None).await;
    }
}
