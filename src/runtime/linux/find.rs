//! Finds a life again that an earlier backend on the same state has begun.
//!
//! ```text
//! a zygote has a child of that life    its number is its own until the zygote reaps it, which is when we say so
//! its group says that it is for it     the leader is the process in it that is PID 1 one PID namespace below ours
//! ```
//! A number alone never stands for a process: it is opened as a pidfd first, and then it is made sure that what was opened is
//! what was meant, and still runs.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::config::AdoptBy;
use super::mark::{self, Mark};
use super::past::Past;
use super::protocol::{Child, SETUP_NAME, ZYGOTE_NAME};
use super::sandbox::{Leader, Sandbox, Stage, State};
use super::zygote::ZygoteId;
use super::{Inner, freeze, group, kernel_error, sys};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason, Life};
use crate::runtime::{Instance, Reality, Survivor};

/// The pause between two looks at what is changing.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a reattach waits until an end that it has found is told.
const TELLING: Duration = Duration::from_secs(5);

/// What a look came to.
enum Looked {
    /// Nothing is there.
    Absent,
    /// It is known from now on; and whether it is frozen, if that was seen on the way.
    Known(Arc<Sandbox>, Option<bool>),
    /// It is being set up by this process.
    SettingUp(OwnedFd),
    /// It is coming to its end. Look again.
    Ending,
}

/// What becomes of a life that is still being set up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unready {
    Wait,
    End,
}

impl Inner {
    /// A life that is known, or is found again.
    pub(super) async fn find(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
    ) -> Result<Option<Arc<Sandbox>>, Error> {
        Ok(self.find_and(instance, Unready::Wait).await?.map(|(sandbox, _)| sandbox))
    }

    /// As [`find`](Self::find), for who wants it to end: one whose set-up is not done is ended, and then only prepared.
    pub(super) async fn find_to_end(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
    ) -> Result<Option<Arc<Sandbox>>, Error> {
        Ok(self.find_and(instance, Unready::End).await?.map(|(sandbox, _)| sandbox))
    }

    async fn find_and(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
        unready: Unready,
    ) -> Result<Option<(Arc<Sandbox>, Option<bool>)>, Error> {
        loop {
            if let Some(sandbox) = self.lives.get(instance.life) {
                return Ok(Some((sandbox, None)));
            }
            let Some(past) = self.past.clone() else { return Ok(None) };
            self.check_open()?;
            let (inner, wanted) = (Arc::clone(self), Arc::clone(instance));
            match self.workers.run(move || inner.look(&past, &wanted)).await?? {
                Looked::Absent => return Ok(self.lives.get(instance.life).map(|sandbox| (sandbox, None))),
                Looked::Known(sandbox, frozen) => return Ok(Some((sandbox, frozen))),
                Looked::SettingUp(pidfd) if unready == Unready::End => {
                    // An error means that it has ended by itself.
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                }
                Looked::SettingUp(_) | Looked::Ending => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What exists of a life.
    pub(super) async fn reality(self: &Arc<Self>, instance: &Arc<Instance>) -> Result<Reality, Error> {
        let found = self.find_and(instance, Unready::Wait).await?;
        let Some((sandbox, frozen)) = found else { return Ok(Reality::Absent) };
        if sandbox.running().is_some_and(|leader| leader.ended_unseen) {
            sandbox.told_within(TELLING).await;
        }
        Ok(match sandbox.state().stage {
            Stage::New => Reality::Absent,
            Stage::Prepared => Reality::Created,
            Stage::Ended(exit, _) => Reality::Ended(exit),
            Stage::Running(leader) => {
                let tree = Arc::clone(&self.tree);
                let started = self.started(&sandbox, &leader);
                let frozen = match frozen {
                    Some(frozen) => frozen,
                    None => self.workers.run(move || freeze::is_frozen(&tree, &sandbox)).await?,
                };
                Reality::Running { started, frozen }
            }
        })
    }

    /// Looks once. Blocks.
    fn look(&self, past: &Past, instance: &Arc<Instance>) -> Result<Looked, Error> {
        let failed = |error: std::io::Error| kernel_error("find out about", "its cgroup", error);
        let group = self.tree.open_named(&instance.key.file_name(255)).map_err(failed)?;
        let number = group.as_ref().map(group::number).transpose().map_err(failed)?;
        let child = past.child(instance.life);
        let (Some(group), Some(number)) = (group, number) else {
            // Nothing can be in a group that is gone.
            past.discard(instance.life);
            return Ok(Looked::Absent);
        };
        let born_there = child.is_some_and(|(_, child)| child.group == number);
        if !born_there {
            let mark = Mark::of(&group);
            if mark.is_none_or(|mark| mark.key != instance.key || mark.life != instance.life) {
                past.discard(instance.life);
                return Ok(Looked::Absent);
            }
        }
        let stage = match mark::Stage::of(&group) {
            Some(mark::Stage::Ended(exit)) => Stage::Ended(exit, None),
            written => {
                let child = child.filter(|_| born_there && past.by == AdoptBy::Best);
                let found = match child {
                    Some((zygote, child)) => self.leader_of_zygote(instance, zygote, child, written)?,
                    None => Found::Nobody,
                };
                match found {
                    Found::Nobody => match self.leader_in_group(instance, &group, written)? {
                        Ok(stage) => stage,
                        Err(unready) => return Ok(unready),
                    },
                    Found::Leader(leader) => Stage::Running(Arc::new(leader)),
                    Found::SettingUp(pidfd) => return Ok(Looked::SettingUp(pidfd)),
                    Found::NeverRan => {
                        past.discard(instance.life);
                        group::remove_attribute(&group, group::STAGE).map_err(failed)?;
                        Stage::Prepared
                    }
                }
            }
        };
        let frozen = matches!(stage, Stage::Running(_)).then(|| group::is_frozen(&group).unwrap_or(false));
        let state = State { group: Some(number), ids: past.ids(number), stage };
        Ok(match self.enter_found(past, instance, state)? {
            Some(sandbox) => Looked::Known(sandbox, frozen),
            // Another has been quicker.
            None => {
                self.lives.get(instance.life).map_or(Looked::Ending, |sandbox| Looked::Known(sandbox, None))
            }
        })
    }

    /// Makes a life known that was found, and watches for its end; nothing if it is known already.
    fn enter_found(
        &self,
        past: &Past,
        instance: &Arc<Instance>,
        state: State,
    ) -> Result<Option<Arc<Sandbox>>, Error> {
        let (number, stage) = (state.group.unwrap_or(0), state.stage.clone());
        let Some(sandbox) = self.lives.enter_found(instance, state) else { return Ok(None) };
        match stage {
            Stage::Running(leader) => {
                if let Err(error) = self.exits.watch(instance.life, &leader) {
                    // Not known, since nobody would hear of its end.
                    self.lives.remove(instance.life);
                    return Err(kernel_error("find out about", "the watch for its end", error));
                }
                past.take(instance.life, number);
            }
            Stage::Ended(exit, _) => {
                past.discard(instance.life);
                past.take(instance.life, number);
                instance.exited(exit, true);
                sandbox.told();
            }
            Stage::New | Stage::Prepared => drop(past.take(instance.life, number)),
        }
        Ok(Some(sandbox))
    }

    /// The leader, if it is an unreaped child of this zygote.
    fn leader_of_zygote(
        &self,
        instance: &Instance,
        zygote: ZygoteId,
        child: Child,
        written: Option<mark::Stage>,
    ) -> Result<Found, Error> {
        let zygotes = self.zygotes()?;
        let Some(pidfd) = open(child.pid)? else { return Ok(Found::Nobody) };
        // A zygote reaps when it is told to, and this child's turn has not come. Were it gone, its children might be reaped by
        // another, and their numbers be others'.
        if !zygotes.lives(zygote) {
            return Ok(Found::Nobody);
        }
        let ended = sys::is_readable(&pidfd);
        let leader = Leader { pid: child.pid, zygote: Some(zygote), pidfd, ended_unseen: ended };
        Ok(self.judge_set_up(instance, leader, written))
    }

    /// The leader in this group, or what else can be said.
    fn leader_in_group(
        &self,
        instance: &Instance,
        group: &OwnedFd,
        written: Option<mark::Stage>,
    ) -> Result<Result<Stage, Looked>, Error> {
        let failed = |error: std::io::Error| kernel_error("find out about", "its cgroup", error);
        for pid in group::processes(group).map_err(failed)? {
            if !is_leader(pid) {
                continue;
            }
            let Some(pidfd) = open(pid)? else { continue };
            let there = group::processes(group).map_err(failed)?.contains(&pid) && is_leader(pid);
            if !there || sys::is_readable(&pidfd) {
                return Ok(Err(Looked::Ending));
            }
            // Its parent, if it is one of our zygotes, is to reap it.
            let child = self.past.as_ref().and_then(|past| past.child(instance.life));
            let zygote = child.filter(|(_, child)| child.pid == pid).map(|(zygote, _)| zygote);
            let leader = Leader { pid, zygote, pidfd, ended_unseen: false };
            return Ok(match self.judge_set_up(instance, leader, written) {
                Found::Leader(leader) => Ok(Stage::Running(Arc::new(leader))),
                Found::SettingUp(pidfd) => Err(Looked::SettingUp(pidfd)),
                Found::NeverRan | Found::Nobody => Err(Looked::Ending),
            });
        }
        if group::is_populated(group).map_err(failed)? {
            // Without its leader it is over.
            group::kill(group).map_err(failed)?;
            return Ok(Err(Looked::Ending));
        }
        if written != Some(mark::Stage::Running) {
            group::remove_attribute(group, group::STAGE).map_err(failed)?;
            return Ok(Ok(Stage::Prepared));
        }
        Ok(Ok(Stage::Ended(Exit { reason: ExitReason::Lost, at_unix_nanos: 0 }, None)))
    }

    /// Tells a leader that is still being set up, or has ended in it, from one that has come further.
    fn judge_set_up(&self, instance: &Instance, leader: Leader, written: Option<mark::Stage>) -> Found {
        if written == Some(mark::Stage::Running) {
            return Found::Leader(leader);
        }
        let names = [SETUP_NAME.to_bytes(), ZYGOTE_NAME.to_bytes()];
        let is_setting_up = sys::process_name(leader.pid).is_some_and(|name| names.contains(&&*name));
        // Who is executed as PID 1 may take what name it likes; what it executes is its own.
        let is_other = instance.spec.isolation.no_init && (leader.has_ended() || !sys::runs_init(leader.pid));
        match (is_setting_up && !is_other, leader.has_ended()) {
            (false, _) => Found::Leader(leader),
            (true, false) => Found::SettingUp(leader.pidfd),
            (true, true) => Found::NeverRan,
        }
    }
}

/// What was found of a leader.
enum Found {
    Nobody,
    Leader(Leader),
    SettingUp(OwnedFd),
    /// It has ended before it was set up.
    NeverRan,
}

fn open(pid: u32) -> Result<Option<OwnedFd>, Error> {
    let number = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    let Some(number) = number else { return Ok(None) };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(kernel_error("find out about", "its leader", error.into())),
    }
}

/// Whether it is PID 1 of a PID namespace right below ours. One that a sandbox has made itself lies deeper.
fn is_leader(pid: u32) -> bool {
    let (Some(own), Some(its)) = (sys::pids_in_namespaces("self"), sys::pids_in_namespaces(&pid.to_string()))
    else {
        return false;
    };
    its.len() == own.len() + 1 && its.last() == Some(&1)
}

impl Inner {
    /// Removes what an earlier life of this key, or this one, has left in its group, where nobody knows of it any more.
    pub(super) async fn clear_unknown(self: &Arc<Self>, instance: &Arc<Instance>) -> Result<(), Error> {
        let (key, life) = (instance.key, instance.life);
        self.clear_group(key, "end", move |inner, mark| match mark {
            Some(mark) => mark.life <= life && inner.lives.get(mark.life).is_none(),
            None => true,
        })
        .await
    }

    /// Kills and removes a key's group as long as it carries our mark and `is_meant`.
    async fn clear_group(
        self: &Arc<Self>,
        key: SandboxKey,
        tried: &'static str,
        is_meant: impl Fn(&Inner, Option<Mark>) -> bool + Clone + Send + 'static,
    ) -> Result<(), Error> {
        loop {
            let (inner, is_meant) = (Arc::clone(self), is_meant.clone());
            let step = move || -> std::io::Result<bool> {
                let Some(group) = inner.tree.open_named(&key.file_name(255))? else { return Ok(true) };
                let mark = Mark::of(&group).filter(|mark| mark.key == key);
                if !group::is_marked(&group) || !is_meant(&inner, mark) {
                    return Ok(true);
                }
                let number = group::number(&group)?;
                if group::is_populated(&group)? {
                    group::kill(&group)?;
                    return Ok(false);
                }
                let gone = inner.tree.remove(&key, number)?;
                if gone && let Some(past) = &inner.past {
                    past.group_is_gone(number);
                }
                Ok(gone)
            };
            let done = self.workers.run(step).await?;
            if done.map_err(|error| kernel_error(tried, "its cgroup", error).on(&key))? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Every group of ours whose key and life are not known.
    pub(super) async fn list_survivors(
        self: &Arc<Self>,
        known: &(dyn for<'a> Fn(&'a SandboxKey, Life) -> bool + Send + Sync),
    ) -> Result<Vec<Survivor>, Error> {
        let failed = |error| kernel_error("list what is left", "the cgroups", error);
        if self.past.is_none() {
            return Ok(Vec::new());
        }
        let inner = Arc::clone(self);
        let list = move || inner.tree.groups();
        let groups = self.workers.run(list).await?.map_err(failed)?;
        // Whoever makes a name that is no key's is not one of ours. To read of which life each is takes longer than all else.
        let keys = groups.iter().filter_map(|(_, name)| SandboxKey::from_file_name(name));
        let unsure: Vec<SandboxKey> = keys.filter(|key| !known(key, Life(u64::MAX))).collect();
        if unsure.is_empty() {
            return Ok(Vec::new());
        }
        let inner = Arc::clone(self);
        let find = move || {
            let lives = unsure.iter().map(|key| Ok(inner.life_in_group(key)?.map(|life| (*key, life))));
            lives.filter_map(std::io::Result::transpose).collect::<std::io::Result<Vec<_>>>()
        };
        let found = self.workers.run(find).await?.map_err(failed)?;
        let unknown: Vec<SandboxKey> =
            found.into_iter().filter(|(key, life)| !known(key, *life)).map(|(key, _)| key).collect();
        let inner = Arc::clone(self);
        let describe = move || {
            let survivors = unknown.iter().filter_map(|key| inner.describe_survivor(key).transpose());
            survivors.collect::<std::io::Result<Vec<_>>>()
        };
        self.workers.run(describe).await?.map_err(failed)
    }

    /// The life that a key's group is for, as its mark says: 0 if that cannot be read. Nothing if there is no group of ours.
    fn life_in_group(&self, key: &SandboxKey) -> std::io::Result<Option<Life>> {
        let group = self.tree.open_named(&key.file_name(255))?.filter(|group| group::is_marked(group));
        Ok(group
            .map(|group| Mark::of(&group).filter(|mark| mark.key == *key).map_or(Life(0), |mark| mark.life)))
    }

    fn describe_survivor(&self, key: &SandboxKey) -> std::io::Result<Option<Survivor>> {
        let name = key.file_name(255);
        let Some(group) = self.tree.open_named(&name)?.filter(|group| group::is_marked(group)) else {
            return Ok(None);
        };
        let mark = Mark::of(&group).filter(|mark| mark.key == *key);
        let life = mark.map_or(Life(0), |mark| mark.life);
        if self.lives.get(life).is_some() {
            return Ok(None);
        }
        let unreadable = if mark.is_none() { ", whose mark cannot be read" } else { "" };
        let keepsake = mark::keepsake(&group);
        let processes = group::describe_processes(&group).join(", ");
        let path = self.tree.path.join(&name);
        let description = format!("cgroup {}{unreadable}: [{processes}]", path.display());
        Ok(Some(Survivor { key: *key, life, keepsake, description }))
    }

    /// Ends and removes a survivor, and nothing that has come after it.
    pub(super) async fn end_survivor(self: &Arc<Self>, survivor: &Survivor) -> Result<(), Error> {
        let life = survivor.life;
        if self.lives.get(life).is_some() {
            let found = "it has been found again meanwhile";
            return Err(Error::new(ErrorKind::FailedPrecondition, "end", found)
                .on(&survivor.key)
                .remedy("shut it down"));
        }
        self.clear_group(survivor.key, "end", move |inner, mark| {
            mark.map_or(Life(0), |mark| mark.life) == life && inner.lives.get(life).is_none()
        })
        .await
    }
}
