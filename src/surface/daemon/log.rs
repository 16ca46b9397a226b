//! Where the daemon logs to: standard error, through a thread of its own, so that nobody waits for whoever reads it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::config::{Config, LogFormat};
use crate::error::{Error, ErrorKind};

/// How many lines wait for a reader that is slow. Later ones are dropped, and counted.
const WAITING: usize = 8_192;
/// How long the end waits for what was logged to be written.
const FLUSHING: Duration = Duration::from_millis(300);

/// What is logged, as the configuration says it.
pub(super) fn filter(config: &Config) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(&config.log_level).map_err(|error| {
        let found = format!("log_level {:?} is no filter", config.log_level);
        Error::new(ErrorKind::InvalidArgument, "begin with this configuration", found)
            .caused_by(error)
            .remedy("write info, debug, or info,sandkeeper::journal=debug")
    })
}

/// Logs to standard error from now on, until the process ends.
pub(super) fn begin(config: &Config, filter: EnvFilter) -> io::Result<Log> {
    let (sender, receiver) = sync_channel(WAITING);
    let log = Log { sender, dropped: Arc::default() };
    let dropped = Arc::clone(&log.dropped);
    std::thread::Builder::new()
        .name("sandkeeper-log".to_owned())
        .spawn(move || write(&receiver, &dropped, io::stderr()))?;
    let lines = log.clone();
    // A line that cannot be written is nobody's fault; the default tells it by a macro that panics when standard error is gone.
    let to = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let to = to.with_writer(move || Line { log: lines.clone(), text: Vec::new() });
    match config.log_format {
        LogFormat::Json => to.json().init(),
        LogFormat::Text => to.with_ansi(io::stderr().is_terminal()).init(),
    }
    Ok(log)
}

/// Takes lines, and never waits.
#[derive(Clone)]
pub(super) struct Log {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    /// Everything before it is written.
    Mark(SyncSender<()>),
}

impl Log {
    /// Waits until what was logged is written, for a moment at most.
    pub(super) fn flush(&self) {
        let (done, written) = sync_channel(1);
        // If there is no room for it, nobody reads, and nothing is to be waited for.
        if self.sender.try_send(Entry::Mark(done)).is_ok() {
            let _in_time = written.recv_timeout(FLUSHING);
        }
    }
}

/// One line while it is composed; it goes off when it is dropped.
struct Line {
    log: Log,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if let Err(TrySendError::Full(_)) = self.log.sender.try_send(Entry::Line(text)) {
            self.log.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(entries: &Receiver<Entry>, dropped: &AtomicU64, mut to: impl Write) {
    for entry in entries {
        // Where it cannot be written there is nobody to tell.
        let _unread = match entry {
            Entry::Line(text) => to.write_all(&text),
            Entry::Mark(done) => {
                let _gone = done.try_send(());
                Ok(())
            }
        };
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _unread = writeln!(to, "{lost} lines were not written, for nobody read the log fast enough");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_never_reads_holds_up_nobody() {
        let (sender, receiver) = sync_channel(2);
        let log = Log { sender, dropped: Arc::default() };
        for text in ["a\n", "b\n", "c\n", "d\n"] {
            let mut line = Line { log: log.clone(), text: Vec::new() };
            line.write_all(text.as_bytes()).unwrap();
        }
        log.flush();
        let mut written = Vec::new();
        let dropped = Arc::clone(&log.dropped);
        drop(log);
        write(&receiver, &dropped, &mut written);
        let written = String::from_utf8(written).unwrap();
        assert_eq!(written, "a\n2 lines were not written, for nobody read the log fast enough\nb\n");
    }
}
