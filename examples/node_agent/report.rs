//! The day in figures: a table for people, or a line of JSON.

use std::fmt;
use std::time::Duration;

use crate::deaths::Deaths;
use crate::millis;
use crate::pauses::Pauses;
use crate::pings::Pings;
use crate::process::Memory;
use crate::starts::Starts;

/// Filled in as the day goes.
pub(crate) struct Report {
    sandboxes: u32,
    concurrency: usize,
    starts: Option<Starts>,
    pings: Option<Pings>,
    pauses: Pauses,
    deaths: Deaths,
    /// Of this program and of the kernel, each in KiB for a sandbox.
    memory: (f64, f64),
    shut_down: (usize, Duration),
    left_behind: usize,
}

impl Report {
    pub(crate) fn new(sandboxes: u32, concurrency: usize) -> Self {
        Self {
            sandboxes,
            concurrency,
            starts: None,
            pings: None,
            pauses: Pauses::default(),
            deaths: Deaths::default(),
            memory: (0.0, 0.0),
            shut_down: (0, Duration::ZERO),
            left_behind: 0,
        }
    }

    pub(crate) fn starts(&mut self, starts: Starts) {
        self.starts = Some(starts);
    }

    pub(crate) fn pings(&mut self, pings: Pings) {
        self.pings = Some(pings);
    }

    pub(crate) fn pauses(&mut self, pauses: Pauses) {
        self.pauses = pauses;
    }

    pub(crate) fn deaths(&mut self, deaths: Deaths) {
        self.deaths = deaths;
    }

    /// Memory before the first start and after the last: not after the end, since the kernel gives it back late.
    pub(crate) fn memory(&mut self, before: Memory, after: Memory) {
        let own = after.own - before.own;
        let kernel = before.available - after.available - own;
        self.memory = (own / f64::from(self.sandboxes), kernel / f64::from(self.sandboxes));
    }

    pub(crate) fn shutdown(&mut self, sandboxes: usize, took: Duration, left_behind: usize) {
        self.shut_down = (sandboxes, took);
        self.left_behind = left_behind;
    }

    /// What did not go as it should.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = Vec::new();
        faults.extend(self.pauses.wrong.iter().cloned());
        faults.extend(self.deaths.unseen.iter().cloned());
        if self.left_behind > 0 {
            faults.push(format!("{} things are left behind", self.left_behind));
        }
        faults
    }

    /// One object on one line, for programs.
    pub(crate) fn json(&self) -> String {
        let row = self.figures();
        let fields = row.iter().map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn figures(&self) -> [(&'static str, String); 15] {
        let each =
            |percent| self.starts.as_ref().map_or(0.0, |starts| millis(starts.each.percentile(percent)));
        let ping = |of: fn(&Pings) -> f64| format!("{:.2}", self.pings.as_ref().map_or(0.0, of));
        let (own, kernel) = self.memory;
        [
            ("sandboxes", self.sandboxes.to_string()),
            ("started", self.started().to_string()),
            ("start_per_sec", format!("{:.1}", self.starts_per_second())),
            ("start_p50_ms", format!("{:.3}", each(50))),
            ("start_p99_ms", format!("{:.3}", each(99))),
            ("ping_by_id_ns", ping(|pings| pings.by_id)),
            ("ping_handle_ns", ping(|pings| pings.by_handle)),
            ("sweep_ns_per_sandbox", ping(|pings| pings.sweep)),
            ("paused_ok", self.paused_ok().to_string()),
            ("deaths", self.deaths.killed.to_string()),
            ("deaths_seen", self.deaths.seen_after.len().to_string()),
            ("death_seen_p99_ms", format!("{:.3}", millis(self.deaths.seen_after.percentile(99)))),
            ("own_rss_kib_per_sandbox", format!("{own:.1}")),
            ("kernel_kib_per_sandbox", format!("{kernel:.1}")),
            ("left_behind", self.left_behind.to_string()),
        ]
    }

    fn started(&self) -> usize {
        self.starts.as_ref().map_or(0, |starts| starts.each.len())
    }

    fn starts_per_second(&self) -> f64 {
        self.starts.as_ref().map_or(0.0, |starts| starts.each.len() as f64 / starts.took.as_secs_f64())
    }

    /// Whether something was paused, and all of it stood still.
    fn paused_ok(&self) -> bool {
        self.pauses.pause.len() > 0 && self.pauses.wrong.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |what: &str, value: String, meaning: &str| writeln!(f, "{what:<12} {value:>16}  {meaning}");
        row(
            "started",
            format!("{} of {}", self.started(), self.sandboxes),
            &format!("real sandboxes, {} at a time", self.concurrency),
        )?;
        row("  rate", format!("{:.0} /s", self.starts_per_second()), "")?;
        if let Some(starts) = &self.starts {
            let each = |percent| format!("{:.2} ms", millis(starts.each.percentile(percent)));
            row("  p50", each(50), "from the call to a leader that runs")?;
            row("  p99", each(99), "")?;
        }
        if let Some(pings) = &self.pings {
            row("ping", format!("{:.1} ns", pings.by_id), "by ID: one look-up, one atomic load")?;
            row("", format!("{:.1} ns", pings.by_handle), "by handle: one atomic load")?;
            row("sweep", format!("{:.2} ns", pings.sweep), "for each sandbox, counting all by phase")?;
        }
        let Pauses { pause, resume, .. } = &self.pauses;
        let verdict = if self.paused_ok() { "all stood still, and counted on" } else { "NOT as they should" };
        row("paused", pause.len().to_string(), verdict)?;
        row("  p50", format!("{:.2} ms", millis(pause.percentile(50))), "from the call to frozen")?;
        row("  p50", format!("{:.2} ms", millis(resume.percentile(50))), "from the call to thawed")?;
        let seen = &self.deaths.seen_after;
        row("killed", self.deaths.killed.to_string(), "leaders, by SIGKILL from outside")?;
        row("  seen", seen.len().to_string(), "by a watcher of the keeper's events")?;
        row("  p50", format!("{:.2} ms", millis(seen.percentile(50))), "from the signal to the event")?;
        row("  p99", format!("{:.2} ms", millis(seen.percentile(99))), "")?;
        row("memory", format!("{:.1} KiB", self.memory.0), "of this program, for each sandbox")?;
        row("", format!("{:.1} KiB", self.memory.1), "of the kernel; what else runs disturbs it")?;
        let (sandboxes, took) = self.shut_down;
        row("shut down", sandboxes.to_string(), &format!("in {:.0} ms", millis(took)))?;
        row("left behind", self.left_behind.to_string(), "processes, cgroups, files")
    }
}
