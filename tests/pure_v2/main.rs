//! Cases that need a pure cgroup v2 machine: one where memory, pids and cpu are controllers of the v2 hierarchy.
//!
//! On such a machine the cases run right there. Elsewhere this executable packs itself into an initial RAM disk, boots
//! it in an emulated machine (qemu without KVM, Debian's cloud kernel; some seconds), runs the cases in there and
//! reports each by its name. `./test --install` brings qemu, kernel and busybox; without them the cases fail and say so.
//!
//! Each case is a process of its own, in a cgroup of its own: see [`place`]. It fails when it panics, when it takes too
//! long, and when it leaves a cgroup behind. `SANDKEEPER_PURE_V2=guest` asks for the guest on any machine.

mod cases;
mod guest;
mod initrd;
mod limits;
mod place;
#[allow(dead_code)]
#[path = "../linux_backend/support.rs"]
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use guest::Guest;
use place::Tree;

/// Where the cases run.
enum Machine {
    This(Tree),
    Guest(Guest),
    /// Neither is possible: why.
    None(String),
}

/// The machine's own cases, then the backend's.
fn all_cases() -> impl Iterator<Item = &'static cases::Case> {
    cases::CASES.iter().chain(limits::CASES)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((mode, rest)) if mode == "--case" => return run_here(&rest[0]),
        Some((mode, rest)) if mode == "--guest" => return guest::report(rest),
        _ => {}
    }

    let mut arguments = Arguments::from_args();
    // One after the other: they share the top of one cgroup tree.
    arguments.test_threads = Some(1);
    let selected: Vec<&str> =
        all_cases().map(|(name, _)| *name).filter(|name| is_selected(&arguments, name)).collect();
    let machine =
        if arguments.list || selected.is_empty() { Machine::None(String::new()) } else { machine(&selected) };
    let machine = Arc::new(machine);

    let trials = all_cases().map(|(name, _)| {
        let machine = Arc::clone(&machine);
        Trial::test(*name, move || {
            let outcome = match &*machine {
                Machine::This(tree) => tree.run(name),
                Machine::Guest(guest) => guest.outcome(name),
                Machine::None(why) => return Err(why.into()),
            };
            if outcome.passed { Ok(()) } else { Err(outcome.output.into()) }
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Machine::Guest(guest) = &*machine {
        guest.finish(!conclusion.has_failed());
    }
    conclusion.exit_code()
}

/// The child that [`Tree::run`] starts: enters its place, then is the case.
fn run_here(name: &str) -> ExitCode {
    let Some((_, case)) = all_cases().find(|(known, _)| *known == name) else {
        panic!("no case is named {name:?}");
    };
    place::enter();
    case();
    ExitCode::SUCCESS
}

/// This machine if it can, else a guest.
fn machine(selected: &[&str]) -> Machine {
    let guest_asked_for = std::env::var_os("SANDKEEPER_PURE_V2").is_some_and(|value| value == "guest");
    let here = if guest_asked_for { Err("a guest is asked for".to_owned()) } else { Tree::find() };
    match here {
        Ok(tree) => Machine::This(tree),
        Err(not_here) => match Guest::boot(selected) {
            Ok(guest) => Machine::Guest(guest),
            Err(error) => Machine::None(format!("not on this machine: {not_here}; not in a guest: {error}")),
        },
    }
}

/// As the harness selects, so that a guest runs what was asked for and no more.
fn is_selected(arguments: &Arguments, name: &str) -> bool {
    let matches = |pattern: &String| if arguments.exact { name == pattern } else { name.contains(pattern) };
    !arguments.ignored && arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
