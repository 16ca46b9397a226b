//! The logs of main processes: a directory for each sandbox, in it the two slots that its init writes.
//!
//! The init goes on writing while this program is down, so nothing is known here but what the files say. A reader takes them
//! for what they are, files that somebody writes at the same time: it reads a slot's header before and after the slot, and
//! believes what lies between only if both are the same. See `log_format.rs`, `init/log.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::log_format::{KEY_BYTES, LEAST_LOG_BYTES, MOST_LOG_BYTES, SLOT_HEADER, SlotHeader};
use super::sandbox::Sandbox;
use super::{Inner, LinuxRuntime, kernel_error, log_reader, plan};
use crate::error::{Error, ErrorKind};
use crate::id::SandboxKey;
use crate::runtime::{Instance, LogPage};
use crate::spec::SandboxSpec;

/// The slots in the directory of a sandbox.
pub(super) const SLOTS: [&str; 2] = ["0", "1"];

/// Where the logs are.
pub(super) struct Logs {
    dir: PathBuf,
    /// Held while a sandbox's directory is made or removed.
    changing: Mutex<()>,
}

impl Logs {
    /// Makes the directory, if it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|error| {
            kernel_error("set up the linux backend", format!("the log directory {}", dir.display()), error)
        })?;
        Ok(Self { dir: dir.to_owned(), changing: Mutex::new(()) })
    }

    /// Opened anew each time: whoever cleans up may have removed it.
    fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.dir, flags, Mode::empty())?)
    }

    /// Makes fresh files for a life, and opens them for its init, unless `check` finds that the life is over.
    ///
    /// What comes before may have been held up by a file system for any time, so that meanwhile the life was ended and another
    /// of this name begun, which writes here. It is asked with the lock held: who ends a life removes its log under it.
    fn make(
        &self,
        instance: &Instance,
        log_bytes: u64,
        check: &dyn Fn() -> Result<(), Error>,
    ) -> Result<[OwnedFd; 2], Error> {
        let _changing = self.changing.lock();
        check()?;
        self.make_files(instance, log_bytes).map_err(|error| failed("start", error))
    }

    fn make_files(&self, instance: &Instance, log_bytes: u64) -> io::Result<[OwnedFd; 2]> {
        let root = self.root()?;
        let name = instance.key.file_name(255);
        match rustix::fs::mkdirat(&root, &name, Mode::from(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let dir = open_dir(&root, &name)?.ok_or(Errno::NOENT)?;
        let mut key = [0; KEY_BYTES];
        let text = instance.key.as_str().as_bytes();
        key.get_mut(..text.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(text);
        let header = SlotHeader {
            life: instance.life.0,
            slot_bytes: log_bytes / 2,
            first: 0,
            key_length: text.len() as u32,
            key,
        };
        for slot in SLOTS {
            remove_file(&dir, slot)?;
        }
        let make = |slot| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, slot, flags, Mode::from(0o640))
        };
        let slots = [make(SLOTS[0])?, make(SLOTS[1])?];
        rustix::io::pwrite(&slots[0], &header.encode(), 0)?;
        crate::failpoint::reach("linux.after-log");
        Ok(slots)
    }

    /// The open slots of a sandbox; nothing where it has no log.
    fn slots(&self, key: &SandboxKey) -> io::Result<Vec<OwnedFd>> {
        match open_dir(self.root()?, &key.file_name(255))? {
            Some(dir) => open_slots(&dir),
            None => Ok(Vec::new()),
        }
    }

    /// Removes the log of a life, but not that of a later one.
    fn remove(&self, instance: &Instance) -> io::Result<()> {
        let _changing = self.changing.lock();
        let root = match self.root() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            root => root?,
        };
        let name = instance.key.file_name(255);
        let Some(dir) = open_dir(&root, &name)? else { return Ok(()) };
        let later = headers(&open_slots(&dir)?).any(|header| header.life > instance.life.0);
        if later { Ok(()) } else { remove_dir(&root, &name, &dir) }
    }

    /// Removes the logs of sandboxes that nobody has a record of. How many those were.
    fn remove_except(&self, known: &(dyn Fn(&SandboxKey) -> bool + Send + Sync)) -> io::Result<usize> {
        let root = self.root()?;
        let mut removed = 0;
        for entry in rustix::fs::Dir::read_from(&root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let _changing = self.changing.lock();
            let Some(dir) = open_dir(&root, name)? else { continue };
            // A directory whose owner cannot be told is not ours.
            if let Some(key) = owner(name, &dir)?
                && !known(&key)
            {
                remove_dir(&root, name, &dir)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Whose log a directory is: by its name, or where that is a digest by what its files say.
fn owner(name: &str, dir: &OwnedFd) -> io::Result<Option<SandboxKey>> {
    if let Some(key) = SandboxKey::from_file_name(name) {
        return Ok(Some(key));
    }
    let key = headers(&open_slots(dir)?).find_map(|header| {
        let (namespace, id) = std::str::from_utf8(header.key()).ok()?.split_once('/')?;
        SandboxKey::new(namespace, id).ok()
    });
    Ok(key.filter(|key| key.file_name(255) == name))
}

/// Opens a directory below another; nothing for what is not there, or is no directory.
fn open_dir(parent: impl AsFd, name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens the slots that are there and are plain files.
fn open_slots(dir: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut slots = Vec::with_capacity(2);
    for name in SLOTS {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(slot)
                if FileType::from_raw_mode(rustix::fs::fstat(&slot)?.st_mode) == FileType::RegularFile =>
            {
                slots.push(slot);
            }
            Ok(_) | Err(Errno::NOENT | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(slots)
}

fn headers(slots: &[OwnedFd]) -> impl Iterator<Item = SlotHeader> {
    slots.iter().filter_map(header)
}

/// The header of a slot; nothing if there is none, or it is being written at this moment.
pub(super) fn header(slot: &OwnedFd) -> Option<SlotHeader> {
    let mut bytes = [0; SLOT_HEADER];
    match rustix::io::pread(slot, &mut bytes, 0) {
        Ok(SLOT_HEADER) => SlotHeader::decode(&bytes),
        _ => None,
    }
}

fn remove_file(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_dir(root: &OwnedFd, name: &str, dir: &OwnedFd) -> io::Result<()> {
    for slot in SLOTS {
        remove_file(dir, slot)?;
    }
    match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the files that the init of a life with a log writes, unless `check` refuses; none for a life without. Blocks.
pub(super) fn make_slots(
    logs: Option<&Logs>,
    instance: &Instance,
    check: &dyn Fn() -> Result<(), Error>,
) -> Result<Vec<OwnedFd>, Error> {
    let log_bytes = instance.spec.process.as_ref().and_then(|process| process.stdio.log_bytes);
    let (Some(log_bytes), Some(logs)) = (log_bytes, logs) else { return Ok(Vec::new()) };
    Ok(logs.make(instance, log_bytes, check)?.into())
}

fn failed(tried: &'static str, error: io::Error) -> Error {
    kernel_error(tried, "the files of its log", error)
}

const READ: &str = "read the log of";

impl Inner {
    /// Refuses a spec whose log could not be kept here.
    pub(super) fn check_log(&self, spec: &SandboxSpec) -> Result<(), Error> {
        let log_bytes = spec.process.as_ref().and_then(|process| process.stdio.log_bytes);
        let Some(log_bytes) = log_bytes else { return Ok(()) };
        let refuse = |kind, found: String| Err(Error::new(kind, "keep a log of", found));
        if !(LEAST_LOG_BYTES..=MOST_LOG_BYTES).contains(&log_bytes) {
            let found = format!(
                "it is to have {log_bytes} bytes; {LEAST_LOG_BYTES} to {MOST_LOG_BYTES} are possible"
            );
            return refuse(ErrorKind::InvalidArgument, found);
        }
        if spec.isolation.no_init {
            let found = "its init writes it, and it is to have none".to_owned();
            return refuse(ErrorKind::InvalidArgument, found);
        }
        if self.logs.is_none() {
            let found = "this backend has no place for logs".to_owned();
            return refuse(ErrorKind::FailedPrecondition, found)
                .map_err(|error| error.remedy("set LinuxConfig::log_dir, or leave log_bytes out"));
        }
        Ok(())
    }

    /// Reads a page of a log.
    pub(super) async fn read_log(
        &self,
        instance: &Arc<Instance>,
        from: u64,
        most_bytes: usize,
    ) -> Result<LogPage, Error> {
        let Some(logs) = self.logs.clone().filter(|_| plan::keeps_log(&instance.spec)) else {
            return Err(Error::new(ErrorKind::FailedPrecondition, READ, "none is kept")
                .remedy("set log_bytes in the stdio of its process"));
        };
        let instance = Arc::clone(instance);
        let read = move || {
            let slots = logs.slots(&instance.key).map_err(|error| failed(READ, error))?;
            log_reader::page(&slots, instance.life.0, from, most_bytes).map_err(|error| failed(READ, error))
        };
        self.openers.run(read).await?
    }

    /// Removes the log of a life, if there is one.
    pub(super) async fn remove_log(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        let Some(logs) = self.logs.clone() else { return Ok(()) };
        let instance = Arc::clone(instance);
        let remove = move || logs.remove(&instance).map_err(|error| failed("delete", error));
        self.openers.run(remove).await?
    }

    /// Removes the logs of lives that end with this backend: nobody can ask for them any more. Blocks.
    pub(super) fn remove_logs_of(&self, sandboxes: &[Arc<Sandbox>]) {
        let Some(logs) = &self.logs else { return };
        for sandbox in sandboxes {
            if let Err(error) = logs.remove(&sandbox.instance) {
                tracing::warn!(sandbox = %sandbox.instance.key, %error, "its log is left behind");
            }
        }
    }
}

impl LinuxRuntime {
    /// Removes the logs of sandboxes that are not `known`, such as one of which nothing else was left when its supervisor was
    /// killed. Says how many those were. For recovery, when all records have been read; it blocks.
    ///
    /// A log whose sandbox cannot be told is left alone, and so is whatever else is in the directory.
    ///
    /// # Errors
    /// As the kernel says of the directory.
    pub fn remove_logs_except(
        &self,
        known: &(dyn for<'a> Fn(&'a SandboxKey) -> bool + Send + Sync),
    ) -> Result<usize, Error> {
        let inner = &self.inner;
        let Some(logs) = &inner.logs else { return Ok(0) };
        let has_group = |key: &SandboxKey| !matches!(inner.tree.open_named(&key.file_name(255)), Ok(None));
        // Where there is a group there may be processes, whoever knows of them.
        let keep = |key: &SandboxKey| known(key) || has_group(key);
        logs.remove_except(&keep).map_err(|error| failed("clear logs", error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Scratch, instance};
    use super::*;
    use crate::model::Life;
    use crate::spec::ProcessSpec;

    fn life_of(id: &str, life: u64) -> Arc<Instance> {
        let key = SandboxKey::new("default", id).unwrap();
        struct Deaf;
        impl crate::runtime::Observer for Deaf {
            fn exited(&self, _: Life, _: crate::model::Exit, _: bool) {}
        }
        Instance::new(key, Life(life), Arc::new(SandboxSpec::default()), Arc::new(Deaf))
    }

    /// Goal: at recovery the logs of unknown sandboxes go, those of known ones stay, and so does what is not ours. Method: names
    /// that fit into a directory's and one that does not, a stray file, and a directory of somebody else's.
    #[test]
    fn logs_that_nobody_knows_are_removed_and_nothing_else() {
        let scratch = Scratch::new();
        let logs = Logs::open(&scratch.0).unwrap();
        let long = "n".repeat(76);
        let lives = [life_of("known", 1), life_of("lost", 2), life_of(&long, 3)];
        for life in &lives {
            logs.make(life, 1 << 20, &|| Ok(())).unwrap();
        }
        std::fs::write(scratch.0.join("stray"), "").unwrap();
        std::fs::create_dir(scratch.0.join("foreign")).unwrap();
        let removed = logs.remove_except(&|key| *key == lives[0].key).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!((removed, left), (2, ["default@known", "foreign", "stray"].map(Into::into).to_vec()));
        // Of a life that is not the one in it, only an earlier one's is removed.
        logs.remove(&life_of("known", 0)).unwrap();
        assert_eq!(logs.slots(&lives[0].key).unwrap().len(), 2);
        logs.remove(&life_of("known", 2)).unwrap();
        logs.remove(&lives[1]).unwrap();
        assert!(logs.slots(&lives[0].key).unwrap().is_empty());
    }

    /// Goal: whoever comes too late makes nothing and removes nothing. Method: a life that is over makes its log once there is
    /// none, and once there is that of the next life.
    #[test]
    fn a_life_that_is_over_makes_no_log() {
        let scratch = Scratch::new();
        let logs = Logs::open(&scratch.0).unwrap();
        let (late, next) = (life_of("x", 1), life_of("x", 2));
        let over = || Err(Error::new(ErrorKind::Aborted, "start", "it is being ended"));
        assert_eq!(logs.make(&late, 1 << 20, &over).unwrap_err().kind(), ErrorKind::Aborted);
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 0, "not even a directory");
        let [slot, _] = logs.make(&next, 1 << 20, &|| Ok(())).unwrap();
        logs.make(&late, 1 << 20, &over).unwrap_err();
        let same = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(same(&logs.slots(&next.key).unwrap()[0]), same(&slot), "the next life's are left alone");
    }

    #[test]
    fn a_log_is_asked_for_by_its_process_only() {
        let mut spec =
            SandboxSpec { process: Some(ProcessSpec::new(["/bin/true"])), ..SandboxSpec::default() };
        assert!(make_slots(None, &instance(spec.clone()), &|| Ok(())).unwrap().is_empty());
        assert!(!plan::keeps_log(&spec));
        spec.process.as_mut().unwrap().stdio.log_bytes = Some(LEAST_LOG_BYTES);
        assert!(plan::keeps_log(&spec));
    }
}
