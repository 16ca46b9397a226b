//! A node agent's day on real sandboxes: start, ping, pause, lose, account for and shut down.
//!
//! Run it as root: `cargo run --release --example node_agent -- --help`. Read it from `day` on; each thing that an agent
//! does is a file of its own.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

mod agent;
mod deaths;
mod figures;
mod pauses;
mod pings;
mod process;
mod report;
mod starts;

use agent::Agent;
use process::Memory;
use report::Report;

/// Whatever ends the day early.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How the program ends after Ctrl-C or SIGTERM.
const INTERRUPTED: u8 = 130;

/// Starts real sandboxes on this machine, looks after them for a moment, and shuts them down again.
///
/// Needs root, cgroup v2 and Linux 5.14 or later. Ends with 0 if all went as it should, 1 if something is left, was not
/// noticed or could not be done, and 130 after Ctrl-C or SIGTERM, which shut everything down first. A second one ends
/// the program at once: the sandboxes end with it.
#[derive(Parser)]
#[command(name = "node_agent")]
struct Options {
    /// How many sandboxes to start
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    sandboxes: u32,
    /// How many to start at a time [default: 2 for each core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    concurrency: Option<u32>,
    /// Give the sandboxes no network instead of a network namespace each
    #[arg(long)]
    no_network: bool,
    /// End with one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Options {
    fn concurrency(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.concurrency.map_or(2 * cores, |concurrency| concurrency as usize)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    match run(&options).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("node_agent: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the agent, lives its day or as much of it as there is time for, and closes it in any case.
async fn run(options: &Options) -> Result<ExitCode, Failure> {
    let signals = Signals::listen()?;
    let mut agent = Agent::open(options.concurrency())?;
    let mut interrupted = signals.obey(agent.output_directory());
    let mut report = Report::new(options.sandboxes, options.concurrency());
    let day = tokio::select! {
        day = day(options, &mut agent, &mut report) => day,
        _ = interrupted.wait_for(|interrupted| *interrupted) => Ok(()),
    };
    let closed = agent.close().await;
    for left in &closed.left {
        eprintln!("left behind: {left}");
    }
    if *interrupted.borrow() {
        let left = if closed.left.is_empty() { "nothing is left" } else { "not everything is gone" };
        eprintln!("interrupted: {} sandboxes were shut down; {left}", closed.sandboxes);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    day?;
    report.shutdown(closed.sandboxes, closed.took, closed.left.len());
    if options.json {
        println!("{}", report.json());
    } else {
        println!("\n{report}");
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("node_agent: {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an agent does from morning to evening; closing comes after it, whatever it came to.
async fn day(options: &Options, agent: &mut Agent, report: &mut Report) -> Result<(), Failure> {
    for (name, finding) in agent.findings() {
        eprintln!("{name}: {finding}");
    }
    let fleet = agent.fleet(options.sandboxes, options.no_network)?;
    let before = Memory::settled().await?;
    report.starts(starts::start_all(agent, &fleet, options.concurrency()).await?);
    report.memory(before, Memory::read()?);
    agent.remember_leaders();

    eprintln!("pinging and sweeping");
    report.pings(tokio::task::block_in_place(|| pings::measure(agent, &fleet))?);

    let counters: Vec<_> = fleet.iter().filter_map(|member| member.counter.clone()).collect();
    eprintln!("pausing and resuming {} that count", counters.len());
    report.pauses(pauses::prove(agent, &counters).await?);

    let victims: Vec<_> = fleet.iter().take(fleet.len().div_ceil(10)).map(|member| member.key).collect();
    eprintln!("killing {} from outside", victims.len());
    report.deaths(deaths::kill_and_hear(agent, &victims).await?);

    eprintln!("shutting down");
    Ok(())
}

/// Ctrl-C and SIGTERM. Heard from the moment of listening, so that none is lost.
struct Signals(Signal, Signal);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }

    /// Tells of the first one; at the second, removes `output` and ends the program.
    fn obey(mut self, output: PathBuf) -> watch::Receiver<bool> {
        let (tell, interrupted) = watch::channel(false);
        tokio::spawn(async move {
            self.next().await;
            eprintln!("interrupted: shutting everything down; once more to end at once");
            tell.send_replace(true);
            self.next().await;
            // The zygotes notice that the agent is gone, and end what it ran.
            drop(std::fs::remove_dir_all(output));
            std::process::exit(INTERRUPTED.into());
        });
        interrupted
    }
}

/// Milliseconds, for reports.
fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
