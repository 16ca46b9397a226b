//! What can be set about the embedded Linux backend.

use std::path::PathBuf;
use std::time::Duration;

/// The default start of the range of IDs: past the users and groups of a usual machine.
const ID_START: u32 = 1 << 20;

/// The default number of blocks of IDs: all up to 2^31, past which some programs take an ID for a negative number.
const ID_BLOCKS: u32 = (1 << 15) - (ID_START >> 16);

/// The settings of a [`LinuxRuntime`](super::LinuxRuntime). The default suits a program that keeps its own sandboxes and
/// wants them gone when it ends.
///
/// ```
/// use sandkeeper::runtime::linux::LinuxConfig;
/// let config = LinuxConfig { name: Some("node-agent".to_owned()), ..LinuxConfig::default() };
/// assert_eq!(config.zygotes, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxConfig {
    /// What the root of its cgroups is named after, such as the path of a state directory. Two backends with one name
    /// cannot be up at the same time, and the later one clears what the earlier one left. Nothing for a name that no
    /// other backend of this boot has.
    pub name: Option<String>,
    /// Where sandboxes are found again: with a directory here they go on when this program ends, however it ends, and the next
    /// backend on the same directory takes them over. The cgroups are then named after the directory, and `name` is not used.
    ///
    /// It belongs on a file system that goes with the boot, such as `/run`. It is made if it is not there; it must be its user's
    /// own, and nobody else's to change. One backend at a time can use it.
    ///
    /// Nothing for sandboxes that end with this program.
    pub state_dir: Option<PathBuf>,
    /// With a state directory, how long a zygote stays that has neither this program nor a sandbox.
    pub linger: Duration,
    /// The first host ID of the range from which sandboxes get their users and groups, in blocks of 65,536. Choose a
    /// range that nothing else on the machine uses, such as other backends, `/etc/subuid` or `systemd-nspawn -U`.
    pub id_start: u32,
    /// How many blocks there are: the most sandboxes with [allocated users](crate::spec::Users::Allocated) at a time.
    pub id_blocks: u32,
    /// How many zygotes spawn sandboxes; 0 for one per core, which is the fastest.
    pub zygotes: usize,
    /// The most network namespaces kept ready, of some 220 KiB of kernel memory each. How many are, follows demand.
    pub ready_networks: usize,
    /// Moves every process of our own cgroup into a leaf of it, where that is what keeps limits from working: on a pure
    /// cgroup v2 machine a group cannot both hold processes and limit groups below it. Off, because it moves the
    /// program that embeds us, and whatever shares its cgroup.
    pub move_host_to_leaf: bool,
    /// Where exit statuses are read.
    pub exit_evidence: ExitEvidence,
    /// By what sandboxes are found again.
    pub adopt_by: AdoptBy,
    /// Where [logs](crate::spec::Stdio::log_bytes) are kept, in a directory for each sandbox. No other backend may use the
    /// same one. Without it, specs that ask for a log are refused.
    ///
    /// On tmpfs, what is written there counts to the memory of the sandbox it is from.
    pub log_dir: Option<PathBuf>,
    /// What else is shown to no sandbox that has its owner among its users, beside the two directories: a socket on which the program
    /// takes commands, say. It must be there.
    pub off_limits: Vec<PathBuf>,
}

impl Default for LinuxConfig {
    fn default() -> Self {
        Self {
            name: None,
            state_dir: None,
            linger: Duration::from_secs(60),
            id_start: ID_START,
            id_blocks: ID_BLOCKS,
            zygotes: 0,
            ready_networks: 64,
            move_host_to_leaf: false,
            exit_evidence: ExitEvidence::Best,
            adopt_by: AdoptBy::Best,
            log_dir: None,
            off_limits: Vec::new(),
        }
    }
}

/// Where exit statuses are read. Leave it at its default: the others are what is left where the default finds
/// nothing, and exist as a choice so that they are tested on machines that never need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExitEvidence {
    /// The zombie, then the pidfd, then nothing.
    #[default]
    Best,
    /// The pidfd (Linux 6.15 and later), as if the zombie had been reaped by another.
    Pidfd,
    /// Nothing: every exit is [`Lost`](crate::model::ExitReason::Lost).
    Nothing,
}

/// By what sandboxes are found again that an earlier backend has left. As with [`ExitEvidence`], the default is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdoptBy {
    /// Their parents, the zygotes, then their groups.
    #[default]
    Best,
    /// Their groups alone, as if the zygotes had been killed as well.
    Group,
}
