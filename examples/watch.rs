//! Watches sandboxes come and go: `cargo run --example watch`, as root.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::time::Duration;

use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::spec::{ProcessSpec, RootFs};
use sandkeeper::{Controller, Keeper, SandboxKey, SandboxSpec, Watch, WatchItem};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let linux = LinuxRuntime::new(LinuxConfig::default())?;
    let keeper = Keeper::builder().runtime("linux", linux).build()?;

    let idle = SandboxKey::new("default", "idle")?;
    keeper.run(&idle, SandboxSpec::default()).await?;

    // A watch begins with everything there is, and misses nothing from then on.
    let printing = tokio::spawn(print(keeper.watch()));
    come_and_go(&keeper, &idle).await?;

    // The last clone of a keeper closes it, which ends the watch.
    drop(keeper);
    let seen = printing.await?;
    println!("{seen} events");
    Ok(())
}

/// Something to watch: a program that ends by itself, and one that is paused and then shut down.
async fn come_and_go(keeper: &Keeper, idle: &SandboxKey) -> Result<(), Box<dyn Error>> {
    let job = SandboxKey::new("default", "job")?;
    let process = ProcessSpec::new(["/bin/sh", "-c", "exit 3"]);
    let spec = SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() };
    keeper.run(&job, spec).await?;
    assert_eq!(keeper.wait(&job).await?.status(), 3);

    keeper.pause(idle).await?;
    keeper.resume(idle).await?;
    keeper.shutdown(idle, Some(Duration::from_secs(1))).await?;
    keeper.shutdown(&job, None).await?;
    Ok(())
}

/// Prints what happens until the keeper closes. How many events there were.
async fn print(mut watch: Watch) -> usize {
    let mut seen = 0;
    while let Some(item) = watch.next().await {
        match item {
            WatchItem::Snapshot { sandboxes, .. } => {
                for sandbox in sandboxes {
                    println!("  there is {}/{}, {}", sandbox.namespace, sandbox.id, sandbox.phase);
                }
            }
            WatchItem::Event(event) => {
                seen += 1;
                let exit = event.exit.map(|exit| format!(", {exit}")).unwrap_or_default();
                println!("{:>4}. {}, life {}: {}{exit}", event.sequence, event.key, event.life, event.phase);
            }
        }
    }
    seen
}
