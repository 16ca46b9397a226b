//! What a daemon is told: by its command line, else by its configuration file, else by nobody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, ErrorKind};
use crate::keeper::OperationDeadlines;
use crate::surface::cli::Serve;
use crate::surface::places;
use crate::surface::spec_file::{Span, from_toml};

/// Where the configuration is looked for if nobody says.
const DEFAULT_FILE: &str = "/etc/sandkeeper/config.toml";
/// The longest path that a socket can have: `sun_path`, less its terminator.
const LONGEST_SOCKET: usize = 107;
/// The longest that a directory's path can be: `PATH_MAX`, less what is made below it.
const LONGEST_DIRECTORY: usize = 4_095 - 512;

/// The file. Its fields are named as the options are.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    socket_group: Option<Group>,
    log_format: Option<LogFormat>,
    log_level: Option<String>,
    log_dir: Option<PathBuf>,
    concurrent_starts: Option<usize>,
    max_sandboxes: Option<usize>,
    stopped_records: Option<usize>,
    id_start: Option<u32>,
    id_blocks: Option<u32>,
    ready_networks: Option<usize>,
    zygotes: Option<usize>,
    move_host_to_leaf: Option<bool>,
    shutdown_sandboxes: Option<bool>,
    shutdown_grace: Option<Span>,
    #[serde(default)]
    deadlines: Deadlines,
}

/// A group, by number or name.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a group's name or number")]
enum Group {
    Number(u32),
    Name(String),
}

/// How long the operations of a runtime may take.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deadlines {
    create: Option<Span>,
    start: Option<Span>,
    pause: Option<Span>,
    resume: Option<Span>,
    ask: Option<Span>,
    kill: Option<Span>,
    delete: Option<Span>,
    reattach: Option<Span>,
}

impl Deadlines {
    fn over(self, mut deadlines: OperationDeadlines) -> OperationDeadlines {
        let said = [
            (self.create, &mut deadlines.create),
            (self.start, &mut deadlines.start),
            (self.pause, &mut deadlines.pause),
            (self.resume, &mut deadlines.resume),
            (self.ask, &mut deadlines.ask),
            (self.kill, &mut deadlines.kill),
            (self.delete, &mut deadlines.delete),
            (self.reattach, &mut deadlines.reattach),
        ];
        for (span, deadline) in said {
            if let Some(Span(span)) = span {
                *deadline = span;
            }
        }
        deadlines
    }
}

/// How it logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// What it comes to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Config {
    pub(super) state_dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) socket_group: Option<u32>,
    pub(super) log_format: LogFormat,
    pub(super) log_level: String,
    pub(super) log_dir: PathBuf,
    pub(super) concurrent_starts: Option<usize>,
    pub(super) max_sandboxes: Option<usize>,
    pub(super) stopped_records: Option<usize>,
    pub(super) id_start: Option<u32>,
    pub(super) id_blocks: Option<u32>,
    pub(super) ready_networks: Option<usize>,
    pub(super) zygotes: Option<usize>,
    pub(super) move_host_to_leaf: bool,
    pub(super) shutdown_sandboxes: bool,
    #[serde(serialize_with = "grace")]
    pub(super) shutdown_grace: Option<Duration>,
    #[serde(serialize_with = "deadlines")]
    pub(super) deadlines: OperationDeadlines,
    /// Whether sandboxes exist in memory alone.
    #[serde(skip)]
    pub(super) in_memory: bool,
}

/// As the file has it.
fn text(span: Duration) -> String {
    format!("{span:?}").replace('µ', "u")
}

fn grace<S: Serializer>(grace: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    grace.map(text).serialize(serializer)
}

fn deadlines<S: Serializer>(deadlines: &OperationDeadlines, serializer: S) -> Result<S::Ok, S::Error> {
    let OperationDeadlines { create, start, pause, resume, ask, kill, delete, reattach } = deadlines;
    let named = [
        ("create", create),
        ("start", start),
        ("pause", pause),
        ("resume", resume),
        ("ask", ask),
        ("kill", kill),
        ("delete", delete),
        ("reattach", reattach),
    ];
    serializer.collect_map(named.map(|(name, span)| (name, text(*span))))
}

fn refuse(found: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, "begin with this configuration", found)
}

impl Config {
    /// Gathers it.
    ///
    /// # Errors
    /// `InvalidArgument`: the file cannot be read or is wrong, or something said makes no sense.
    pub(super) fn gather(said: &Serve, socket: Option<PathBuf>) -> Result<Self, Error> {
        let file = match &said.config {
            Some(path) => read(path)?,
            // The machine's daemon has it, and a user's own one nothing in common with that.
            None => match Path::new(DEFAULT_FILE) {
                path if path.exists() && places::own_state_dir().is_none() => read(path)?,
                _ => File::default(),
            },
        };
        Self::merge(said, socket, file)
    }

    fn merge(said: &Serve, socket: Option<PathBuf>, file: File) -> Result<Self, Error> {
        let state_dir = said.state_dir.clone().or(file.state_dir).unwrap_or_else(places::state_dir);
        let state_dir = absolute(&state_dir)?;
        let socket = socket.or(file.socket).map(|path| absolute(&path)).transpose()?;
        let log_dir = said.log_dir.clone().or(file.log_dir).map(|path| absolute(&path)).transpose()?;
        let socket_group = match (said.socket_group.as_deref(), file.socket_group) {
            (Some(name), _) => Some(group(name)?),
            (None, Some(Group::Number(number))) => Some(number),
            (None, Some(Group::Name(name))) => Some(group(&name)?),
            (None, None) => None,
        };
        let log_format = match said.log_format.as_deref() {
            Some("json") => LogFormat::Json,
            Some(_) => LogFormat::Text,
            None => file.log_format.unwrap_or(LogFormat::Text),
        };
        let positive = |name: &str, number: Option<usize>| match number {
            Some(0) => Err(refuse(format!("{name} is 0, which would let nothing happen"))),
            number => Ok(number),
        };
        let socket = socket.unwrap_or_else(|| state_dir.join(places::SOCKET));
        let log_dir = log_dir.unwrap_or_else(|| state_dir.join("logs"));
        fits("socket", &socket, LONGEST_SOCKET)?;
        fits("state_dir", &state_dir, LONGEST_DIRECTORY)?;
        fits("log_dir", &log_dir, LONGEST_DIRECTORY)?;
        let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
        Ok(Self {
            socket,
            log_dir,
            state_dir,
            socket_group,
            log_format,
            log_level: said.log_level.clone().or(file.log_level).unwrap_or_else(|| "info".to_owned()),
            concurrent_starts: positive(
                "concurrent_starts",
                said.concurrent_starts.or(file.concurrent_starts),
            )?,
            max_sandboxes: positive("max_sandboxes", said.max_sandboxes.or(file.max_sandboxes))?,
            stopped_records: said.stopped_records.or(file.stopped_records),
            id_start: said.id_start.or(file.id_start),
            id_blocks: said.id_blocks.or(file.id_blocks),
            ready_networks: said.ready_networks.or(file.ready_networks),
            zygotes: said.zygotes.or(file.zygotes),
            move_host_to_leaf: said.move_host_to_leaf.or(file.move_host_to_leaf).unwrap_or(managed),
            shutdown_sandboxes: said.shutdown_sandboxes || file.shutdown_sandboxes.unwrap_or(false),
            shutdown_grace: said.shutdown_grace.or(file.shutdown_grace.map(|Span(span)| span)),
            deadlines: file.deadlines.over(OperationDeadlines::default()),
            #[cfg(feature = "testing")]
            in_memory: said.test_runtime.is_some(),
            #[cfg(not(feature = "testing"))]
            in_memory: false,
        })
    }
}

fn read(path: &Path) -> Result<File, Error> {
    let tried = format!("read the configuration {}", path.display());
    let refuse = |found: String| Error::new(ErrorKind::InvalidArgument, tried.clone(), found);
    let text = std::fs::read_to_string(path)
        .map_err(|error| refuse("the system refuses".to_owned()).caused_by(error))?;
    from_toml(&text).map_err(|found| refuse(format!("{}:{found}", path.display())))
}

/// Refuses a path that would not do before anything is made, so that nothing fails for it later.
fn fits(name: &str, path: &Path, longest: usize) -> Result<(), Error> {
    let size = path.as_os_str().len();
    if size <= longest {
        return Ok(());
    }
    let found = format!("the path of {name}, {}, has {size} bytes; the limit is {longest}", path.display());
    Err(refuse(found).remedy("choose a state directory that is not as deep"))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| refuse(format!("{path:?} is no path")).caused_by(error))
}

/// The number of a group: as it stands, or as /etc/group has it.
fn group(name: &str) -> Result<u32, Error> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group")
        .map_err(|error| refuse(format!("the group {name:?} cannot be looked up")).caused_by(error))?;
    find_group(&groups, name).ok_or_else(|| {
        refuse(format!("there is no group {name:?} in /etc/group")).remedy("name another, or give its number")
    })
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn merged(said: Serve, file: &str) -> Result<Config, String> {
        let file = from_toml(file)?;
        Config::merge(&said, None, file).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let said = Serve { zygotes: Some(3), log_format: Some("json".into()), ..Serve::default() };
        let file = "state_dir = '/s'\nzygotes = 2\nstopped_records = 7\nlog_format = 'text'\nsocket_group = 5\n\
                    [deadlines]\nstart = '1m'";
        let config = merged(said, file).unwrap();
        assert_eq!((config.zygotes, config.stopped_records), (Some(3), Some(7)));
        assert_eq!(config.socket, Path::new("/s/sandkeeper.sock"));
        assert_eq!(config.log_dir, Path::new("/s/logs"));
        assert_eq!((config.log_format, config.socket_group), (LogFormat::Json, Some(5)));
        assert_eq!(config.deadlines.start, Duration::from_secs(60));
        assert_eq!(config.deadlines.create, OperationDeadlines::default().create);
        assert_eq!(merged(Serve::default(), "").unwrap().state_dir, places::state_dir());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_field() {
        for (file, expected) in [
            ("zygotes = 1\nmax_sandboxen = 3", "2:1: unknown field `max_sandboxen`"),
            ("zygotes = 'many'", "1:11: "),
            ("[deadlines]\nstart = 'soon'", "2:9: "),
            ("log_format = 'xml'", "unknown variant `xml`"),
            ("concurrent_starts = 0", "concurrent_starts is 0"),
            ("socket_group = 'no such group'", "there is no group \"no such group\""),
        ] {
            let error = merged(Serve::default(), file).unwrap_err();
            assert!(error.contains(expected), "{error} does not say {expected:?}");
        }
    }

    #[test]
    fn what_it_comes_to_is_a_configuration_that_comes_to_the_same() {
        let said = Serve { shutdown_grace: Some(Duration::from_millis(1_500)), ..Serve::default() };
        let config =
            merged(said, "state_dir = '/s'\nzygotes = 2\nsocket_group = 7\n[deadlines]\nask = 0.25").unwrap();
        let told = toml::to_string(&config).unwrap();
        let again = merged(Serve::default(), &told).unwrap_or_else(|error| panic!("{error}\n{told}"));
        assert_eq!(toml::to_string(&again).unwrap(), told);
        assert!(told.contains("shutdown_grace = \"1.5s\"") && told.contains("ask = \"250ms\""), "{told}");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_before_anything_is_made() {
        let fits = format!("state_dir = '/{}'", "d".repeat(90));
        assert_eq!(merged(Serve::default(), &fits).unwrap().socket.as_os_str().len(), LONGEST_SOCKET);
        let deeper = format!("state_dir = '/{}'", "d".repeat(91));
        let error = merged(Serve::default(), &deeper).unwrap_err();
        assert!(error.contains("108 bytes; the limit is 107"), "{error}");
        // Where the socket is elsewhere, the directory may be deep.
        let elsewhere = format!("{deeper}\nsocket = '/run/s'");
        assert!(merged(Serve::default(), &elsewhere).is_ok());
        let deepest = format!("state_dir = '{}'\nsocket = '/run/s'", "/d".repeat(2_000));
        assert!(merged(Serve::default(), &deepest).unwrap_err().contains("state_dir"));
    }

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nkeepers:x:998:ann,bob\nbroken\n";
        assert_eq!(find_group(groups, "keepers"), Some(998));
        assert_eq!(find_group(groups, "broken"), None);
        assert_eq!(find_group(groups, "x"), None);
    }
}
