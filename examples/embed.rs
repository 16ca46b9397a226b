//! Runs a program in a sandbox and waits for it. The README shows it.
#![allow(clippy::print_stdout, reason = "a program for people")]

use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};
use sandkeeper::{Controller, Keeper, SandboxKey};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let linux = LinuxRuntime::new(LinuxConfig::default())?;
    let keeper = Keeper::builder().runtime("linux", linux).build()?;

    let output = std::env::current_dir()?.join("hello.txt");
    let mut echo = ProcessSpec::new(["/bin/echo", "hello"]);
    echo.stdio.stdout = Some(output.clone());
    let spec = SandboxSpec { root: RootFs::HostReadOnly, process: Some(echo), ..SandboxSpec::default() };

    let key = SandboxKey::new("default", "greeter")?;
    keeper.run(&key, spec).await?;
    let exit = keeper.wait(&key).await?;
    println!("{key}: {exit}; it said {:?}", std::fs::read_to_string(&output)?);

    keeper.shutdown(&key, None).await?;
    std::fs::remove_file(&output)?;
    Ok(())
}
