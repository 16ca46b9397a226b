//! A backend of one's own: plain child processes, held to the contract that every backend must uphold.
//! `cargo run --features testing --example own_runtime`; no rights are needed.
//!
//! It isolates nothing, and its programs must not fork: only the child itself is stopped and ended.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandkeeper::model::{Exit, ExitReason, Life};
use sandkeeper::runtime::{self, Capabilities, Instance, Reality, Report, Runtime, Started, Urgency};
use sandkeeper::spec::ProcessSpec;
use sandkeeper::{Controller, Error, ErrorKind, Keeper, SandboxKey, SandboxSpec};
use tokio::sync::watch;

/// Lives from their creation to the end of their deletion; without a child until they are started.
#[derive(Default)]
struct Children(Mutex<HashMap<Life, Option<Child>>>);

#[derive(Clone)]
struct Child {
    pid: u32,
    /// Signals go to this and never to the number, which may be another process's by then.
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Children {
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<Life, Option<Child>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The child of a life that was started, whether or not it has ended.
    fn of(&self, instance: &Instance) -> Option<Child> {
        self.with(|lives| lives.get(&instance.life).cloned().flatten())
    }

    /// Sends a signal, and waits until the kernel says that it had this effect.
    async fn signal(&self, instance: &Instance, signal: Signal, stopped: bool) -> Result<(), Error> {
        let child = self.of(instance).filter(|child| child.exit.borrow().is_none());
        let child = child.ok_or_else(|| failed(ErrorKind::FailedPrecondition, "it does not run"))?;
        pidfd_send_signal(&child.pidfd, signal)
            .map_err(|e| failed(ErrorKind::Internal, "kill").caused_by(e))?;
        while is_stopped(child.pid) != stopped && child.exit.borrow().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

fn failed(kind: ErrorKind, found: &'static str) -> Error {
    Error::new(kind, "run a child process in", found)
}

/// State T in /proc/PID/stat, after the name in parentheses.
fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}

/// Starts a child and tells its end, once, when it comes.
fn spawn(instance: &Arc<Instance>) -> Result<Child, Error> {
    let error = |e| failed(ErrorKind::InvalidArgument, "it does not start").caused_by(e).on(&instance.key);
    let args = instance.spec.process.as_ref().map(|process| &process.args[..]).unwrap_or_default();
    let mut command = tokio::process::Command::new(args.first().map_or("", String::as_str));
    let mut process = command.args(args.iter().skip(1)).kill_on_drop(true).spawn().map_err(error)?;
    // Not reaped yet, so the number is still its own.
    let pid = process.id().unwrap_or_default();
    let opened = pidfd_open(Pid::from_raw(pid as i32).unwrap_or(Pid::INIT), PidfdFlags::empty());
    let pidfd = Arc::new(opened.map_err(|e| error(e.into()))?);
    let (told, exit) = watch::channel(None);
    let instance = Arc::clone(instance);
    tokio::spawn(async move {
        let reason = match process.wait().await.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => ExitReason::Exited(code as u8),
            Ok((None, Some(signal))) => ExitReason::Signalled(signal as u8),
            Ok((None, None)) | Err(_) => ExitReason::Lost,
        };
        let exit = Exit { reason, at_unix_nanos: runtime::unix_nanos() };
        instance.exited(exit, true);
        told.send_replace(Some(exit));
    });
    Ok(Child { pid, pidfd, exit })
}

#[async_trait::async_trait]
impl Runtime for Children {
    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: true, ..Capabilities::default() }
    }
    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        match &spec.process {
            Some(_) if spec.limits.is_empty() => Ok(()),
            _ => Err(failed(ErrorKind::InvalidArgument, "it needs a process, and can have no limits")),
        }
    }
    async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.with(|lives| _ = lives.entry(instance.life).or_default());
        Ok(())
    }
    async fn start(&self, instance: &Arc<Instance>) -> Result<Started, Error> {
        self.with(|lives| match lives.get_mut(&instance.life) {
            Some(Some(child)) => Ok(Started { pid: child.pid, ..Started::default() }),
            Some(created) => {
                let child = created.insert(spawn(instance)?);
                Ok(Started { pid: child.pid, ..Started::default() })
            }
            None => Err(failed(ErrorKind::FailedPrecondition, "it was not created")),
        })
    }
    async fn pause(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.signal(instance, Signal::STOP, true).await
    }
    async fn resume(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.signal(instance, Signal::CONT, false).await
    }
    async fn stop(&self, instance: &Arc<Instance>, urgency: Urgency) -> Result<(), Error> {
        let Some(mut child) = self.of(instance) else { return Ok(()) };
        let signal = if urgency == Urgency::Now { Signal::KILL } else { Signal::TERM };
        // What has ended cannot be signalled, and need not be.
        let _ = pidfd_send_signal(&child.pidfd, signal);
        if urgency == Urgency::Now {
            drop(child.exit.wait_for(Option::is_some).await);
        }
        Ok(())
    }
    async fn delete(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.stop(instance, Urgency::Now).await?;
        self.with(|lives| lives.remove(&instance.life));
        Ok(())
    }
    async fn probe(&self, instance: &Arc<Instance>) -> Result<Report, Error> {
        let running = self.of(instance).filter(|child| child.exit.borrow().is_none());
        let frozen = running.as_ref().is_some_and(|child| is_stopped(child.pid));
        Ok(Report { alive: running.is_some(), frozen, extra: None })
    }
    async fn reattach(&self, instance: &Arc<Instance>) -> Result<Reality, Error> {
        let Some(created) = self.with(|lives| lives.get(&instance.life).cloned()) else {
            return Ok(Reality::Absent);
        };
        let Some(child) = created else { return Ok(Reality::Created) };
        let exit = *child.exit.borrow();
        let started = Started { pid: child.pid, ..Started::default() };
        let running = || Reality::Running { started, frozen: is_stopped(child.pid) };
        Ok(exit.map_or_else(running, Reality::Ended))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime: Arc<dyn Runtime> = Arc::new(Children::default());
    let process = Some(ProcessSpec::new(["sleep", "1000"]));
    let spec = SandboxSpec { process, ..SandboxSpec::default() };
    runtime::contract::upholds_everything(&runtime, &spec).await;
    println!("the backend upholds the contract");

    let keeper = Keeper::builder().runtime("children", runtime).build()?;
    let key = SandboxKey::new("default", "sleeper")?;
    let pid = keeper.run(&key, spec).await?.started.pid;
    keeper.pause(&key).await?;
    println!("{key}, process {pid}: {}", keeper.ping(&key)?.phase());
    keeper.shutdown(&key, None).await?;
    Ok(())
}
