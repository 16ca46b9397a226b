//! The JSON of every verb: which fields there are, in which order.

use serde_json::{Value, json};

use crate::daemon::{Daemon, Said};

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
    assert_eq!(fields(&status)[..STATUS.len()], *STATUS);
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

/// The error that a command tells as an object.
#[track_caller]
fn error(said: &Said) -> Value {
    let text = [&said.out, &said.err]
        .into_iter()
        .find_map(|text| text.lines().find(|line| line.contains("\"error\"")));
    let object: Value = serde_json::from_str(text.unwrap_or_else(|| panic!("{said:?}"))).expect("it is JSON");
    object["error"].clone()
}

#[test]
fn errors_are_told_in_json_too() {
    let daemon = Daemon::begin();
    for verb in ["ping", "status", "wait", "logs"] {
        let said = daemon.run(&[verb, "nobody", "--json"]);
        let error = error(&said);
        assert_eq!(error["kind"], "NotFound", "{verb}");
        assert_eq!(error["retry_after_ms"], Value::Null, "{verb}");
        assert!(error["message"].as_str().unwrap().contains("no sandbox has this name"), "{verb}: {error}");
        said.fails(3, "no sandbox has this name");
    }
    let several = daemon.run(&["ping", "nobody", "--json"]);
    assert_eq!(several.json()["ok"], false, "what takes several says so for each");
}
