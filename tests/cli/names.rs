//! Names that are none, and long ones.

use std::fs;

use crate::hostile::hostile_names;
use crate::support::{Daemon, Plan, Said, directory, program};

/// Every verb that takes an ID, and what it needs behind it.
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
    &["exec", "--", "/bin/true"],
];

/// C16: names that would be paths, or are no names at all, reach nothing; the longest and shortest are fine.
#[test]
fn hostile_names_are_refused_by_every_verb_and_touch_nothing() {
    let daemon = Daemon::start(&[]);
    daemon.run(&["run", "witness"]).ok();
    let listing = |directory: &std::path::Path| {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (listing(daemon.directory.path()), listing(&daemon.state_dir));
    // No argument can hold a NUL; and what looks like an option is tried as a word that is none.
    let hostile: Vec<String> =
        hostile_names().into_iter().filter(|name| !name.contains('\0') && name != "-a").collect();
    for (verb, name) in VERBS.iter().flat_map(|verb| hostile.iter().map(move |name| (verb, name.as_str()))) {
        // With the dash, what follows `--` is a name too, but for verbs that take a program there.
        let dashed =
            if name == "-dash" && !["run", "create", "exec"].contains(&verb[0]) { &["--"][..] } else { &[] };
        let arguments = [&verb[..1], dashed, &[name], &verb[1..]].concat();
        let said = daemon.run(&arguments);
        let lines = said.err.lines().filter(|line| !line.is_empty()).count();
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {said:?}");
        if arguments.contains(&"-dash") && dashed.is_empty() {
            assert!(said.err.contains("unexpected argument"), "{said:?}");
            continue;
        }
        assert!(said.err.contains("the sandbox ID ") && said.err.contains(" is invalid: "), "{said:?}");
        assert!(lines == 1 && said.err.len() < 500, "{arguments:?}: {said:?}");
        assert!(!said.err.contains('\u{202e}'), "{arguments:?}: {said:?}");
    }
    for namespace in ["..", "", "a/b", &"x".repeat(77)] {
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
    let daemon = Daemon::start_in(above, deep, Plan::default());
    daemon.run(&["run", "web"]).ok();
    assert_eq!(daemon.run(&["ping", "web"]).ok(), "web is running\n");
}
