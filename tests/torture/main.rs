//! The torture tool: drives the real daemon with many clients, kills it with `kill -9` at any moment, starts it again, and looks
//! whether anything was lost, doubled, left behind or disturbed.
//!
//! `cargo test --features failpoints --test torture -- --help` says what it can be told. Without arguments it does what fits
//! into three minutes.
#![allow(clippy::print_stdout, reason = "it tells how it goes")]

mod book;
mod check;
mod clients;
mod daemon;
mod dice;
mod heart;
mod model;
mod run;
mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Kills the daemon at random moments, and at each fail-point, while many clients ask things of it, and checks after each start
/// that every acknowledged command is visible, that no sandbox has two leaders, that nothing exists without a record, and that
/// no sandbox was disturbed. The exit code is 1 if anything was wrong.
#[derive(Parser, Debug)]
#[command(
    name = "torture",
    after_help = "The seed decides what is asked and when the daemon is killed. What the machine makes \
    of it differs from run to run; the seed makes a fault likely to come again, and not certain to."
)]
pub(crate) struct Arguments {
    /// Ends after so many kills at random moments.
    #[arg(long, default_value_t = 60)]
    kills: u64,
    /// Ends the random kills, and after that those at fail-points, after so many minutes each at the latest.
    #[arg(long, default_value_t = 1.2)]
    minutes: f64,
    /// What the random numbers come from; a new one each time if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients ask at the same time.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How many sandboxes they ask for.
    #[arg(long, default_value_t = 24)]
    sandboxes: usize,
    /// How often each fail-point is to be hit after the random kills; 0 leaves them out.
    #[arg(long, default_value_t = 2, num_args = 0..=1, default_missing_value = "20")]
    failpoints: u64,
    /// Only this fail-point. May be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// The daemon to torture, if not the one of this build.
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// Where its directory is made; on a file system in memory if there is one.
    #[arg(long)]
    place: Option<PathBuf>,
    /// Leaves state and logs for inspection.
    #[arg(long)]
    keep: bool,
    /// Ends at the first fault.
    #[arg(long)]
    fail_fast: bool,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
    /// For cargo test, which passes its own on: run only if this is a part of `torture`.
    #[arg(hide = true)]
    filter: Option<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

/// Prints a line at once.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be there to read it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() -> ExitCode {
    let told: Vec<String> = std::env::args().skip(1).collect();
    if told.first().is_some_and(|first| first == heart::HEART) {
        heart::beat(&told[1..]);
    }
    let arguments = Arguments::parse();
    if arguments.list || arguments.filter.as_ref().is_some_and(|filter| !"torture".contains(filter.as_str()))
    {
        return ExitCode::SUCCESS;
    }
    model::try_itself();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a tokio runtime");
    // The clients share a thread; the daemon is another process.
    match tokio::task::LocalSet::new().block_on(&runtime, run::run(&arguments)) {
        Ok(true) => {
            say("test result: ok. 1 passed; 0 failed; 0 ignored");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            say("test result: FAILED. 0 passed; 1 failed; 0 ignored");
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("torture: {error}"));
            say("test result: FAILED. 0 passed; 1 failed; 0 ignored");
            ExitCode::FAILURE
        }
    }
}
