//! What can be said on the command line. Help and completion scripts come from here too.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::model::Phase;
use crate::surface::quantity;

const EXIT_CODES: &str = "\
Exit codes:
  0  it is done
  1  something else is wrong
  2  the command line, the spec or a name is wrong
  3  no sandbox has this name
  4  the sandbox is in a phase that does not permit it, or the name is taken
  5  the daemon cannot be reached, is busy, or did not answer in time

Of several sandboxes all are tried, and the first that fails decides. `exec` and `wait --propagate` end with the \
process's own status. Ctrl-C ends with 130; what was begun goes on, but for the program of an attached `exec`.

To begin with: `sandkeeper serve` in one terminal, `sandkeeper run web` and `sandkeeper list` in another.";

/// Supervises the sandboxes of one Linux node
#[derive(Debug, Parser)]
#[command(name = "sandkeeper", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(super) struct Common {
    /// The daemon's socket [default: that of a daemon of your own in $XDG_RUNTIME_DIR/sandkeeper, else
    /// /run/sandkeeper/sandkeeper.sock]
    #[arg(long, global = true, env = "SANDKEEPER_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// The namespace of the sandboxes
    #[arg(
        short,
        long,
        global = true,
        env = "SANDKEEPER_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "default"
    )]
    pub(super) namespace: String,
    /// Give up after this long, such as 500ms, 30s, 2m
    #[arg(long, global = true, value_name = "DURATION", value_parser = positive)]
    pub(super) timeout: Option<Duration>,
    /// Answer in JSON: one document, or one a line where there are several
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the daemon
    Serve(Box<Serve>),
    /// Prepare a sandbox, so that `start` only has to start it
    ///
    /// Without options it prepares what is defined under the ID, or else the smallest sandbox there is.
    Create(Box<Create>),
    /// Start sandboxes that are defined
    Start(Ids),
    /// Create a sandbox and start it
    ///
    /// Without ARGV it is a pause process, which only holds the namespaces. The root is minimal unless --rootfs says otherwise:
    /// it has no programs.
    Run(Box<Create>),
    /// End sandboxes, and keep their records
    Stop(End),
    /// End sandboxes, and forget them
    Shutdown(Shutdown),
    /// Freeze every process of sandboxes
    Pause(Ids),
    /// Thaw them
    Resume(Ids),
    /// Say whether sandboxes are there, by what the kernel last reported
    Ping(Several),
    /// Ask sandboxes themselves how they are
    Probe(Ids),
    /// Say everything that is known of a sandbox
    Status(OneId),
    /// Wait for a sandbox to end
    Wait(Wait),
    /// List sandboxes
    List(List),
    /// Follow every change of phase
    ///
    /// Begins with what there is. Ends with an error when the daemon ends.
    Watch(Watch),
    /// Run a program inside a sandbox
    ///
    /// Ends with the program's status. The program is killed when this ends before it does, or the daemon does; not with -d.
    Exec(Exec),
    /// Show what a sandbox's main process has written
    Logs(Logs),
    /// Say which version this is, and which daemon answers
    Version,
    /// Print a completion script for a shell
    Completion(Completion),
    /// Look for what exists without a record, and say what state the daemon's records are in
    ///
    /// Ends with 1 if something is wrong.
    Fsck(Fsck),
}

#[derive(Debug, Args)]
pub(super) struct OneId {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Ids {
    /// The sandboxes
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Several {
    /// The sandboxes
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(super) ids: Vec<String>,
    /// All of the namespace
    #[arg(long, conflicts_with = "ids")]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct End {
    /// The sandboxes
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<String>,
    /// How long they may take to end by themselves; 0 ends them at once [default: what each one's spec says]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(super) grace: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Shutdown {
    #[command(flatten)]
    pub(super) which: Several,
    /// How long they may take to end by themselves; 0 ends them at once [default: what each one's spec says]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(super) grace: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// The sandbox: 1 to 76 letters and digits, joined by single `-`, `_` or `.`
    #[arg(value_name = "ID")]
    pub(super) id: String,
    #[command(flatten)]
    pub(super) options: SpecOptions,
}

/// What of a spec can be said here. The rest is in a file.
#[derive(Debug, Args, PartialEq, Eq, Default)]
pub(super) struct SpecOptions {
    /// Its spec, .json or .toml, or - for JSON from standard input; what else is said here wins over it
    #[arg(long, value_name = "FILE")]
    pub(super) spec: Option<PathBuf>,
    /// Its root: a directory, `host` (the host's own, read-only) or `minimal`; directories are read-only [default: minimal]
    #[arg(long, value_name = "DIR|host|minimal")]
    pub(super) rootfs: Option<String>,
    /// The most memory it may use, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub(super) memory: Option<u64>,
    /// The most CPUs it may use, such as 0.5
    #[arg(long, value_name = "NUMBER", value_parser = quantity::cpu_millis)]
    pub(super) cpus: Option<u64>,
    /// The most processes and threads it may have
    #[arg(long, value_name = "NUMBER")]
    pub(super) pids: Option<u64>,
    /// A variable of its environment; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) env: Vec<(String, String)>,
    /// A label; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) label: Vec<(String, String)>,
    /// A directory or file of the host to show in it, read-only unless :rw follows; can be repeated
    #[arg(long, value_name = "SOURCE:TARGET[:rw]", value_parser = mount)]
    pub(super) mount: Vec<(String, String, bool)>,
    /// Its network: `none`, `new`, or the path of a network namespace [default: new]
    #[arg(long, value_name = "none|new|PATH")]
    pub(super) network: Option<String>,
    /// Its host name [default: its ID]
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// User and group of its process, as numbers inside the sandbox [default: 0]
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    pub(super) user: Option<(u32, u32)>,
    /// The working directory of its process [default: /]
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// How long it may take to end by itself [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(super) stop_grace: Option<Duration>,
    /// Keep nothing of its output
    #[arg(long)]
    pub(super) no_log: bool,
    /// The runtime that runs it
    #[arg(long, value_name = "NAME")]
    pub(super) runtime: Option<String>,
    /// The program to run in it, and its arguments
    #[arg(last = true, value_name = "ARGV")]
    pub(super) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// End with the status of the sandbox's main process
    #[arg(long)]
    pub(super) propagate: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Only those in this phase; can be repeated
    #[arg(long, value_name = "PHASE", value_parser = phases())]
    pub(super) phase: Vec<String>,
    /// Only those with this label; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) label: Vec<(String, String)>,
    /// Only their IDs, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Go on with this event, as an earlier watch counted them, instead of beginning with what there is
    #[arg(long, value_name = "EPOCH:SEQUENCE", value_parser = position)]
    pub(super) from: Option<(u64, u64)>,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Let it run, and do not wait for it; its output is dropped
    #[arg(short, long, conflicts_with = "interactive")]
    pub(super) detach: bool,
    /// Give it our standard input
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// A variable of its environment; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) env: Vec<(String, String)>,
    /// Its user and group, as numbers inside the sandbox [default: 0]
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    pub(super) user: Option<(u32, u32)>,
    /// Its working directory [default: /]
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// The program, and its arguments
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub(super) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Go on with what is written later, until it ends
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only so many of the last lines
    #[arg(long, value_name = "NUMBER")]
    pub(super) tail: Option<u64>,
    /// Begin each line with when it was written
    #[arg(long)]
    pub(super) timestamps: bool,
}

#[derive(Debug, Args)]
pub(super) struct Completion {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct Fsck {
    /// End and remove all that exists without a record
    #[arg(long)]
    pub(super) end_orphans: bool,
}

/// What the daemon is told here wins over its configuration file.
#[derive(Debug, Args, Default)]
pub(in crate::surface) struct Serve {
    /// Its configuration, in TOML [default: /etc/sandkeeper/config.toml, if there is one and it is not a user's own daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::surface) config: Option<PathBuf>,
    /// Only say whether the configuration is right, and what it comes to
    #[arg(long)]
    pub(in crate::surface) check_config: bool,
    /// Where records, logs and sockets are [default: /run/sandkeeper; without root $XDG_RUNTIME_DIR/sandkeeper]
    #[arg(long, value_name = "DIR")]
    pub(in crate::surface) state_dir: Option<PathBuf>,
    /// A group, by name or number, whose members may speak to it besides root
    #[arg(long, value_name = "GROUP")]
    pub(in crate::surface) socket_group: Option<String>,
    /// How it logs, to standard error [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub(in crate::surface) log_format: Option<String>,
    /// What it logs: error, warn, info, debug, trace, or a filter such as info,sandkeeper::journal=debug [default: info]
    #[arg(long, value_name = "FILTER", env = "SANDKEEPER_LOG")]
    pub(in crate::surface) log_level: Option<String>,
    /// Where the output of sandboxes is kept [default: logs, in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(in crate::surface) log_dir: Option<PathBuf>,
    /// How many starts run at a time [default: 4 for each core]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) concurrent_starts: Option<usize>,
    /// How many sandboxes there may be [default: as many as the limit on descriptors allows]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) max_sandboxes: Option<usize>,
    /// How many records of stopped sandboxes are kept [default: 4096]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) stopped_records: Option<usize>,
    /// The first host ID of the range that sandboxes get their users from
    #[arg(long, value_name = "ID")]
    pub(in crate::surface) id_start: Option<u32>,
    /// How many blocks of 65,536 IDs that range has
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) id_blocks: Option<u32>,
    /// How many network namespaces are kept ready at most [default: 64]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) ready_networks: Option<usize>,
    /// How many zygotes spawn sandboxes [default: one for each core]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::surface) zygotes: Option<usize>,
    /// Move the daemon, and all else in its cgroup, into a leaf below it, which limits need on a pure cgroup v2 machine
    /// [default: if a service manager has started it]
    #[arg(long, value_name = "BOOL")]
    pub(in crate::surface) move_host_to_leaf: Option<bool>,
    /// Shut all sandboxes down when the daemon ends, instead of leaving them to the next one
    #[arg(long)]
    pub(in crate::surface) shutdown_sandboxes: bool,
    /// How long they have to end then [default: what their specs say]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(in crate::surface) shutdown_grace: Option<Duration>,
    /// Serve scripted sandboxes that exist in memory alone
    #[cfg(feature = "testing")]
    #[arg(long, hide = true, value_parser = ["memory"])]
    pub(in crate::surface) test_runtime: Option<String>,
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = quantity::duration(text)?;
    if duration.is_zero() { Err("nothing can be done in no time".to_owned()) } else { Ok(duration) }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn mount(text: &str) -> Result<(String, String, bool), String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err("write SOURCE:TARGET or SOURCE:TARGET:rw".to_owned());
    };
    let writable = match (parts.next(), parts.next()) {
        (None, _) | (Some("ro"), None) => false,
        (Some("rw"), None) => true,
        _ => {
            return Err(
                "write SOURCE:TARGET or SOURCE:TARGET:rw; paths with a colon go into a spec".to_owned()
            );
        }
    };
    Ok((source.to_owned(), target.to_owned(), writable))
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| "write UID or UID:GID, as numbers".to_owned());
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => number(text).map(|uid| (uid, uid)),
    }
}

fn position(text: &str) -> Result<(u64, u64), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(epoch, sequence)| Some((epoch.parse().ok()?, sequence.parse().ok()?)));
    parsed.ok_or_else(|| "write EPOCH:SEQUENCE, as `watch --json` shows them".to_owned())
}

fn phases() -> clap::builder::PossibleValuesParser {
    let names = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Gone).map(|phase| phase.name());
    clap::builder::PossibleValuesParser::new(names)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn create(arguments: &[&str]) -> Result<SpecOptions, clap::Error> {
        let all = ["sandkeeper", "run", "web"].iter().chain(arguments);
        match Arguments::try_parse_from(all)?.verb {
            Verb::Run(create) => Ok(create.options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_said_is_understood() {
        let options = create(&[
            "--memory",
            "64MiB",
            "--cpus",
            "0.5",
            "--env",
            "A=1=2",
            "--mount",
            "/a:/b:rw",
            "--user",
            "7:8",
            "--stop-grace",
            "1m30s",
            "--",
            "/bin/sh",
            "-c",
            "--json",
        ]);
        let options = options.unwrap();
        assert_eq!((options.memory, options.cpus), (Some(64 << 20), Some(500)));
        assert_eq!(options.env, [("A".to_owned(), "1=2".to_owned())]);
        assert_eq!(options.mount, [("/a".to_owned(), "/b".to_owned(), true)]);
        assert_eq!((options.user, options.stop_grace), (Some((7, 8)), Some(Duration::from_secs(90))));
        assert_eq!(options.argv, ["/bin/sh", "-c", "--json"], "what follows -- is the program's");
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            &["--memory", "much"][..],
            &["--cpus", "0"],
            &["--env", "A"],
            &["--env", "=1"],
            &["--mount", "/a"],
            &["--mount", "/a:/b:rx"],
            &["--user", "root"],
            &["--stop-grace", "soon"],
            &["--timeout", "0s"],
            &["more"],
        ] {
            assert!(create(wrong).is_err(), "{wrong:?}");
        }
    }
}
