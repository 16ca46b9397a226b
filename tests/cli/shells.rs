//! Completion, help, configuration, and the ends of pipes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Daemon, Plan, Said, program, until};

fn run(arguments: &[&str]) -> Said {
    program(arguments).output().unwrap().into()
}

#[test]
fn every_shell_gets_a_script_and_bash_takes_it() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completion", shell]).ok();
        for verb in ["serve", "shutdown", "fsck"] {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(run(&["completion", "bash"]).out.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn the_help_says_the_exit_codes_and_every_verb() {
    let help = run(&["--help"]).ok();
    for text in ["Exit codes", "3  no sandbox has this name", "SANDKEEPER_SOCKET", "SANDKEEPER_NAMESPACE"] {
        assert!(help.contains(text), "no {text:?} in {help}");
    }
    let verbs = [
        "serve",
        "create",
        "start",
        "run",
        "stop",
        "shutdown",
        "pause",
        "resume",
        "ping",
        "probe",
        "status",
        "wait",
        "list",
        "watch",
        "exec",
        "logs",
        "version",
        "completion",
        "fsck",
    ];
    for verb in verbs {
        assert!(help.contains(&format!("\n  {verb} ")), "no {verb}");
        let help = run(&[verb, "--help"]).ok();
        assert!(help.contains("--json"), "{verb}: {help}");
    }
}

#[test]
fn a_configuration_is_checked_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "state_dir = '/run/elsewhere'\nmax_sandboxes = 7\n[deadlines]\nstart = '5s'\n")
        .unwrap();
    let said = run(&["serve", "--check-config", "--config", path]).ok();
    assert!(said.contains("/run/elsewhere/sandkeeper.sock"), "{said}");
    let json = run(&["serve", "--check-config", "--config", path, "--zygotes", "3", "--json"]).json();
    assert_eq!((&json["max_sandboxes"], &json["zygotes"]), (&7.into(), &3.into()));
    std::fs::write(&file, "state_dir = '/run/x'\nmax_sandboxen = 7\n").unwrap();
    run(&["serve", "--config", path]).fails(2, "config.toml:2:1: unknown field `max_sandboxen`");
    run(&["serve", "--log-level", "a=b=c"]).fails(2, "is no filter");
    run(&["serve", "--config", "/nonexistent"]).fails(2, "/nonexistent");
}

#[test]
fn a_reader_that_leaves_and_ctrl_c_end_a_verb_quietly() {
    let daemon = Daemon::start(&[]);
    for id in ["a", "b"] {
        daemon.run(&["run", id]).ok();
    }
    let mut child =
        daemon.command(&["ping", "--all"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = child.wait_with_output().unwrap();
    assert_eq!((said.status.code(), said.stderr.len()), (Some(0), 0), "{said:?}");
    let child = daemon.command(&["wait", "a"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // It hears the signal once it has a handler for it.
    until("it listens for signals", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        (u64::from_str_radix(caught.trim(), 16).ok()? & 2 != 0).then_some(())
    });
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let said = child.wait_with_output().unwrap();
    assert_eq!((said.status.code(), said.stderr.len()), (Some(130), 0), "{said:?}");
    assert_eq!(daemon.run(&["ping", "a"]).ok(), "a is running\n");
}

/// C24: with few descriptors there is a bound that leaves room for the daemon itself, which goes on answering past it.
#[test]
fn the_capacity_follows_from_the_descriptors_and_past_it_starts_are_refused() {
    let daemon = Daemon::start_as(Plan { descriptors: Some(256), ..Plan::default() });
    let capacity = daemon.run(&["version", "--json"]).json()["daemon"]["capacity"].as_u64().unwrap();
    assert_eq!(capacity, 128, "half of them, where there are few");
    for number in 0..capacity {
        daemon.run(&["run", &format!("s{number}"), "--network", "none"]).ok();
    }
    daemon.run(&["run", "one-more"]).fails(5, "128 sandboxes are known already");
    assert_eq!(daemon.run(&["ping", "--all"]).ok().lines().count() as u64, capacity);
    assert_eq!(daemon.run(&["status", "s1", "--json"]).json()["phase"], "running");
    let some: Vec<String> = (0..10).map(|number| format!("s{number}")).collect();
    let mut shutdown = vec!["shutdown"];
    shutdown.extend(some.iter().map(String::as_str));
    daemon.run(&shutdown).ok();
    daemon.run(&["run", "one-more"]).ok();
    assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
}

/// And one that is asked for holds as well.
#[test]
fn no_more_sandboxes_than_were_allowed_are_there() {
    let daemon = Daemon::start(&["--max-sandboxes", "2"]);
    for id in ["a", "b"] {
        daemon.run(&["run", id]).ok();
    }
    daemon.run(&["run", "c"]).fails(5, "2 sandboxes are known already");
    daemon.run(&["shutdown", "a"]).ok();
    daemon.run(&["run", "c"]).ok();
}

#[test]
fn without_rights_and_without_a_cgroup_the_daemon_says_what_is_missing() {
    let mut command = program(&["serve", "--state-dir", "/run/sandkeeper-nobody"]);
    let nobody: u32 = 65_534;
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    let said = Said::from(command.output().unwrap());
    for right in ["CAP_SYS_ADMIN", "CAP_KILL", "CAP_SETUID"] {
        assert!(said.err.contains(right), "{said:?}");
    }
    said.fails(1, "run it as root");
    assert!(!std::fs::exists("/run/sandkeeper-nobody").unwrap());
}
