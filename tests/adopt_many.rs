//! A daemon with thousands of sandboxes is killed, and the next one has them all.
//!
//! Prints how long that took: `SANDKEEPER_FULL=1 cargo test --release --test adopt_many -- --nocapture` for 10,000.
#![allow(clippy::print_stderr)]

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daemon::Daemon;
use sandkeeper::spec::Network;
use sandkeeper::surface::grpc::Client;
use sandkeeper::wire::SandboxStatus;
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::{SandboxKey, SandboxSpec};
use tokio::task::JoinSet;

/// How many callers start sandboxes at a time.
const CALLERS: usize = 32;

fn count() -> usize {
    if std::env::var_os("SANDKEEPER_FULL").is_some() { 10_000 } else { 2_000 }
}

fn key(number: usize) -> SandboxKey {
    SandboxKey::new("default", &format!("many-{number:05}")).unwrap()
}

async fn start_all(daemon: &Daemon, count: usize) {
    let mut callers = JoinSet::new();
    for first in 0..CALLERS {
        let mut client = Client::connect(&daemon.socket()).await.unwrap();
        callers.spawn(async move {
            let spec = SandboxSpec { network: Network::None, ..SandboxSpec::default() };
            for number in (first..count).step_by(CALLERS) {
                client.start(&key(number), Some(&spec)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
}

async fn all(client: &mut Client) -> BTreeMap<String, SandboxStatus> {
    let sandboxes = client.list(ListRequest::default()).await.unwrap();
    sandboxes.into_iter().map(|status| (status.id.clone(), status)).collect()
}

/// Connects as soon as there is somebody to answer.
async fn first_answer(daemon: &Daemon) -> Client {
    loop {
        if let Ok(mut client) = Client::connect(&daemon.socket()).await
            && client.version().await.is_ok()
        {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Goal: `kill -9` of a daemon with thousands of sandboxes loses none and changes none, and from its first answer on the next
/// one knows of each. Method: compare all that is published before and after.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_sandboxes_outlive_their_daemon_unchanged() {
    let count = count();
    let mut daemon = Daemon::start(&[]);
    start_all(&daemon, count).await;
    let before = all(&mut Client::connect(&daemon.socket()).await.unwrap()).await;
    assert_eq!(before.len(), count);
    daemon.kill9();

    let executed = Instant::now();
    daemon.start_again_unwaited();
    let mut client = first_answer(&daemon).await;
    let answered = executed.elapsed();
    let known = all(&mut client).await;
    assert_eq!(known.len(), count, "none is missing, from the first answer on");
    let mut recovered = executed.elapsed();
    while client.version().await.unwrap().recovering > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        recovered = executed.elapsed();
    }
    eprintln!("{count} sandboxes: first answer after {answered:?}, all found after {recovered:?}");
    let after = all(&mut client).await;
    assert_eq!(after, before, "nothing has changed of any");
    let sweep = client.sweep().await.unwrap();
    assert_eq!(sweep.phases, BTreeMap::from([("running".to_owned(), count as u64)]));
}
