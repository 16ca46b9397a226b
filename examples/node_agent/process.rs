//! What the kernel says about processes and memory.

use std::time::{Duration, Instant};

use crate::Failure;

/// How long memory is given to settle at most.
const SETTLING: Duration = Duration::from_secs(3);

/// What counts as settled, in KiB given back between two looks.
const STEADY: f64 = 256.0;

/// A process, told apart from any other that ever had or will have its number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    /// The process that has this number now, if one runs under it.
    pub(crate) fn identify(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may contain anything; the state follows it. Source: proc_pid_stat(5).
        let (_, after_name) = stat.rsplit_once(") ")?;
        let mut fields = after_name.split(' ');
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        // What has ended and was not reaped yet is not there any more.
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::identify(self.pid).as_ref() == Some(self)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

/// Memory in KiB, at one moment.
pub(crate) struct Memory {
    /// What this program holds.
    pub(crate) own: f64,
    /// What the machine could still give.
    pub(crate) available: f64,
}

impl Memory {
    /// Once the kernel gives nothing back any more, such as what an earlier run of this program had: it takes its time.
    pub(crate) async fn settled() -> Result<Self, Failure> {
        let began = Instant::now();
        let mut before = Self::read()?;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = Self::read()?;
            if now.available - before.available < STEADY || began.elapsed() > SETTLING {
                return Ok(now);
            }
            before = now;
        }
    }

    pub(crate) fn read() -> Result<Self, Failure> {
        Ok(Self {
            own: field("/proc/self/status", "VmRSS:")?,
            available: field("/proc/meminfo", "MemAvailable:")?,
        })
    }
}

fn field(file: &str, name: &str) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.ok_or_else(|| format!("no {name} in {file}"))?.trim().parse()?)
}
