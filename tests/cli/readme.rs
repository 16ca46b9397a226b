//! The tour of the README, as it stands there.

use crate::support::Daemon;

/// Process IDs, ages and the widths of columns are of the moment; all else is compared as it stands.
fn comparable(text: &str) -> String {
    let mut plain = String::new();
    for line in text.lines() {
        let mut before = "";
        for word in line.split_whitespace() {
            let number = word.trim_end_matches([',', 's']);
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let is_pid = is_number && ["leader", "running", "paused"].contains(&before);
            let is_age = is_number && word.ends_with('s');
            plain.push_str(if is_pid || is_age { "N" } else { word });
            plain.push(' ');
            before = word;
        }
        plain.push('\n');
    }
    plain
}

#[test]
fn the_tour_says_what_the_readme_shows() {
    let readme = include_str!("../../README.md");
    let tour = readme.split("## Run it").nth(1).expect("there is a tour").split("\n## ").next().unwrap();
    let daemon = Daemon::start(&[]);
    let mut commands = 0;
    for block in tour.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        for step in block.split("$ ").skip(1) {
            let (command, expected) = step.split_once('\n').unwrap();
            if command.contains("serve") {
                continue;
            }
            let shell = format!("exec 2>&1\nsandkeeper() {{ \"$PROGRAM\" \"$@\"; }}\n{command}");
            let output = std::process::Command::new("bash")
                .args(["-c", &shell])
                .env("PROGRAM", crate::support::PROGRAM)
                .env("SANDKEEPER_SOCKET", daemon.socket())
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(comparable(&said), comparable(expected), "$ {command}\n{said}");
            commands += 1;
        }
    }
    assert!(commands >= 8, "{commands} commands");
}
