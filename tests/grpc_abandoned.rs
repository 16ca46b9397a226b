//! Callers that go away leave nothing behind. Alone in its process, since it counts descriptors.

#[path = "grpc/house.rs"]
mod house;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::spec::SandboxSpec;
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::generated::SweepRequest;
use sandkeeper::wire::generated::keeper_client::KeeperClient;
use sandkeeper::{Controller, ErrorKind, Keeper};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::{Channel, Endpoint, Uri};

use house::{House, key, on_one_core_and_on_two, until};

const WAITS: usize = 10_000;
const WATCHES: usize = 1_000;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Whether as many wait as may.
fn is_full(keeper: &Keeper) -> bool {
    match keeper.wait(&key("a")).now_or_never() {
        None => false,
        Some(Err(error)) if error.kind() == ErrorKind::ResourceExhausted => true,
        Some(other) => panic!("it runs: {other:?}"),
    }
}

/// Waits so many times, in a task of its own.
fn waiting(client: &Client, count: usize) -> JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let wait = |mut client: Client| async move {
            loop {
                match client.wait(&key("a")).await {
                    // A look whether there is room takes some for a moment.
                    Err(error) if error.kind() == ErrorKind::ResourceExhausted => {}
                    answer => return answer,
                }
            }
        };
        let mut waits: FuturesUnordered<_> = (0..count).map(|_| wait(client.clone())).collect();
        if let Some(answer) = waits.next().await {
            panic!("it runs: {answer:?}");
        }
    })
}

async fn abandon(task: JoinHandle<()>) {
    task.abort();
    let gone = task.await.expect_err("it waits without end");
    assert!(gone.is_cancelled(), "{gone}");
}

/// Goal: descriptors, tasks, watchers and waiters are back where they were; by room for exactly so many waiters, twice over.
#[test]
fn ten_thousand_abandoned_waits_and_a_thousand_watches_leave_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    on_one_core_and_on_two(async || {
        let memory = MemoryRuntime::new();
        let house = House::of(Arc::clone(&memory) as _, memory, |keeper| keeper.waiters_bound(WAITS)).await;
        let mut client = house.client().await;
        client.start(&key("a"), Some(&SandboxSpec::default())).await.unwrap();
        let (descriptors_before, tasks_before) = (descriptors(), tasks());
        let as_before = || (descriptors() <= descriptors_before && tasks() <= tasks_before).then_some(());

        for _ in 0..2 {
            let waits = waiting(&client, WAITS);
            until("all of them wait", || is_full(&house.keeper).then_some(())).await;
            assert!(tasks() > tasks_before + WAITS / 2);
            client.ping(&key("a")).await.expect("others are served meanwhile");
            abandon(waits).await;
            until("nothing is left of them", as_before).await;
            assert!(!is_full(&house.keeper));
        }

        // With their connection.
        let other = house.client().await;
        let waits = waiting(&other, WAITS);
        until("all of them wait", || is_full(&house.keeper).then_some(())).await;
        drop(other);
        abandon(waits).await;
        until("nothing is left of them", as_before).await;

        for connections in [1, 10] {
            let mut watches = Vec::new();
            for _ in 0..connections {
                let mut other = house.client().await;
                for _ in 0..WATCHES / connections {
                    let mut watch = other.watch(0, 0).await.unwrap();
                    watch.next().await.unwrap().expect("a snapshot");
                    watches.push(watch);
                }
            }
            assert_eq!(house.keeper.watchers(), WATCHES);
            drop(watches);
            until("nothing is left of them", as_before).await;
            until("nobody watches", || (house.keeper.watchers() == 0).then_some(())).await;
        }
        // Abandoned before it was even looked at.
        for _ in 0..1_000 {
            assert!(client.wait(&key("a")).now_or_never().is_none());
        }
        until("nothing is left of them", as_before).await;
        client.stop(&key("a"), None).await.unwrap();
        house.close().await;
    });
}

/// A channel over a socket that was made before, so that connecting needs no descriptor here.
async fn connect(socket: OwnedFd, path: &Path) -> Channel {
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let stream = StdUnixStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    let stream = Mutex::new(Some(stream));
    let dial = move |_: Uri| {
        let stream = stream.lock().unwrap().take().ok_or(std::io::ErrorKind::ConnectionRefused);
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(stream?)?)) }
    };
    Endpoint::from_static("http://test").connect_with_connector(tower::service_fn(dial)).await.unwrap()
}

/// C24: with no descriptor left in the process, open connections are served, and so are a few new ones, for somebody has to be
/// able to ask for fewer sandboxes; further ones are served as soon as there is one again.
#[test]
fn at_the_descriptor_limit_callers_are_still_served() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..before }).unwrap();
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        client.start(&key("a"), Some(&SandboxSpec::default())).await.unwrap();
        let socket = || rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let mut sockets: Vec<_> = (0..12).map(|_| socket()).collect();
        let mut rest = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            rest.push(file);
        }
        client.ping(&key("a")).await.expect("who is there is served");
        let mut served = Vec::new();
        for socket in sockets.drain(..8) {
            let mut calls = KeeperClient::new(connect(socket, &house.path).await);
            calls.sweep(SweepRequest {}).await.expect("with a descriptor that was kept for that");
            served.push(calls);
        }
        let mut late = JoinSet::new();
        for socket in sockets {
            let channel = connect(socket, &house.path).await;
            late.spawn(async move { KeeperClient::new(channel).sweep(SweepRequest {}).await.map(drop) });
        }
        client.ping(&key("a")).await.expect("who is there is served");
        assert!(late.try_join_next().is_none(), "there is nothing to let them in with");
        drop(rest);
        while let Some(sweep) = late.join_next().await {
            sweep.unwrap().expect("it had to wait, and no more");
        }
        house.close().await;
    });
    setrlimit(Resource::Nofile, before).unwrap();
}

/// Goal: as many waits as the service promises, open at once on one connection; each is told.
#[test]
fn a_hundred_thousand_waits_on_one_connection_are_all_told() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        const MANY: usize = 100_000;
        let memory = MemoryRuntime::new();
        let house =
            House::of(Arc::clone(&memory) as _, memory, |keeper| keeper.waiters_bound(2 * MANY)).await;
        let mut client = house.client().await;
        client.start(&key("a"), Some(&SandboxSpec::default())).await.unwrap();
        let mut waits = JoinSet::new();
        for _ in 0..MANY {
            let mut client = client.clone();
            waits.spawn(async move { client.wait(&key("a")).await.expect("it is told").status });
        }
        // One task here for each, and one there.
        until("all of them wait", || (tasks() > 2 * MANY).then_some(())).await;
        client.ping(&key("a")).await.expect("others are served meanwhile");
        client.stop(&key("a"), None).await.unwrap();
        let told = waits.join_all().await;
        assert!(told.len() == MANY && told.iter().all(|status| *status == told[0]));
        house.close().await;
    });
}
