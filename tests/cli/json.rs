//! The JSON of every verb: which fields there are, in which order.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Daemon, Reader, Said, program};

/// The names of an object's fields, in the order of the text.
#[track_caller]
fn fields_of(text: &str) -> Vec<String> {
    let parsed = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let Value::Object(object) = parsed else { panic!("{text}") };
    let place = |key: &String| text.find(&format!("\"{key}\":")).unwrap();
    let mut fields: Vec<_> = object.keys().map(|key| (place(key), key.clone())).collect();
    fields.sort();
    fields.into_iter().map(|(_, key)| key).collect()
}

#[track_caller]
fn fields(said: &Said) -> Vec<String> {
    fields_of(&said.out)
}

/// The fields of the example that `docs/cli.md` has under this name.
#[track_caller]
fn documented(name: &str) -> Vec<String> {
    let text = include_str!("../../docs/cli.md");
    let example = text.split(&format!("```json {name}\n")).nth(1).expect("there is an example");
    fields_of(example.split("```").next().unwrap())
}

#[test]
fn every_verb_has_the_documented_json() {
    let daemon = Daemon::start(&[]);
    let started = daemon.run(&["run", "web", "--json"]);
    assert_eq!(fields(&started), documented("run"));
    let status = daemon.run(&["status", "web", "--json"]);
    assert_eq!(fields(&status), documented("status"));
    let status = status.json();
    assert_eq!((&status["phase"], &status["paused"]), (&json!("running"), &json!(false)));
    assert_eq!((&status["pid"], &status["exit_status"]), (&started.json()["pid"], &Value::Null));
    let created = status["created_at"].as_str().unwrap();
    assert_eq!((created.len(), &created[10..11], &created[29..]), (30, "T", "Z"), "{created}");
    let list = daemon.run(&["list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["id"], "web");
    let ping = daemon.run(&["ping", "web", "--json"]);
    assert_eq!(fields(&ping), documented("ping"));
    let probe = daemon.run(&["probe", "web", "--json"]);
    assert_eq!(fields(&probe), documented("probe"));
    for verb in ["pause", "resume", "stop", "create", "shutdown"] {
        let said = daemon.run(&[verb, "web", "--json"]);
        assert_eq!(fields(&said), documented("pause"), "{verb}");
        assert_eq!(said.json()["ok"], true, "{verb}");
    }
    let version = daemon.run(&["version", "--json"]);
    assert_eq!(fields(&version), documented("version"));
    let version = version.json();
    assert_eq!(version["daemon"]["pid"], daemon.pid());
    let fsck = daemon.run(&["fsck", "--json"]);
    assert_eq!(fields(&fsck), documented("fsck"));
    assert_eq!(fsck.json()["ok"], true);
    assert_eq!(fsck.json()["daemon"]["epoch"], version["daemon"]["epoch"]);
    assert_eq!(fsck.json()["orphans"], json!([]));
}

#[test]
fn programs_and_logs_have_json_too() {
    let daemon = Daemon::start(&[]);
    daemon.run(&["run", "sh", "--rootfs", "host", "--", "/bin/sh", "-c", "echo hi; exec sleep 1000"]).ok();
    let exec = daemon.run(&["exec", "sh", "--json", "--", "/bin/sh", "-c", "echo out; exit 4"]);
    let lines: Vec<Value> = exec.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((exec.code, lines.len()), (4, 3), "{exec:?}");
    assert!(lines[0]["started"]["pid"].is_u64());
    assert_eq!(lines[1], json!({"stdout": "out\n"}));
    assert_eq!(lines[2]["exit"]["exit_status"], 4);
    let logs = daemon.run(&["logs", "sh", "--json"]);
    assert_eq!(fields(&logs), documented("logs"));
    let logs = logs.json();
    assert_eq!((&logs["stream"], &logs["data"]), (&json!("stdout"), &json!("hi\n")));
    daemon.run(&["stop", "sh", "--grace", "0"]).ok();
    let wait = daemon.run(&["wait", "sh", "--json"]);
    assert_eq!(fields(&wait), documented("wait"));
    let wait = wait.json();
    assert_eq!((&wait["exit_status"], &wait["exit_reason"]), (&json!(137), &json!("signalled")));
}

#[test]
fn a_watch_says_what_there_is_and_then_each_change() {
    let daemon = Daemon::start(&[]);
    let mut child = daemon.command(&["watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = Reader::of(&mut child);
    assert_eq!(fields_of(&told.line()), documented("snapshot"));
    daemon.run(&["run", "web"]).ok();
    let event = told.line();
    assert_eq!(fields_of(&event), documented("event"), "{event}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Of an error there is one object on stderr, and nothing else.
#[track_caller]
fn error(said: &Said) -> Value {
    let object: Value = serde_json::from_str(&said.err).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let Value::Object(error) = &object["error"] else { panic!("{said:?}") };
    assert_eq!(error.keys().collect::<Vec<_>>(), ["kind", "message", "retry_after_ms"]);
    assert_eq!(fields_of(&said.err)[..], documented("error")[..]);
    object["error"].clone()
}

#[test]
fn errors_are_told_in_json_too() {
    let daemon = Daemon::start(&[]);
    for verb in ["start", "ping", "probe", "status", "stop", "pause", "resume", "wait", "logs"] {
        let said = daemon.run(&[verb, "nobody", "--json"]);
        let error = error(&said);
        assert_eq!((said.code, &error["kind"]), (3, &json!("NotFound")), "{verb}");
        assert_eq!(error["retry_after_ms"], Value::Null, "{verb}");
        assert!(error["message"].as_str().unwrap().contains("no sandbox has this name"), "{verb}: {error}");
    }
    let several = daemon.run(&["ping", "nobody", "--json"]);
    assert_eq!(several.json()["ok"], false, "what takes several says so for each");
    assert_eq!(several.json()["error"], error(&several));
    for wrong in [
        &["exec", "nobody", "--json", "--", "/bin/true"][..],
        &["run", "x", "--json", "--memory", "64 bananas"],
        &["run", "x", "--json", "--env", "A=1"],
        &["run", "x", "--json", "--spec", "/nonexistent.toml"],
        &["watch", "--json", "--from", "yesterday"],
        &["ping", "../x", "--json"],
        &["list", "--json", "--timeout", "0"],
        &["frobnicate", "--json"],
    ] {
        let said = daemon.run(wrong);
        let kind = if wrong[0] == "exec" { "NotFound" } else { "InvalidArgument" };
        assert_eq!(error(&said)["kind"], kind, "{wrong:?}");
        assert_eq!(said.code, if wrong[0] == "exec" { 3 } else { 2 }, "{wrong:?}");
    }
    let nobody = Said::from(program(&["--socket", "/nonexistent/s", "list", "--json"]).output().unwrap());
    assert_eq!((nobody.code, &error(&nobody)["kind"]), (5, &json!("Unavailable")));
}
