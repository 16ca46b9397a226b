//! What the verbs do and say.

use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{Daemon, Reader, program};

#[test]
fn a_sandbox_goes_through_its_life() {
    let daemon = Daemon::start(&[]);
    let said = daemon.run(&["run", "web", "--label", "app=shop"]).ok();
    assert!(said.starts_with("web runs: leader "), "{said}");
    assert_eq!(daemon.run(&["ping", "web"]).ok(), "web is running\n");
    assert_eq!(daemon.run(&["probe", "web"]).ok(), "web is alive\n");
    assert_eq!(daemon.run(&["pause", "web"]).ok(), "web is paused\n");
    assert_eq!(daemon.run(&["ping", "web"]).ok(), "web is paused\n");
    daemon.run(&["exec", "web", "--", "/bin/true"]).fails(4, "resume it first");
    assert_eq!(daemon.run(&["resume", "web"]).ok(), "web is running\n");
    let table = daemon.run(&["list"]).ok();
    assert!(table.starts_with("ID    PHASE     PID "), "{table}");
    assert!(table.contains("\nweb   running   ") && table.contains("app=shop"), "{table}");
    assert_eq!(daemon.run(&["list", "--quiet", "--label", "app=shop", "--phase", "running"]).ok(), "web\n");
    assert_eq!(daemon.run(&["list", "--quiet", "--label", "app=mail"]).ok(), "");
    assert_eq!(daemon.run(&["list", "--quiet", "-A"]).ok(), "default/web\n");
    assert_eq!(daemon.run(&["-n", "other", "list", "--quiet"]).ok(), "");
    let status = daemon.run(&["status", "web"]).ok();
    assert!(status.starts_with("sandbox    default/web\nphase      running\n"), "{status}");
    assert_eq!(daemon.run(&["stop", "web", "--grace", "5s"]).ok(), "web is stopped\n");
    assert_eq!(daemon.run(&["create", "web"]).ok(), "web is created\n", "what is defined is prepared");
    assert!(daemon.run(&["start", "web"]).ok().starts_with("web runs: "));
    assert_eq!(daemon.run(&["shutdown", "web"]).ok(), "web is gone\n");
    assert_eq!(daemon.run(&["shutdown", "web"]).ok(), "web is gone\n", "again is no mistake");
    daemon.run(&["ping", "web"]).fails(3, "no sandbox has this name");
}

#[test]
fn of_several_all_are_tried_and_the_first_failure_decides() {
    let daemon = Daemon::start(&[]);
    for id in ["a", "b"] {
        daemon.run(&["run", id]).ok();
    }
    daemon.run(&["stop", "b"]).ok();
    let out = daemon.run(&["ping", "nobody", "b", "a"]).fails(3, "\"default/b\": ");
    assert_eq!(out, "a is running\n");
    daemon.run(&["ping", "b", "nobody"]).fails(4, "start it first");
    let out = daemon.run(&["ping", "--all"]).fails(4, "\"default/b\"");
    assert_eq!(out, "a is running\n");
    daemon.run(&["pause", "b", "a"]).fails(4, "\"default/b\"");
    assert_eq!(daemon.run(&["ping", "a"]).ok(), "a is paused\n");
    assert_eq!(daemon.run(&["shutdown", "--all"]).ok(), "a is gone\nb is gone\n");
    assert_eq!(daemon.run(&["shutdown", "--all"]).ok(), "", "nothing is nothing to do");
    daemon.run(&["ping"]).fails(2, "ID");
}

#[test]
fn the_end_of_a_process_is_told_and_passed_on() {
    let daemon = Daemon::start(&[]);
    let script = "echo out; echo err >&2; exit 7";
    daemon.run(&["run", "job", "--rootfs", "host", "--", "/bin/sh", "-c", script]).ok();
    assert_eq!(daemon.run(&["wait", "job"]).ok(), "job exited with 7\n");
    assert_eq!(daemon.run(&["wait", "job", "--propagate"]).fails(7, ""), "job exited with 7\n");
    let logs = daemon.run(&["logs", "job"]);
    assert_eq!((logs.code, logs.out.as_str(), logs.err.as_str()), (0, "out\n", "err\n"));
    let stamped = daemon.run(&["logs", "job", "--timestamps", "--follow"]);
    assert!(stamped.out.ends_with("Z out\n") && stamped.err.ends_with("Z err\n"), "{stamped:?}");
    assert_eq!(daemon.run(&["list", "-q", "--phase", "stopped"]).ok(), "job\n");
    daemon.run(&["run", "quiet", "--rootfs", "host", "--no-log", "--", "/bin/echo", "x"]).ok();
    daemon.run(&["wait", "quiet"]).ok();
    let none = daemon.run(&["logs", "quiet"]);
    assert_ne!((none.code, none.err.as_str()), (0, ""), "{none:?}");
}

#[test]
fn a_program_inside_is_as_if_it_ran_here() {
    let daemon = Daemon::start(&[]);
    daemon.run(&["run", "sh", "--rootfs", "host", "--", "/bin/sleep", "1000"]).ok();
    let said = daemon.run(&["exec", "sh", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (3, "out\n", "err\n"));
    let large = "0123456789abcde\n".repeat(20_000);
    assert!(daemon.run_with_input(&["exec", "-i", "sh", "--", "/bin/cat"], &large).ok() == large);
    let said = daemon.run_with_input(&["exec", "sh", "--", "/bin/cat"], "nobody reads it");
    assert_eq!(said.ok(), "", "without -i there is no input");
    let env =
        ["exec", "sh", "--env", "A=b c", "--user", "7:8", "--", "/bin/sh", "-c", "echo $A $(id -u) $(id -g)"];
    assert_eq!(daemon.run(&env).ok(), "b c 7 8\n");
    let limit = daemon.run(&["exec", "sh", "--", "/bin/sh", "-c", "ulimit -Sn"]).ok();
    assert!(
        limit.trim().parse::<u64>().unwrap() <= 1_024,
        "the daemon's own limit is not passed on: {limit}"
    );
    let pid = daemon.run(&["exec", "-d", "sh", "--", "/bin/sleep", "1000"]).ok();
    assert!(
        pid.trim().parse::<u32>().is_ok_and(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap()),
        "{pid}"
    );
    daemon.run(&["exec", "sh", "--", "/bin/sh", "-c", "kill -9 $$"]).fails(137, "ended by signal 9");
    daemon.run(&["exec", "sh", "--", "/no/such"]).fails(2, "no such program");
    daemon.run(&["exec", "nobody", "--", "/bin/true"]).fails(3, "no sandbox has this name");
}

#[test]
fn a_watch_tells_every_change_and_goes_on_where_it_was_told_to() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(&["run", "first"]).ok();
    let mut child =
        daemon.command(&["watch", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = Reader::of(&mut child);
    let snapshot: serde_json::Value = serde_json::from_str(&told.line()).unwrap();
    assert_eq!(snapshot["type"], "snapshot");
    assert_eq!(snapshot["sandboxes"][0]["id"], "first");
    let (epoch, from) = (&snapshot["epoch"], &snapshot["next_sequence"]);
    daemon.run(&["-n", "other", "run", "elsewhere"]).ok();
    daemon.run(&["shutdown", "first"]).ok();
    let mut phases = Vec::new();
    while phases.last().is_none_or(|phase| phase != "gone") {
        let event: serde_json::Value = serde_json::from_str(&told.line()).unwrap();
        assert_eq!((&event["namespace"], &event["id"]), (&"default".into(), &"first".into()));
        phases.push(event["phase"].as_str().unwrap().to_owned());
    }
    assert_eq!(phases, ["stopping", "deleting", "gone"]);
    let from = format!("{epoch}:{from}");
    let mut again = daemon.command(&["watch", "-A", "--from", &from]).stdout(Stdio::piped()).spawn().unwrap();
    let first = Reader::of(&mut again).line();
    assert!(first.contains(" other/elsewhere defined"), "{first}");
    again.kill().unwrap();
    again.wait().unwrap();
    daemon.run(&["-n", "other", "shutdown", "--all"]).ok();
    assert_eq!(daemon.terminate(), Some(0));
    let rest = told.rest();
    assert!(!rest.contains("\"event\""), "{rest}");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("daemon"), "{ended:?}");
}

#[test]
fn what_is_wrong_has_its_code_and_remedy() {
    let daemon = Daemon::start(&[]);
    daemon.run(&["run", "web"]).ok();
    daemon.run(&["run", "web", "--", "/bin/true"]).fails(4, "another spec");
    daemon.run(&["run", "x", "--", "/bin/echo"]).fails(2, "--rootfs host");
    daemon.run(&["run", "x", "--env", "A=1"]).fails(2, "add -- ARGV");
    daemon.run(&["run", "x", "--network", "bridge"]).fails(2, "none, new");
    daemon.run(&["run", "x", "--spec", "/nonexistent.toml"]).fails(2, "/nonexistent.toml");
    daemon.run(&["run", "x", "--runtime", "vmware"]).fails(2, "there is no runtime");
    daemon.run(&["start", "x"]).fails(3, "no sandbox has this name");
    let late = daemon.run(&["wait", "web", "--timeout", "200ms", "--json"]);
    // Both sides look at the clock, and either may be first.
    assert!(late.err.contains("not done within") || late.err.contains("did not answer in time"), "{late:?}");
    late.fails(5, "\"DeadlineExceeded\"");
    daemon.run(&["frobnicate"]).fails(2, "frobnicate");
    let nobody = program(&["--socket", "/nonexistent/s", "list"]).output().unwrap();
    let nobody = crate::support::Said::from(nobody);
    nobody.fails(5, "no daemon answers at /nonexistent/s; start one with `sandkeeper serve`");
    assert_eq!(daemon.run(&["list", "-q"]).ok(), "web\n", "and nothing is left of what failed");
}

#[test]
fn a_daemon_that_is_told_to_end_leaves_its_sandboxes_to_the_next() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(&["run", "web"]).ok();
    daemon.run(&["run", "still"]).ok();
    daemon.run(&["pause", "still"]).ok();
    let before = daemon.run(&["status", "web", "--json"]).json();
    assert_eq!(daemon.terminate(), Some(0));
    daemon.run(&["list"]).fails(5, "no daemon answers");
    daemon.start_again();
    let after = daemon.run(&["status", "web", "--json"]).json();
    for same in ["pid", "life", "phase", "created_at", "started_at"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_eq!(daemon.run(&["ping", "still"]).ok(), "still is paused\n");
    assert_eq!(daemon.run(&["version", "--json"]).json()["daemon"]["epoch"], 2);
    // And likewise when it is killed.
    daemon.kill9();
    daemon.start_again_with(&["--shutdown-sandboxes"]);
    assert_eq!(daemon.run(&["status", "web", "--json"]).json()["pid"], before["pid"]);
    assert_eq!(daemon.terminate(), Some(0));
    daemon.start_again_with(&[]);
    assert_eq!(daemon.run(&["list", "--json"]).json(), serde_json::json!([]), "it was asked to end them");
}

/// Whoever reads the log of a daemon may die first.
#[test]
fn a_daemon_whose_log_nobody_reads_goes_on() {
    let mut daemon = Daemon::start(&[]);
    assert_eq!(daemon.terminate(), Some(0));
    let (reader, writer) = std::io::pipe().unwrap();
    daemon.start_again_with_log(writer.into());
    drop(reader);
    for round in 0..3 {
        daemon.run(&["run", "web"]).ok();
        daemon.run(&["run", "no", "--", "/no/such"]).fails(2, "no such program");
        assert_eq!(daemon.run(&["shutdown", "web"]).ok(), "web is gone\n", "round {round}");
    }
}

#[test]
fn a_second_daemon_on_a_directory_ends_at_once() {
    let daemon = Daemon::start(&[]);
    let state_dir = daemon.state_dir.to_str().unwrap();
    let second = program(&["serve", "--state-dir", state_dir]).output().unwrap();
    let second = crate::support::Said::from(second);
    let holder = format!("process {} has it open and holds {state_dir}/lock", daemon.pid());
    second.fails(5, &holder);
    // Another directory, but the same socket.
    let other = daemon.directory.path().join("other");
    let socket = daemon.socket();
    let (other, socket) = (other.to_str().unwrap(), socket.to_str().unwrap());
    let third = program(&["serve", "--state-dir", other, "--socket", socket]).output().unwrap();
    crate::support::Said::from(third).fails(5, "another daemon listens there");
    daemon.run(&["run", "web"]).ok();
}

#[test]
fn a_daemon_that_stands_still_holds_nobody_up_for_longer_than_they_said() {
    let mut daemon = Daemon::start(&[]);
    daemon.signal(Signal::STOP);
    for verb in [&["list"][..], &["ping", "x"], &["watch"], &["logs", "x"], &["exec", "x", "--", "/bin/true"]]
    {
        let said = daemon.run(&[&["--timeout", "300ms"], verb].concat());
        assert_eq!(said.fails(5, "did not answer in time"), "", "{verb:?}");
    }
    daemon.signal(Signal::CONT);
    daemon.run(&["list"]).ok();
}
