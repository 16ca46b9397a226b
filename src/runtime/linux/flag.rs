//! Bits of a plan's flags, [`Fixed::flags`](super::Fixed). Compiled into the library and the init, as all of the protocol.

/// A user namespace, with the IDs of the plan.
pub(crate) const USERS: u32 = 1;
/// A descriptor of the network namespace to be in comes along.
pub(crate) const NET_GIVEN: u32 = 1 << 1;
/// A new network namespace.
pub(crate) const NET_FRESH: u32 = 1 << 2;
/// The network namespace of the host.
pub(crate) const NET_HOST: u32 = 1 << 3;
/// A root tree comes along; without it, the root is the template's.
pub(crate) const ROOT_GIVEN: u32 = 1 << 4;
/// A pidfd of the builder comes along, whose mounts (and new network namespace) are to be used.
pub(crate) const BUILT: u32 = 1 << 5;
/// There is a process to execute.
pub(crate) const PROCESS: u32 = 1 << 6;
/// The process is PID 1 itself.
pub(crate) const NO_INIT: u32 = 1 << 7;
/// The process may gain privileges by executing a program.
pub(crate) const NEW_PRIVILEGES: u32 = 1 << 8;
/// Mask what is dangerous in /proc and /sys, and make other parts read-only.
pub(crate) const MASK: u32 = 1 << 9;
/// A descriptor for standard input comes along; output and error likewise.
pub(crate) const STDIN: u32 = 1 << 10;
pub(crate) const STDOUT: u32 = 1 << 11;
pub(crate) const STDERR: u32 = 1 << 12;
/// A temporary file system at /tmp.
pub(crate) const TMP: u32 = 1 << 13;
/// Two files for a log of what the process writes come along; see `log_format.rs`.
pub(crate) const LOG: u32 = 1 << 16;
/// The program goes on when whoever asked for it is gone.
pub(crate) const DETACHED: u32 = 1 << 17;
/// The zygote is one ordinary user's: groups cannot be set, what is shown of the host is opened on this side, and a new
/// network's loopback is brought up here.
pub(crate) const ONE_USER: u32 = 1 << 18;

/// Bits of the first byte of a source. What was found there follows, as device and inode in 16 hexadecimal digits each, then its path.
pub(crate) mod source {
    /// Always set: a text holds no byte 0.
    pub(crate) const IS_ONE: u8 = 1;
    pub(crate) const WRITABLE: u8 = 2;
    /// Set-user-ID bits have an effect.
    pub(crate) const SETUID: u8 = 4;
}
