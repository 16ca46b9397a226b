//! Drives a daemon over its socket. The daemon is in this very program here, with sandboxes that live in memory; in earnest
//! it is `sandkeeper serve`.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::path::Path;

use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::surface::grpc::{About, Client, Settings, Socket, serve};
use sandkeeper::wire::generated::ListRequest;
use sandkeeper::wire::generated::watch_response::Item;
use sandkeeper::{Error, Keeper, SandboxKey, SandboxSpec};
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("sandkeeper-example-{}.sock", std::process::id()));
    let keeper = Keeper::builder().runtime("memory", MemoryRuntime::new()).build()?;
    let socket = Socket::bind(&path, None).await?;
    let (end, ended) = oneshot::channel::<()>();
    let serving = serve(socket, keeper.clone(), About::default(), Settings::default(), async {
        let _told_or_dropped = ended.await;
    });
    let daemon = tokio::spawn(serving);

    drive(&path).await?;

    drop(end);
    daemon.await?;
    keeper.close(None).await;
    Ok(())
}

async fn drive(path: &Path) -> Result<(), Error> {
    let mut client = Client::connect(path).await?;
    let key = SandboxKey::new("default", "web-7").expect("a valid name");

    let mut watch = client.watch(0, 0).await?;
    let started = client.start(&key, Some(&SandboxSpec::default())).await?;
    println!("{key} runs with leader {}", started.pid);
    println!("ping: {}", client.ping(&key).await?.phase);
    for sandbox in client.list(ListRequest::default()).await? {
        println!("{}/{} is {}", sandbox.namespace, sandbox.id, sandbox.phase);
    }
    client.stop(&key, None).await?;
    println!("it ended with {}", client.wait(&key).await?.status);
    client.shutdown(&key, None).await?;

    // An error says what was tried, what was found and what to do, in the daemon's own words.
    if let Err(error) = client.pause(&key).await {
        println!("{error}");
    }
    while let Some(item) = watch.next().await? {
        match item.item {
            Some(Item::Snapshot(snapshot)) => println!("watching from event {}", snapshot.next_sequence),
            Some(Item::Event(event)) if event.phase == "gone" => break,
            Some(Item::Event(event)) => println!("event {}: {}", event.sequence, event.phase),
            None => {}
        }
    }
    Ok(())
}
