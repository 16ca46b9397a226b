//! The house rules of `src/` that the compiler does not know: who may name whom, and what may stand where.
//!
//! A failure names file and line. To change a rule, change its table in this file, with the reason.

mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use source::{Name, Source};

/// The rooms of the crate, and the rooms each may name. A room may always name itself; tests may name anything.
const MAY_NAME: &[(&str, &[&[&str]])] = &[
    ("id", &[]),
    ("model", &[&["id"]]),
    ("error", &[&["id", "model"]]),
    ("spec", &[&["id", "model", "error"]]),
    ("failpoint", &[]),
    ("telemetry", &[BASE]),
    ("events", &[&["id", "model"]]),
    ("journal", &[&["id", "model", "error", "failpoint", "telemetry"]]),
    ("runtime", &[&["id", "model", "error", "spec", "failpoint"]]),
    ("controller", &[&["id", "model", "error", "spec", "runtime"]]),
    // Messages are made of whatever is told to the outside.
    ("wire", &[&["id", "model", "error", "spec", "events", "runtime", "controller"]]),
    ("actor", &[BELOW_THE_ACTORS, &["failpoint"]]),
    ("registry", &[BELOW_THE_ACTORS, &["failpoint", "actor"]]),
    ("keeper", &[BELOW_THE_ACTORS, &["actor", "registry"]]),
    ("surface", &[SURFACE]),
    ("bin", &[SURFACE]),
];

const BASE: &[&str] = &["id", "model", "error", "spec"];
const BELOW_THE_ACTORS: &[&str] =
    &["id", "model", "error", "spec", "journal", "runtime", "controller", "wire", "telemetry", "events"];
/// A surface sees the keeper and the values it speaks in, never who does the work.
const SURFACE: &[&str] = &[
    "id",
    "model",
    "error",
    "spec",
    "journal",
    "runtime",
    "controller",
    "wire",
    "telemetry",
    "keeper",
    "surface",
];

/// Names that may stand only in some places.
const RESERVED: &[Reserved] = &[
    Reserved {
        names: &["tokio", "ractor", "async", "Instant", "SystemTime"],
        everywhere_but: &[],
        within: &["src/model/"],
        why: "the model decides and never acts: no clock, no channel, no waiting",
    },
    Reserved {
        names: &["Phase"],
        everywhere_but: &[],
        within: &["src/runtime/"],
        why: "a backend obeys and does not judge: phases are the model's",
    },
    Reserved {
        names: &["DashMap", "dashmap", "hashbrown", "papaya", "scc"],
        everywhere_but: &["src/registry/index.rs"],
        within: &["src/"],
        why: "there is one index of sandboxes, and one file that chooses its map",
    },
    Reserved {
        names: &["HashMap", "HashSet"],
        everywhere_but: &["src/registry/index.rs", "src/runtime/"],
        within: &["src/"],
        why: "there is one index of sandboxes; a backend may keep its own to itself",
    },
    Reserved {
        names: &["unsafe", "unsafe_code"],
        everywhere_but: &["src/runtime/linux/"],
        within: &["src/"],
        why: "only the Linux backend talks to the kernel",
    },
];

/// Words that say nothing about what a file holds.
const EMPTY_WORDS: &[&str] = &["util", "utils", "helper", "helpers", "manager", "misc", "common"];

/// The most lines of a file, tests not counted.
const MOST_LINES: usize = 500;

/// Files that may be longer: up to how many lines, and why.
const LONG: &[(&str, usize, &str)] = &[];

struct Reserved {
    names: &'static [&'static str],
    everywhere_but: &'static [&'static str],
    within: &'static [&'static str],
    why: &'static str,
}

impl Reserved {
    fn forbids(&self, file: &str, name: &Name) -> bool {
        let is_in = |places: &[&str]| places.iter().any(|place| file.starts_with(place));
        let exempt =
            is_in(self.everywhere_but) && !(name.public && is_in(&["src/runtime/"]) && self.is_map());
        is_in(self.within) && !exempt && name.path.iter().any(|part| self.names.contains(&part.as_str()))
    }

    fn is_map(&self) -> bool {
        self.names.contains(&"HashMap")
    }
}

/// All violations in the files given, as `file:line: what, and why not`.
fn violations(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut sources = Vec::new();
    for (file, text) in files {
        match Source::read(file, text) {
            Ok(source) => sources.push(source),
            Err(error) => found.push(error),
        }
    }
    let tests: Vec<_> = sources.iter().flat_map(|source| source.test_modules.clone()).collect();
    sources.retain(|source| !tests.iter().any(|module| source.module.starts_with(module)));
    let root = sources.iter().find(|source| source.file == "src/lib.rs");
    let reexports = root.map(Source::reexports).unwrap_or_default();
    for source in &sources {
        check_imports(source, &reexports, &mut found);
        check_reserved(source, &mut found);
        check_file(source, &mut found);
    }
    found
}

fn check_imports(source: &Source, reexports: &BTreeMap<String, String>, found: &mut Vec<String>) {
    let room = source.room();
    if room == "lib" {
        return;
    }
    let Some((_, may_name)) = MAY_NAME.iter().find(|(known, _)| *known == room) else {
        found.push(format!("{}:1: room {room:?} has no place in the order of tests/layers", source.file));
        return;
    };
    for name in &source.names {
        let root = if room == "bin" { "sandkeeper" } else { "crate" };
        let [first, second, ..] = name.path.as_slice() else { continue };
        if first != root {
            continue;
        }
        let named = reexports.get(second).unwrap_or(second);
        let is_room = MAY_NAME.iter().any(|(known, _)| known == named);
        if is_room && named != room && !may_name.iter().any(|rooms| rooms.contains(&named.as_str())) {
            let path = name.path.join("::");
            found.push(format!("{}:{}: {room} may not name {named} ({path})", source.file, name.line));
        }
    }
}

fn check_reserved(source: &Source, found: &mut Vec<String>) {
    for name in &source.names {
        for reserved in RESERVED.iter().filter(|reserved| reserved.forbids(&source.file, name)) {
            let path = name.path.join("::");
            found.push(format!("{}:{}: {path} may not stand here: {}", source.file, name.line, reserved.why));
        }
    }
}

fn check_file(source: &Source, found: &mut Vec<String>) {
    let file = &source.file;
    for part in file.split('/').flat_map(|part| part.trim_end_matches(".rs").split('_')) {
        if EMPTY_WORDS.contains(&part) {
            found.push(format!("{file}:1: {part:?} says nothing; name the file after what it holds"));
        }
    }
    if file.split('/').any(|part| part.starts_with("generated")) {
        return;
    }
    let most = LONG.iter().find(|(long, ..)| long == file).map_or(MOST_LINES, |(_, most, _)| *most);
    if source.lines > most {
        let lines = source.lines;
        found.push(format!(
            "{file}:{lines}: {lines} lines besides tests, and {most} are allowed; split it by subject"
        ));
    }
}

/// Every Rust file below a directory of this package, with its text.
fn read_all(directory: &Path, files: &mut Vec<(String, String)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .expect("it can be listed")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("it is in the package");
            files.push((file.display().to_string(), fs::read_to_string(&path).expect("it is text")));
        }
    }
}

#[test]
fn the_sources_keep_the_house_rules() {
    let mut files = Vec::new();
    read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.iter().any(|(file, _)| file == "src/lib.rs"), "read {} files, and not lib.rs", files.len());
    let found = violations(&files);
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

/// A list of longer files must not outlive its reasons.
#[test]
fn every_exception_for_a_long_file_is_still_needed() {
    for (file, most, _why) in LONG {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the file exists");
        let lines = Source::read(file, &text).expect("it is Rust").lines;
        assert!(lines > MOST_LINES, "{file} has {lines} lines now: take it off the list that allows {most}");
    }
}

#[track_caller]
fn assert_caught(file: &str, text: &str, expected: &str) {
    let root = ("src/lib.rs".to_owned(), "pub mod keeper;\npub use crate::actor::Handle;\n".to_owned());
    let found = violations(&[root, (file.to_owned(), text.to_owned())]);
    assert!(found.iter().any(|violation| violation.contains(expected)), "no {expected:?} among {found:#?}");
}

#[track_caller]
fn assert_clean(file: &str, text: &str) {
    let found = violations(&[(file.to_owned(), text.to_owned())]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn an_import_against_the_order_is_caught_however_it_is_written() {
    let expected = "src/model/machine.rs:2: model may not name actor";
    for text in [
        "\nuse crate::actor::Handle;",
        "\nuse crate::{id::SandboxId, actor::{self, Handle}};",
        "\nuse super::super::actor::Handle;",
        "\nuse super::{super::actor::*};",
        "\npub(crate) use crate::actor as other;",
        "\nfn f() -> crate::actor::Handle { loop {} }",
        "\nfn f() { log!(\"{}\", crate::actor::NAME); }",
        "\nmod inner { use super::super::super::actor::Handle; }",
        "\nuse crate::Handle;", // published by the root, and no less an actor
        "\n#[cfg(any(test, unix))] use crate::actor::Handle;",
        "\n#[cfg(not(test))] fn f() { crate::actor::start() }",
    ] {
        assert_caught("src/model/machine.rs", text, expected);
    }
    assert_caught("src/surface/grpc/mod.rs", "use crate::registry::Index;", "surface may not name registry");
    assert_caught("src/bin/sandkeeper.rs", "use sandkeeper::actor::Handle;", "bin may not name actor");
    assert_caught("src/journal/store.rs", "use crate::runtime::Runtime;", "journal may not name runtime");
}

#[test]
fn a_room_without_a_place_is_caught() {
    assert_caught("src/cellar/mod.rs", "", "src/cellar/mod.rs:1: room \"cellar\"");
}

#[test]
fn a_name_out_of_place_is_caught() {
    for name in ["tokio::spawn", "ractor::Actor", "std::time::Instant", "std::time::SystemTime"] {
        assert_caught("src/model/machine.rs", &format!("\nuse {name};"), "src/model/machine.rs:2: ");
    }
    assert_caught("src/model/machine.rs", "async fn f() {}", "no waiting");
    assert_caught("src/runtime/memory.rs", "\n\nfn f(p: Phase) {}", "src/runtime/memory.rs:3: Phase");
    assert_caught("src/actor/shell.rs", "use dashmap::DashMap;", "one index");
    assert_caught("src/registry/mod.rs", "use std::collections::HashMap;", "one index");
    assert_caught("src/runtime/linux/mod.rs", "pub struct A { pub all: HashMap<u8, u8> }", "to itself");
    assert_caught("src/runtime/linux/mod.rs", "pub fn all() -> HashMap<u8, u8> { loop {} }", "to itself");
    assert_caught("src/actor/pulse.rs", "fn f() { unsafe { g() } }", "kernel");
    assert_caught("src/actor/pulse.rs", "#![allow(unsafe_code)]", "kernel");
}

#[test]
fn a_file_named_after_nothing_or_grown_too_long_is_caught() {
    assert_caught("src/actor/utils.rs", "", "\"utils\" says nothing");
    assert_caught("src/runtime/linux/mount_helper.rs", "", "\"helper\" says nothing");
    assert_caught("src/actor/shell.rs", &"\n".repeat(MOST_LINES + 1), "501 lines besides tests");
    assert_caught("src/actor/shell.rs", "fn broken( {", "src/actor/shell.rs: ");
}

#[test]
fn comments_strings_and_tests_may_say_anything() {
    assert_clean(
        "src/model/machine.rs",
        r##"
        //! Unlike [`crate::actor::Handle`], which uses tokio and unsafe code.
        /* use crate::actor::Handle; /* nested */ */
        use crate::id::SandboxId;
        const A: &str = "use crate::actor::Handle;";
        const B: &str = r#"unsafe { tokio::spawn() }"#;
        fn f<'tokio>(x: &'tokio str) -> char { '"' }
        #[cfg(test)]
        use crate::actor::Handle;
        #[cfg(all(test, feature = "linux"))]
        mod tests {
            use crate::registry::Registry;
            use tokio::time::Instant;
        }
        "##,
    );
    let found = violations(&[
        ("src/model/mod.rs".to_owned(), "#[cfg(test)]\nmod search;".to_owned()),
        ("src/model/search.rs".to_owned(), "use crate::registry::Registry;".to_owned()),
    ]);
    assert!(found.is_empty(), "a module declared for tests alone: {found:#?}");
    assert_clean("src/runtime/linux/mod.rs", "struct A { all: HashMap<u8, u8> }\nfn f() { unsafe { g() } }");
    assert_clean(
        "src/runtime/linux/mod.rs",
        "pub struct A { all: HashMap<u8, u8> }\npub fn f() { let m = HashMap::new(); }",
    );
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(MOST_LINES));
    assert_clean("src/actor/shell.rs", &tests);
}
