//! Names that are none, and long ones.

use std::fs;

use crate::daemon::{Daemon, Said, directory, program};

/// Every verb that takes an ID, with what else it needs.
const VERBS: &[&[&str]] = &[
    &["create"],
    &["start"],
    &["run"],
    &["stop"],
    &["shutdown"],
    &["pause"],
    &["resume"],
    &["ping"],
    &["probe"],
    &["status"],
    &["wait"],
    &["logs"],
];

/// C16: names that would be paths, or are no names at all, reach nothing; the longest and shortest are fine.
#[test]
fn hostile_names_are_refused_by_every_verb_and_touch_nothing() {
    let daemon = Daemon::begin();
    daemon.run(&["run", "witness"]).ok();
    let listing = |directory: &std::path::Path| {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (listing(daemon.directory.path()), listing(&daemon.state_dir));
    let (too_long, far_too_long) = ("x".repeat(77), "x".repeat(10_000));
    let hostile = [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "a\nb",
        "-dash",
        " ",
        "a b",
        &too_long,
        &far_too_long,
        "w\u{435}b",
        "a\u{202e}b",
        "a..b",
    ];
    for verb in VERBS {
        for name in hostile {
            let mut arguments = verb.to_vec();
            arguments.extend(["--", name]);
            // What follows `--` is a program's for these.
            if ["run", "create"].contains(&verb[0]) {
                arguments = vec![verb[0], name];
            }
            let said = daemon.run(&arguments);
            assert_eq!(said.code, 2, "{verb:?} {name:?}: {said:?}");
            assert!(said.err.len() < 12_000, "{verb:?} {name:?}");
        }
    }
    for namespace in ["..", "", "a/b", &too_long] {
        daemon.run(&["-n", namespace, "list"]).fails(2, "namespace");
    }
    assert_eq!((listing(daemon.directory.path()), listing(&daemon.state_dir)), before);
    assert_eq!(daemon.run(&["ping", "witness"]).ok(), "witness is running\n");
    let longest = "y".repeat(76);
    for name in ["a", "Abc", "abc", &longest] {
        daemon.run(&["run", name]).ok();
    }
    assert_eq!(daemon.run(&["shutdown", "Abc"]).ok(), "Abc is gone\n");
    assert_eq!(daemon.run(&["ping", "abc", &longest, "a"]).ok().lines().count(), 3);
}

#[test]
fn a_deep_state_directory_works_or_is_refused() {
    let above = directory();
    // The longest with which the path of the socket fits into what a socket can have.
    let fits = 107 - "/sandkeeper.sock".len() - above.path().as_os_str().len() - 1;
    let (deep, too_deep) = (above.path().join("d".repeat(fits)), above.path().join("d".repeat(fits + 1)));
    assert_eq!(deep.as_os_str().len(), 91);
    let said = program(&["serve", "--state-dir", too_deep.to_str().unwrap()]).output().unwrap();
    Said::from(said).fails(2, "108 bytes; the limit is 107");
    let daemon = Daemon::begin_at(above, deep, &[]);
    daemon.run(&["run", "web"]).ok();
    assert_eq!(daemon.run(&["ping", "web"]).ok(), "web is running\n");
}
