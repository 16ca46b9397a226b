//! What there really is of the daemon's sandboxes: cgroups, processes, sockets, mounts and files, read from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The group of those who are no sandbox.
const ZYGOTES: &str = "zygotes";

/// A process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) zombie: bool,
    /// When it began, in ticks since the boot.
    pub(crate) began: u64,
    /// Its cgroup, from the mount point on.
    pub(crate) group: String,
    pub(crate) arguments: Vec<String>,
    /// Whether it is PID 1 of a namespace right below this one.
    pub(crate) is_leader: bool,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let dir = format!("/proc/{pid}");
        let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let groups = fs::read_to_string(format!("{dir}/cgroup")).ok()?;
        let group = groups
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?
            .trim_end_matches(" (deleted)")
            .to_owned();
        let arguments = fs::read(format!("{dir}/cmdline")).ok()?;
        let status = fs::read_to_string(format!("{dir}/status")).ok()?;
        let own_depth = 1;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            zombie: fields.first() == Some(&"Z"),
            began: fields.get(19)?.parse().ok()?,
            group,
            arguments: arguments
                .split(|byte| *byte == 0)
                .map(|text| String::from_utf8_lossy(text).into_owned())
                .collect(),
            is_leader: numbers.len() == own_depth + 1 && numbers.last() == Some(&"1"),
        })
    }

    /// All there are. Those that end meanwhile are left out.
    pub(crate) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter_map(Self::read).collect()
    }
}

/// One sandbox's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) frozen: bool,
    pub(crate) populated: bool,
}

/// All that was found at one time.
pub(crate) struct World {
    /// By the names of their directories.
    pub(crate) groups: BTreeMap<String, Group>,
    /// Those in the sandboxes' groups, by the group's name.
    pub(crate) inside: BTreeMap<String, Vec<Process>>,
    pub(crate) zygotes: Vec<Process>,
    /// Those of this run outside of any group of the daemon's.
    pub(crate) astray: Vec<Process>,
    /// Sockets of zygotes that somebody listens on, and those that nobody does.
    pub(crate) doors: Vec<String>,
    pub(crate) dead_doors: Vec<String>,
    /// Names in the state directory that name a sandbox.
    pub(crate) named_files: BTreeMap<String, PathBuf>,
    pub(crate) mounts: BTreeSet<String>,
}

/// Where to look.
pub(crate) struct Sight {
    pub(crate) state: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) token: String,
}

impl Sight {
    /// Where the root of the daemon's cgroups is; nothing if there is none yet.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.state.join("linux.root")).ok()?;
        Some(PathBuf::from(text.trim_end()))
    }

    pub(crate) fn look(&self, root: Option<&Path>) -> World {
        let mut world = World {
            groups: BTreeMap::new(),
            inside: BTreeMap::new(),
            zygotes: Vec::new(),
            astray: Vec::new(),
            doors: Vec::new(),
            dead_doors: Vec::new(),
            named_files: BTreeMap::new(),
            mounts: self.mounts(),
        };
        let processes = Process::all();
        for name in root.map(children).unwrap_or_default() {
            if name == ZYGOTES {
                continue;
            }
            let events = root.map(|root| fs::read_to_string(root.join(&name).join("cgroup.events")));
            let Some(Ok(events)) = events else { continue };
            let says = |what: &str| events.lines().any(|line| line == what);
            world.groups.insert(name, Group { frozen: says("frozen 1"), populated: says("populated 1") });
        }
        let mine = root.and_then(|root| root.file_name()).map(|name| format!("/{}/", name.to_string_lossy()));
        for process in processes {
            let below = mine
                .as_ref()
                .and_then(|mine| process.group.split_once(mine.as_str()))
                .map(|(_, below)| below);
            match below.map(|below| below.split('/').next().unwrap_or(below).to_owned()) {
                Some(name) if name == ZYGOTES => world.zygotes.push(process),
                Some(name) => world.inside.entry(name).or_default().push(process),
                None if process.arguments.contains(&self.token) => world.astray.push(process),
                None => {}
            }
        }
        // Children of zygotes that are in no group of ours.
        let zygotes: BTreeSet<u32> = world.zygotes.iter().map(|process| process.pid).collect();
        let is_known =
            |process: &Process| mine.as_ref().is_some_and(|mine| process.group.contains(mine.as_str()));
        let strays = Process::all()
            .into_iter()
            .filter(|process| zygotes.contains(&process.parent) && !is_known(process));
        world.astray.extend(strays);
        self.doors(&mut world);
        self.files(&self.state, &mut world);
        world
    }

    fn doors(&self, world: &mut World) {
        let listed = fs::read_to_string("/proc/net/unix").expect("it is always there");
        for name in
            children_files(&self.state.join("zygotes")).into_iter().filter(|name| name.ends_with(".sock"))
        {
            let is_open = listed.lines().any(|line| line.ends_with(&format!("/{name}")));
            if is_open { world.doors.push(name) } else { world.dead_doors.push(name) }
        }
    }

    fn files(&self, dir: &Path, world: &mut World) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(key) = name.split('.').next().filter(|name| name.contains('@')) {
                world.named_files.insert(key.to_owned(), entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.files(&entry.path(), world);
            }
        }
    }

    /// What is mounted from or on places of this run.
    fn mounts(&self) -> BTreeSet<String> {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("it is always there");
        let dir = self.dir.to_string_lossy().into_owned();
        text.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect()
    }
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn children_files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
