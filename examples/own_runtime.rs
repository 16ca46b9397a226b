//! A backend of one's own, held to the contract of all backends: `cargo run --features testing --example own_runtime`.
//! Its sandboxes are child processes, not isolated at all, and must not fork: only the child is stopped and ended.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::{
    collections::HashMap, os::fd::OwnedFd, os::unix::process::ExitStatusExt, sync::Arc, time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandkeeper::model::{Exit, ExitReason, Life};
use sandkeeper::runtime::{self, Capabilities, Instance, Reality, Report, Runtime, Started, Urgency};
use sandkeeper::{Controller, Error, ErrorKind, Keeper, SandboxKey, SandboxSpec, spec::ProcessSpec};
use tokio::{process::Command, sync::watch};

/// Lives from their creation to the end of their deletion; without a child until they are started.
#[derive(Default)]
struct Children(Mutex<HashMap<Life, Option<Child>>>);

/// Signals go to the descriptor and never to the number, which may be another process's by then.
struct Child(Started, OwnedFd, watch::Receiver<Option<Exit>>);

impl Child {
    /// Starts a child, and tells its end once when it comes.
    fn spawn(instance: &Arc<Instance>) -> Result<Self, std::io::Error> {
        let args = instance.spec.process.as_ref().map(|process| &process.args[..]).unwrap_or_default();
        let mut command = Command::new(args.first().map_or("", String::as_str));
        let mut process = command.args(args.iter().skip(1)).kill_on_drop(true).spawn()?;
        // Not reaped yet, so the number is still its own.
        let started = Started { pid: process.id().unwrap_or_default(), ..Started::default() };
        let pidfd = pidfd_open(Pid::from_raw(started.pid as i32).unwrap_or(Pid::INIT), PidfdFlags::empty())?;
        let (told, exit) = watch::channel(None);
        let instance = Arc::clone(instance);
        tokio::spawn(async move {
            let reason = match process.wait().await.map(|status| (status.code(), status.signal())) {
                Ok((Some(code), _)) => ExitReason::Exited(code as u8),
                Ok((_, Some(signal))) => ExitReason::Signalled(signal as u8),
                Ok(_) | Err(_) => ExitReason::Lost,
            };
            let exit = Exit { reason, at_unix_nanos: runtime::unix_nanos() };
            instance.exited(exit, true);
            told.send_replace(Some(exit));
        });
        Ok(Self(started, pidfd, exit))
    }
}

impl Children {
    fn reality(&self, life: Life) -> Reality {
        let lives = self.0.lock();
        let Some(created) = lives.get(&life) else { return Reality::Absent };
        let Some(Child(started, _, exit)) = created else { return Reality::Created };
        // The state follows the name, which is in parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", started.pid));
        let frozen = stat.is_ok_and(|stat| stat.contains(") T "));
        exit.borrow().map_or_else(|| Reality::Running { started: started.clone(), frozen }, Reality::Ended)
    }

    /// Signals it if it was started, and gives where its end will be told. What has ended needs no signal.
    fn signal(&self, life: Life, signal: Signal) -> Option<watch::Receiver<Option<Exit>>> {
        let lives = self.0.lock();
        let Child(_, pidfd, exit) = lives.get(&life)?.as_ref()?;
        let _ = pidfd_send_signal(pidfd, signal);
        Some(exit.clone())
    }

    async fn freeze(&self, life: Life, signal: Signal, wanted: bool) -> Result<(), Error> {
        self.signal(life, signal);
        while let Reality::Running { frozen, .. } = self.reality(life) {
            if frozen == wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(Error::new(ErrorKind::FailedPrecondition, "stop or continue", "it does not run"))
    }
}

#[async_trait::async_trait]
impl Runtime for Children {
    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: true, ..Capabilities::default() }
    }
    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        let can = spec.process.is_some() && spec.limits.is_empty();
        can.then_some(()).ok_or(Error::new(ErrorKind::InvalidArgument, "run", "no process, or limits"))
    }
    async fn create(&self, of: &Arc<Instance>) -> Result<(), Error> {
        self.0.lock().entry(of.life).or_default();
        Ok(())
    }
    async fn start(&self, of: &Arc<Instance>) -> Result<Started, Error> {
        let mut lives = self.0.lock();
        let child = lives.entry(of.life).or_default();
        if child.is_none() {
            let failed =
                |e| Error::new(ErrorKind::InvalidArgument, "start", "no child").on(&of.key).caused_by(e);
            *child = Some(Child::spawn(of).map_err(failed)?);
        }
        Ok(child.as_ref().map(|child| child.0.clone()).unwrap_or_default())
    }
    async fn pause(&self, of: &Arc<Instance>) -> Result<(), Error> {
        self.freeze(of.life, Signal::STOP, true).await
    }
    async fn resume(&self, of: &Arc<Instance>) -> Result<(), Error> {
        self.freeze(of.life, Signal::CONT, false).await
    }
    async fn stop(&self, of: &Arc<Instance>, urgency: Urgency) -> Result<(), Error> {
        if urgency == Urgency::Ask {
            self.signal(of.life, Signal::TERM);
        } else if let Some(mut exit) = self.signal(of.life, Signal::KILL) {
            drop(exit.wait_for(Option::is_some).await);
        }
        Ok(())
    }
    async fn delete(&self, of: &Arc<Instance>) -> Result<(), Error> {
        self.stop(of, Urgency::Now).await?;
        self.0.lock().remove(&of.life);
        Ok(())
    }
    async fn probe(&self, of: &Arc<Instance>) -> Result<Report, Error> {
        let reality = self.reality(of.life);
        let frozen = matches!(reality, Reality::Running { frozen: true, .. });
        Ok(Report { alive: matches!(reality, Reality::Running { .. }), frozen, extra: None })
    }
    async fn reattach(&self, of: &Arc<Instance>) -> Result<Reality, Error> {
        Ok(self.reality(of.life))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let children: Arc<dyn Runtime> = Arc::new(Children::default());
    let process = Some(ProcessSpec::new(["sleep", "1000"]));
    let spec = SandboxSpec { process, ..SandboxSpec::default() };
    runtime::contract::upholds_everything(&children, &spec).await;
    println!("the backend upholds the contract");

    let (keeper, key) =
        (Keeper::builder().runtime("children", children).build()?, SandboxKey::new("default", "a")?);
    keeper.run(&key, spec).await?;
    keeper.pause(&key).await?;
    println!("{key} is {}", keeper.ping(&key)?.phase());
    Ok(keeper.shutdown(&key, None).await?)
}
