//! Creating and starting a life.

use std::sync::Arc;
use std::time::Duration;

use super::ids::BLOCK;
use super::plan::{IdMap, Plan, PlanNetwork, isolation_in_force};
use super::protocol::Child;
use super::rights::OneUser;
use super::sandbox::{Busy, Leader, Sandbox, Stage};
use super::tree::Claim;
use super::zygote::Files;
use super::{Inner, group, kernel_error, log, mark, netns};
use crate::error::{Error, ErrorKind};
use crate::runtime::{Instance, Started};
use crate::spec::{Network, RootFs, SandboxSpec, Stdio, Users};

/// The pause before a group is claimed again in which an earlier life is being ended.
const CLEARING_PAUSE: Duration = Duration::from_millis(2);

impl Inner {
    /// Claims a life's group, with its limits, and its IDs.
    pub(super) async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.check_open()?;
        self.check_spec(&instance.spec)?;
        let sandbox = self.lives.enter(instance);
        let busy = sandbox.acquire().await;
        sandbox.check_not_ending("create")?;
        let state = sandbox.state();
        if !matches!(state.stage, Stage::New) {
            return Ok(());
        }
        let allocated = instance.spec.isolation.users == Users::Allocated && self.one_user().is_none();
        if allocated && state.ids.is_none() {
            let ids = self.ids.take()?;
            sandbox.change(|state| state.ids = Some(ids));
        }
        while let Claim::Clearing = self.claim(&sandbox, &busy).await? {
            tokio::time::sleep(CLEARING_PAUSE).await;
            sandbox.check_not_ending("create")?;
        }
        Ok(())
    }

    async fn claim(&self, sandbox: &Arc<Sandbox>, busy: &Arc<Busy>) -> Result<Claim, Error> {
        let (tree, sandbox, busy) = (Arc::clone(&self.tree), Arc::clone(sandbox), Arc::clone(busy));
        let past = self.past.clone();
        let claim = move || {
            let _busy = busy;
            let before = past.as_ref().and_then(|past| past.number_of(&tree, &sandbox.instance.key));
            let claim = tree.claim(&sandbox.instance, sandbox.state().ids)?;
            if let Claim::Made(number) = claim {
                if let (Some(past), Some(before)) = (&past, before) {
                    past.group_is_gone(before);
                }
                // Noted here and not by the caller, who may have gone: what is not noted is not deleted.
                sandbox.change(|state| {
                    state.group = Some(number);
                    state.stage = Stage::Prepared;
                });
            }
            Ok(claim)
        };
        self.workers.run(claim).await?
    }
}

/// Starts a life that was created.
///
/// It runs to its end even if the future is dropped, so that a child which was born meanwhile is known, and ended by
/// `delete`.
pub(super) async fn start(inner: &Arc<Inner>, instance: &Arc<Instance>) -> Result<Started, Error> {
    let sandbox = inner.lives.get(instance.life).ok_or_else(not_created)?;
    let inner = Arc::clone(inner);
    let task = tokio::spawn(async move { inner.start(&sandbox).await });
    task.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "start", "its task ended").caused_by(error))
    })
}

fn not_created() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "start", "it was not created")
}

impl Inner {
    async fn start(&self, sandbox: &Arc<Sandbox>) -> Result<Started, Error> {
        let _busy = sandbox.acquire().await;
        sandbox.check_not_ending("start")?;
        match sandbox.state().stage {
            Stage::New => return Err(not_created()),
            Stage::Prepared => {}
            Stage::Running(leader) => return Ok(self.started(sandbox, &leader)),
            Stage::Ended(exit, _) => {
                return Err(Error::new(ErrorKind::FailedPrecondition, "start", format!("it has {exit}")));
            }
        }
        let zygotes = self.zygotes()?;
        // A file system that does not answer holds up the open, but not the end of the life: what is opened too late is
        // closed again.
        let (plan, files) = tokio::select! {
            opened = self.prepare(sandbox) => opened?,
            () = sandbox.until_ending() => return Err(sandbox.is_ending("start")),
        };
        sandbox.check_not_ending("start")?;
        let group = self.past.is_some().then(|| Arc::clone(&files.group));
        // Nor does a zygote that does not answer hold up the end: a child that comes too late is ended when it is told of.
        crate::failpoint::reach("linux.before-spawn");
        let spawned = tokio::select! {
            spawned = zygotes.spawn(&plan, files) => spawned,
            () = sandbox.until_ending() => return Err(sandbox.is_ending("start")),
        };
        crate::failpoint::reach("linux.after-spawn");
        // Once it is closed, another may have written there.
        if let Some(group) = group.filter(|_| self.check_open().is_ok()) {
            // Before its end is watched for, which is written in the same place.
            let noted = match &spawned {
                Ok(_) => mark::Stage::Running.write(&group),
                Err(_) => group::remove_attribute(&group, group::STAGE),
            };
            if let Err(error) = noted {
                tracing::debug!(sandbox = %sandbox.instance.key, %error, "how far it has come is not written on its cgroup");
            }
        }
        crate::failpoint::reach("linux.after-stage");
        let spawned = spawned?;
        if spawned.pid <= 1 {
            let found = format!("its leader has process ID {}", spawned.pid);
            return Err(Error::new(ErrorKind::Internal, "start", found));
        }
        let (pid, pidfd, zygote) = (spawned.pid, spawned.pidfd, spawned.zygote);
        let leader = Arc::new(Leader { pid, pidfd, zygote: Some(zygote), ended_unseen: false });
        sandbox.change(|state| state.stage = Stage::Running(Arc::clone(&leader)));
        if let Err(error) = self.exits.watch(sandbox.instance.life, &leader) {
            // Not known to run, since nobody would hear of its end.
            sandbox.change(|state| state.stage = Stage::Prepared);
            let _ = rustix::process::pidfd_send_signal(&leader.pidfd, rustix::process::Signal::KILL);
            while !leader.has_ended() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            zygotes.reap(zygote, pid);
            return Err(kernel_error("start", "the watch for its end", error));
        }
        Ok(self.started(sandbox, &leader))
    }

    /// Opens everything that the spawn needs.
    async fn prepare(&self, sandbox: &Arc<Sandbox>) -> Result<(Plan, Files), Error> {
        let (tree, sandbox) = (Arc::clone(&self.tree), Arc::clone(sandbox));
        let workers = if names_paths(&sandbox.instance.spec) { &self.openers } else { &self.workers };
        let (networks, logs) = (Arc::clone(&self.networks), self.logs.clone());
        let stays = self.past.is_some();
        let ids = self.id_map(&sandbox);
        let off_limits = Arc::clone(&self.off_limits);
        let open = move || {
            let instance = &sandbox.instance;
            let number = sandbox.state().group;
            let group = number.and_then(|number| tree.open(&instance.key, number).transpose()).transpose();
            let group = group
                .map_err(|error| kernel_error("start", "its cgroup", error))?
                .ok_or_else(group_is_gone)?;
            let is_one_user = ids.is_some_and(|ids| ids.one_user);
            let (given, network) = match &instance.spec.network {
                // The host could give none. Made with the sandbox, it belongs to it.
                Network::New if is_one_user => (PlanNetwork::Fresh, None),
                Network::New => (PlanNetwork::Given, Some(Arc::new(networks.take()?))),
                Network::Join(path) => (PlanNetwork::Given, Some(Arc::new(netns::open(path)?))),
                // Without the filter that keeps sockets from being made, sandboxes that share a namespace could meet in it.
                Network::None if instance.spec.isolation.no_seccomp => (PlanNetwork::Fresh, None),
                // The zygotes' own, which is empty.
                Network::None => (PlanNetwork::Host, None),
            };
            let off_limits = off_limits.of(&instance.spec);
            let covered = off_limits.cover(instance)?;
            let mut plan = Plan::new(&covered, ids, given)?;
            off_limits.check(&covered.spec, &plan)?;
            // Nobody waits for what comes too late, and another life may have this name by now, here or with the next backend.
            let check = || {
                sandbox.check_not_ending("start")?;
                let there = number.map(|number| tree.open(&instance.key, number));
                if matches!(there, Some(Ok(Some(_)))) { Ok(()) } else { Err(group_is_gone()) }
            };
            plan.stdio.extend(log::make_slots(logs.as_deref(), instance, &check)?);
            if stays {
                // Before anybody is asked: whoever finds it so looks for a process.
                mark::Stage::Starting
                    .write(&group)
                    .map_err(|error| kernel_error("start", "its cgroup", error))?;
            }
            let ids = sandbox.state().ids.unwrap_or(0);
            let child = Child { life: instance.life.0, group: number.unwrap_or(0), pid: 0, ids };
            Ok((plan, Files { group: Arc::new(group), child, network }))
        };
        workers.run(open).await?
    }
}

fn group_is_gone() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "start", "its cgroup was removed by another")
        .remedy("delete it, and create it again")
}

/// Whether a start opens paths that somebody else chose.
fn names_paths(spec: &SandboxSpec) -> bool {
    let stdio = spec.process.as_ref().map(|process| &process.stdio);
    matches!(spec.root, RootFs::Directory { .. })
        || matches!(spec.network, Network::Join(_))
        || !spec.mounts.is_empty()
        || stdio.is_some_and(|stdio| *stdio != Stdio::default())
}

impl Inner {
    /// The ordinary user that this program is, if it is one.
    pub(super) fn one_user(&self) -> Option<&OneUser> {
        self.machine.rights.one_user()
    }

    /// The IDs of a life; nothing for the host's own.
    pub(super) fn id_map(&self, sandbox: &Sandbox) -> Option<IdMap> {
        if let Some(user) = self.one_user() {
            return Some(IdMap::of_one_user(user.uid));
        }
        match sandbox.instance.spec.isolation.users {
            Users::Allocated => {
                let ids = sandbox.state().ids;
                ids.map(|host_start| IdMap { host_start, count: BLOCK, one_user: false })
            }
            Users::Mapped { host_start, count } => Some(IdMap { host_start, count, one_user: false }),
            Users::Host => None,
        }
    }

    /// What is said of a life that runs.
    pub(super) fn started(&self, sandbox: &Sandbox, leader: &Leader) -> Started {
        let isolation = isolation_in_force(&sandbox.instance.spec, self.id_map(sandbox).as_ref());
        Started { pid: leader.pid, endpoint: None, isolation }
    }
}
