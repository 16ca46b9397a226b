//! What the kernel says about this process and the machine.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Between two looks at whether all is at rest.
const LOOK: Duration = Duration::from_millis(250);

/// So many looks in a row must find no change: two seconds, for longer than which no actor at rest is kept.
const STEADY_LOOKS: u32 = 8;

/// What still counts as no change of the machine's memory, in KiB.
const STEADY_KIB: f64 = 512.0;

/// The kinds of kernel memory that are told apart: their names in `/proc/meminfo`, and in ours.
pub(crate) const KINDS: [(&str, &str); 5] = [
    ("Slab", "slab"),
    ("Percpu", "per-CPU"),
    ("KernelStack", "stacks"),
    ("PageTables", "page tables"),
    ("AnonPages", "process pages"),
];

/// What was in use at one moment. Memory is in KiB.
pub(crate) struct Moment {
    pub(crate) heap: f64,
    pub(crate) own: f64,
    pub(crate) available: f64,
    pub(crate) kinds: [f64; KINDS.len()],
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let machine = fields("/proc/meminfo");
        Self {
            heap: crate::counting::live() / 1_024.0,
            own: fields("/proc/self/smaps_rollup")["Rss"],
            available: machine["MemAvailable"],
            kinds: KINDS.map(|(name, _)| machine.get(name).copied().unwrap_or(0.0)),
            descriptors: entries("/proc/self/fd") - 1,
            threads: entries("/proc/self/task"),
        }
    }

    /// Once nothing changes any more, or after so long: the kernel gives memory back late, and a backend keeps network
    /// namespaces ready for some seconds after it needed many.
    pub(crate) async fn at_rest(patience: Duration) -> Self {
        let begun = Instant::now();
        let mut before = Self::now();
        let mut steady = 0;
        while steady < STEADY_LOOKS && begun.elapsed() < patience {
            tokio::time::sleep(LOOK).await;
            let now = Self::now();
            let same = (now.available - before.available).abs() < STEADY_KIB
                && now.descriptors == before.descriptors;
            steady = if same { steady + 1 } else { 0 };
            before = now;
        }
        before
    }
}

/// The numbers of a file with a name, a colon and a number in each line.
fn fields(path: &str) -> HashMap<String, f64> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let field = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(field).collect()
}

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).unwrap_or_else(|error| panic!("{path}: {error}")).count()
}

/// Memory of a process in KiB, each page shared out among those who have it.
pub(crate) fn proportional_set(pid: u32) -> f64 {
    fields(&format!("/proc/{pid}/smaps_rollup"))["Pss"]
}

/// When the process of this number started, in ticks since boot: the two together are never another's. Nothing if none
/// has the number, or it has ended.
pub(crate) fn started_at(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state follows it. Source: proc_pid_stat(5).
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Processor time of this process up to now.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often each thread of this process has gone to sleep by itself.
pub(crate) fn sleeps() -> HashMap<String, u64> {
    let mut sleeps = HashMap::new();
    for thread in std::fs::read_dir("/proc/self/task").expect("our own threads").flatten() {
        let path = thread.path().join("status");
        // A thread that has just ended has none.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = count.and_then(|count| count.trim().parse().ok()).expect("a count of switches");
        sleeps.insert(thread.file_name().to_string_lossy().into_owned(), count);
    }
    sleeps
}
