//! Specs as files and as options, and what becomes of them.

use crate::support::Daemon;

#[test]
fn a_spec_file_is_what_runs_and_options_win_over_it() {
    let daemon = Daemon::start(&[]);
    let file = daemon.directory.path().join("web.toml");
    let path = file.to_str().unwrap();
    let text = "args = ['/bin/sh', '-c', 'echo $GREETING from $PWD; id -u; hostname; exec sleep 1000']\nroot = 'host'\n\
                cwd = '/usr'\nenv = { GREETING = 'hello' }\nlabels = { app = 'web' }\nhostname = 'house'\n[user]\nuid = 7\n";
    std::fs::write(&file, text).unwrap();
    daemon.run(&["run", "web", "--spec", path, "--env", "GREETING=hi", "--label", "tier=front"]).ok();
    crate::support::until("it has said all", || {
        let said = daemon.run(&["logs", "web"]).ok();
        (said.lines().count() == 3).then(|| assert_eq!(said, "hi from /usr\n7\nhouse\n"))
    });
    let labels = daemon.run(&["status", "web", "--json"]).json()["labels"].clone();
    assert_eq!(labels, serde_json::json!({"app": "web", "tier": "front"}));
    let json = r#"{"args": ["/bin/cat", "/shown/web.toml"], "root": "host", "mounts": []}"#;
    let shown = format!("{}:/mnt", daemon.directory.path().display());
    let json = json.replace("/shown", "/mnt");
    daemon.run_with_input(&["run", "cat", "--spec", "-", "--mount", &shown], &json).ok();
    daemon.run(&["wait", "cat"]).ok();
    assert_eq!(daemon.run(&["logs", "cat"]).ok(), text);
}

#[test]
fn what_is_wrong_with_a_spec_is_said_with_file_line_and_field() {
    let daemon = Daemon::start(&[]);
    let file = daemon.directory.path().join("web.toml");
    let path = file.to_str().unwrap();
    for (text, expected) in [
        ("args = ['/bin/true']\n[limits]\nmemory = '64 bananas'\n", "web.toml:3:10: limits.memory: "),
        ("args = ['/bin/true']\nnetwrk = 'none'\n", "web.toml:2:1: unknown field `netwrk`"),
        ("network = 'bridge'\n", "web.toml:1:11: network: "),
        ("env = ['A=1']\n", "web.toml: env is for a program"),
    ] {
        std::fs::write(&file, text).unwrap();
        daemon.run(&["run", "web", "--spec", path]).fails(2, expected);
        daemon.run(&["create", "web", "--spec", path]).fails(2, expected);
    }
    daemon.run_with_input(&["run", "web", "--spec", "-"], "{\n\"root\": 7}").fails(2, "-:2:");
    assert_eq!(daemon.run(&["list", "-A", "-q"]).ok(), "", "nothing is made of it");
}
