//! What a sandbox's main process has written.

/// Which of its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output, as it was read from the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// When it was read, in nanoseconds since the Unix epoch.
    pub at_unix_nanos: i64,
    /// From which of its outputs.
    pub stream: LogStream,
    /// The bytes, unchanged.
    pub bytes: Vec<u8>,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogPage {
    /// In the order of writing.
    pub chunks: Vec<LogChunk>,
    /// Where the next page begins: a position that grows with everything that was ever written.
    pub next: u64,
    /// How much of what was asked for has been dropped already, in bytes of the log's file.
    pub dropped: u64,
}
