//! The JSON of every verb: which fields there are, in which order.

use serde_json::{Value, json};

use crate::daemon::{Daemon, Said, program};

/// The names of an object's fields, in the order of the text.
#[track_caller]
fn fields(said: &Said) -> Vec<String> {
    let Value::Object(object) = said.json() else { panic!("{said:?}") };
    let mut fields: Vec<_> =
        object.keys().map(|key| (said.out.find(&format!("\"{key}\":")).unwrap(), key.clone())).collect();
    fields.sort();
    fields.into_iter().map(|(_, key)| key).collect()
}

const STATUS: &[&str] = &[
    "namespace",
    "id",
    "phase",
    "paused",
    "pid",
    "life",
    "created_at",
    "started_at",
    "exited_at",
    "exit_status",
    "exit_reason",
    "labels",
    "runtime",
    "address",
    "version",
    "marks",
    "isolation",
    "stale",
];

#[test]
fn every_verb_has_the_documented_json() {
    let daemon = Daemon::begin();
    let started = daemon.run(&["run", "web", "--json"]);
    let expected = ["namespace", "id", "ok", "life", "pid", "isolation", "address", "version", "error"];
    assert_eq!(fields(&started), expected);
    let status = daemon.run(&["status", "web", "--json"]);
    assert_eq!(fields(&status), STATUS);
    let status = status.json();
    assert_eq!((&status["phase"], &status["paused"]), (&json!("running"), &json!(false)));
    assert_eq!((&status["pid"], &status["exit_status"]), (&started.json()["pid"], &Value::Null));
    let created = status["created_at"].as_str().unwrap();
    assert_eq!((created.len(), &created[10..11], &created[29..]), (30, "T", "Z"), "{created}");
    let list = daemon.run(&["list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["id"], "web");
    let ping = daemon.run(&["ping", "web", "--json"]);
    assert_eq!(fields(&ping), ["namespace", "id", "ok", "phase", "paused", "life", "marks", "error"]);
    let probe = daemon.run(&["probe", "web", "--json"]);
    assert_eq!(fields(&probe), ["namespace", "id", "ok", "alive", "frozen", "error"]);
    for verb in ["pause", "resume", "stop", "create", "shutdown"] {
        let said = daemon.run(&[verb, "web", "--json"]);
        assert_eq!(fields(&said), ["namespace", "id", "ok", "error"], "{verb}");
        assert_eq!(said.json()["ok"], true, "{verb}");
    }
    let version = daemon.run(&["version", "--json"]).json();
    assert_eq!(version["daemon"]["pid"], daemon.pid());
    let fsck = daemon.run(&["fsck", "--json"]);
    assert_eq!(fsck.json()["ok"], true);
    assert_eq!(fsck.json()["orphans"], json!([]));
}

#[test]
fn programs_and_logs_have_json_too() {
    let daemon = Daemon::begin();
    daemon.run(&["run", "sh", "--rootfs", "host", "--", "/bin/sh", "-c", "echo hi; exec sleep 1000"]).ok();
    let exec = daemon.run(&["exec", "sh", "--json", "--", "/bin/sh", "-c", "echo out; exit 4"]);
    let lines: Vec<Value> = exec.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((exec.code, lines.len()), (4, 3), "{exec:?}");
    assert!(lines[0]["started"]["pid"].is_u64());
    assert_eq!(lines[1], json!({"stdout": "out\n"}));
    assert_eq!(lines[2]["exit"]["exit_status"], 4);
    let logs = daemon.run(&["logs", "sh", "--json"]).json();
    assert_eq!((&logs["stream"], &logs["data"]), (&json!("stdout"), &json!("hi\n")));
    daemon.run(&["stop", "sh", "--grace", "0"]).ok();
    let wait = daemon.run(&["wait", "sh", "--json"]).json();
    assert_eq!((&wait["exit_status"], &wait["exit_reason"]), (&json!(137), &json!("signalled")));
}

/// Of an error there is one object on stderr, and nothing else.
#[track_caller]
fn error(said: &Said) -> Value {
    let object: Value = serde_json::from_str(&said.err).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let Value::Object(error) = &object["error"] else { panic!("{said:?}") };
    assert_eq!(error.keys().collect::<Vec<_>>(), ["kind", "message", "retry_after_ms"]);
    assert_eq!(object.as_object().unwrap().len(), 1);
    object["error"].clone()
}

#[test]
fn errors_are_told_in_json_too() {
    let daemon = Daemon::begin();
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
