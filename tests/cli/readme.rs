//! The tour of the README, as it stands there.

use crate::daemon::Daemon;

/// Numbers are of the moment, and so are the widths of the columns they are in.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    for line in text.lines() {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut last_was_digit = false;
        for c in line.chars() {
            if !c.is_ascii_digit() || !last_was_digit {
                plain.push(if c.is_ascii_digit() { 'N' } else { c });
            }
            last_was_digit = c.is_ascii_digit();
        }
        plain.push('\n');
    }
    plain
}

#[test]
fn the_tour_says_what_the_readme_shows() {
    let readme = include_str!("../../README.md");
    let tour = readme.split("## Run it").nth(1).expect("there is a tour").split("\n## ").next().unwrap();
    let daemon = Daemon::begin();
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
                .env("PROGRAM", crate::daemon::PROGRAM)
                .env("SANDKEEPER_SOCKET", daemon.socket())
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(without_numbers(&said), without_numbers(expected), "$ {command}\n{said}");
            commands += 1;
        }
    }
    assert!(commands >= 8, "{commands} commands");
}
