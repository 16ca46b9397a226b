//! `sandkeeper.v1.Keeper` over a unix socket: the service, its server, and a client.
//!
//! ```text
//!  Socket ── accept ──▶ connection ──▶ one task a call ──▶ door ──▶ Keeper
//!  0600, owner          HTTP/2          dropped when its    names, specs,
//!  checked              (hyper)         caller goes away    deadlines, errors
//! ```
//! A call that its caller gives up is dropped: its wait ends, and what it began goes on in the keeper. An answer in parts is
//! made as its reader takes it, so that a slow reader holds up nobody but itself. When the daemon ends, open waits, watches,
//! logs and programs end at once with `Unavailable`; other calls have a bounded time to be done.

mod client;
mod door;
mod exec;
mod list;
mod logs;
mod peer;
mod server;
mod service;
mod socket;
mod watch;

pub use client::{Client, ExecInput, ExecOutput, Watching};
pub use server::{About, Settings, serve};
pub use socket::Socket;

/// The name that the health service knows the daemon by.
pub const SERVICE_NAME: &str = "sandkeeper.v1.Keeper";

/// The largest message: 4 MiB, and room for what frames it.
pub const MESSAGE_BYTES: usize = 4 * 1_024 * 1_024 + 64 * 1_024;

/// No answer in pages or parts grows past this.
const PART_BYTES: usize = 3 * 1_024 * 1_024;

/// How many calls may be open on one connection.
pub const MAX_STREAMS: u32 = 131_072;

/// How much may be under way to either end of a connection. The HTTP/2 library takes small frames that nobody has read yet for
/// an attack once they cost it half of this, at 256 bytes each: enough that every stream may have one.
const CONNECTION_WINDOW: u32 = 2 * 256 * MAX_STREAMS;

/// Says when to try again, in milliseconds.
const RETRY_AFTER: &str = "sandkeeper-retry-after-ms";

/// An answer in parts.
type Parts<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, tonic::Status>> + Send>>;
