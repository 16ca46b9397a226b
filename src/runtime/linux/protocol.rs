//! What the host and its zygotes say to each other. Compiled into both: the library, and the freestanding
//! init.
//!
//! Every message is one packet of a SOCK_SEQPACKET pair: a [`Header`], a body, and descriptors beside it.
//!
//! ```text
//! host → zygote   SetUp   Stay, if it is to stay fds: /proc, root cgroup, leaf cgroup, a cgroup to end in,
//!                                                     [the socket that hosts come to, the directory it is in]
//!                 Build   Fixed + its lists      fds: cgroup, report pipe, [network], [root tree], a tree per mount;
//!                                                     no tree where the zygote is one user's: it opens the sources itself
//!                 Spawn   Child, Fixed + lists   fds: cgroup, report pipe, [network], [builder], [stdin, stdout, stderr], [2 log slots]
//!                 Exec    Fixed + its lists      fds: cgroup, report pipe, leader's pidfd, leash pipe, [stdin, stdout, stderr]
//!                 Reap    pid: u32 …
//!                 Hello   nothing                answered by Hello: Welcome
//!                 List    from: u32              answered by List: Listing, Child …
//!                 Retire  nothing
//!                 Discard pid: u32
//! zygote → host   Answer  Answer                 fds: the child's pidfd, if there is a child
//! child  → host   Report, over the request's own pipe: how its set-up went
//! ```
//!
//! Numbers are in the machine's own byte order: both sides run on one machine and are built together. The
//! version is checked all the same, since a zygote may outlive the program that made it.
//!
//! **The base protocol never changes**: [`Header`], the numbers of [`Kind`], and the bodies of Hello, List, Reap, Retire and
//! Discard. A zygote takes these from a host of any version, and answers with its own, so that a host of another version can
//! list its children, let them go as they end, and have it end with the last. All else needs equal versions.

use core::mem::size_of;

/// The version of everything in this file but the base protocol. Changed with it.
pub(crate) const VERSION: u32 = 0x534b_0004;

/// The most bytes in one message. Arguments and environment (128 KiB), the filter, and mount targets must
/// fit.
pub(crate) const MAX_MESSAGE: usize = 192 * 1024;
/// The most descriptors beside one message: what the request needs, and one for each mount.
pub(crate) const MAX_FDS: usize = 128 + 8;
/// The most arguments, and likewise variables.
pub(crate) const MAX_STRINGS: usize = 4_096;
/// The most process IDs in one Reap.
pub(crate) const MAX_REAPS: usize = 256;
/// The most children of one zygote.
pub(crate) const MAX_CHILDREN: usize = 1 << 16;
/// The most children in one List.
pub(crate) const MAX_LISTED: usize = 1_024;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    SetUp = 1,
    Build = 2,
    Spawn = 3,
    Reap = 4,
    Answer = 5,
    /// Who are you? Part of the base protocol, as all below.
    Hello = 6,
    /// Whose parent are you?
    List = 7,
    /// Make nothing any more, and end with the last child.
    Retire = 8,
    /// Kill a child, and reap it when it has ended.
    Discard = 9,
    /// Run another program in a sandbox.
    Exec = 11,
}

impl Kind {
    pub(crate) fn from_u32(number: u32) -> Option<Self> {
        use Kind::*;
        let all = [SetUp, Build, Spawn, Reap, Answer, Hello, List, Retire, Discard, Exec];
        all.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// What precedes every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) kind: u32,
    /// Joins an answer to its request.
    pub(crate) request: u64,
}

/// What a zygote answers: a child, or the step that failed and its errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Answer {
    /// The child, as the zygote's own PID namespace numbers it; 0 if there is none.
    pub(crate) pid: u32,
    pub(crate) report: Report,
    pub(crate) padding: u32,
}

/// A child of a zygote that has not been reaped. Part of the base protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct Child {
    /// The life it leads; 0 for one that is of no use without the host that asked for it, and from [`NO_LIFE`] on others that
    /// lead none.
    pub(crate) life: u64,
    /// Its cgroup's inode number.
    pub(crate) group: u64,
    /// Its number in the zygote's PID namespace. In a Spawn, 0.
    pub(crate) pid: u32,
    /// The first of its block of user IDs; 0 if it has none.
    pub(crate) ids: u32,
}

/// The first number that is never a life's.
pub(crate) const NO_LIFE: u64 = u64::MAX - 15;

/// What a zygote says of itself. Part of the base protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Welcome {
    /// Its number in its own PID namespace.
    pub(crate) pid: u32,
    /// How many children it has.
    pub(crate) children: u32,
    /// Whether it makes nothing any more: 1 if so.
    pub(crate) retired: u32,
    /// Whether it has the rights of one ordinary user, in a user namespace of its own: 1 if so.
    pub(crate) one_user: u32,
}

/// What precedes the children in a List. Part of the base protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Listing {
    /// How many children there are.
    pub(crate) children: u32,
    /// How many of them follow, from the one that was asked for.
    pub(crate) count: u32,
}

/// How a zygote is to stay when its host is gone; the name of its socket follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Stay {
    /// How long it stays without a host and without children.
    pub(crate) linger_milliseconds: u32,
    pub(crate) padding: u32,
}

/// How far a child's set-up came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Report {
    /// A [`Step`].
    pub(crate) step: u32,
    /// Why it failed; 0 for [`Step::Ready`], [`Step::Executing`] and [`Step::Built`].
    pub(crate) errno: u32,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What a zygote or a child of it was doing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum Step { $($(#[$doc])* $name),+ }

        impl Step {
            const ALL: &[Step] = &[$(Step::$name),+];

            pub(crate) fn from_u32(number: u32) -> Option<Self> {
                Self::ALL.get(number as usize).copied()
            }
        }
    };
}

steps! {
    /// It is done.
    Ready,
    /// All is done but the execution of the program. Another report follows if that fails, else the pipe's
    /// end.
    Executing,
    /// The mount tree stands.
    Built,
    /// The message is not one of this version, or malformed.
    Understand,
    /// It stays for the sake of its children, and makes no others.
    Retired,
    // The zygote's own set-up.
    OwnUsers, Listen, JoinLeaf, Session, OwnNetwork, OwnMounts, Template, Devices, DeadProc, Pivot,
    // A request.
    Pipe, JoinNetwork, JoinMounts, Clone, Users,
    // A builder.
    OpenSource, BuilderNetwork, AttachRoot, BindDev, BindProc, MountSys, MountTmp, MountShm, MountPts, FindTarget, AttachMount, MaskSys,
    // A leader.
    Descriptors, Release, CgroupNamespace, BecomeRoot, Loopback, HostName, MountProc, MaskProc, ReadOnlyProc,
    Keyring,
    BoundingSet, NewPrivileges, Seccomp, Fork, InitCapabilities,
    // A main process.
    NewSession, Rlimit, Groups, Group, User, Capabilities, Directory, Execute,
    LogPipes, EnterSandbox, TieToParent,
    /// The program of an Exec has been executed. In the place of an errno comes its process ID.
    Executed,
}

#[path = "flag.rs"]
pub(crate) mod flag;

/// The part of a plan that has always the same size. Its lists follow in the order of their counts here: host
/// name, working directory, groups, rlimits, filter, arguments, variables, search path, mount targets, sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct Fixed {
    pub(crate) kept_capabilities: u64,
    pub(crate) flags: u32,
    pub(crate) host_start: u32,
    pub(crate) id_count: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: u32,
    pub(crate) rlimits: u32,
    pub(crate) instructions: u32,
    pub(crate) args: u32,
    pub(crate) variables: u32,
    pub(crate) mounts: u32,
    /// The most that each temporary file system may hold.
    pub(crate) tmpfs_kilobytes: u32,
    /// What a builder opens by itself: the root, if it is given, and a source for each mount.
    pub(crate) sources: u32,
    pub(crate) padding: u32,
}

/// One resource limit in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct PlanRlimit {
    pub(crate) resource: u64,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// One instruction of classic BPF, as `seccomp(2)` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) value: u32,
}

/// A value that is bytes and nothing else.
///
/// # Safety
/// The type is `repr(C)`, of integers only, without padding: any bytes are a value, and any value is bytes.
#[allow(unsafe_code)]
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),+) => {
        $(
            #[allow(unsafe_code)]
            // SAFETY: an integer, or repr(C) of integers; `no_padding` below adds up its fields.
            unsafe impl Plain for $name {}
        )+
    };
}
plain!(u32, u64, Header, Report, Answer, Fixed, PlanRlimit, Instruction, Child, Welcome, Listing, Stay);

const _NO_PADDING: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Report>() == 8);
    assert!(size_of::<Answer>() == 16);
    assert!(size_of::<Child>() == 24);
    assert!(size_of::<Welcome>() == 16 && size_of::<Listing>() == 8 && size_of::<Stay>() == 8);
    assert!(size_of::<Fixed>() == 8 + 14 * 4);
    assert!(size_of::<PlanRlimit>() == 24);
    assert!(size_of::<Instruction>() == 8);
};

/// The bytes of a value.
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    #[allow(unsafe_code)]
    // SAFETY: `Plain` promises a type without padding, so all its bytes are initialised; the slice borrows
    // the value.
    unsafe {
        core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>())
    }
}

/// Reads a message from front to back; past its end there is nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(front)
    }

    /// The next value, wherever it lies.
    pub(crate) fn value<T: Plain>(&mut self) -> Option<T> {
        let bytes = self.bytes(size_of::<T>())?;
        #[allow(unsafe_code)]
        // SAFETY: there are as many bytes as the type has, any bytes are a value of a `Plain` type, and the
        // read does not ask for alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    /// The next text, its closing NUL included.
    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        self.bytes(end + 1)
    }

    /// As many texts, as the bytes they take.
    pub(crate) fn texts(&mut self, count: u32) -> Option<Texts<'a>> {
        let start = self.rest;
        for _ in 0..count {
            self.text()?;
        }
        let length = start.len() - self.rest.len();
        Some(Texts { reader: Reader::new(start.get(..length)?), left: count })
    }

    /// As many values.
    pub(crate) fn values<T: Plain>(&mut self, count: u32) -> Option<Values<'a, T>> {
        let bytes = self.bytes((count as usize).checked_mul(size_of::<T>())?)?;
        Some(Values { reader: Reader::new(bytes), left: count, of: core::marker::PhantomData })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Texts of a plan, each with its closing NUL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Texts<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for Texts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.reader.text()
    }
}

/// Values of a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a, T> {
    reader: Reader<'a>,
    left: u32,
    of: core::marker::PhantomData<T>,
}

impl<'a, T> Values<'a, T> {
    /// Their bytes.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.reader.rest
    }
}

impl<T: Plain> Iterator for Values<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        self.reader.value()
    }
}

/// A plan as it came over the socket. Nothing is copied: its texts are handed to the kernel where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoded<'a> {
    pub(crate) fixed: Fixed,
    pub(crate) hostname: &'a [u8],
    pub(crate) cwd: &'a [u8],
    pub(crate) groups: Values<'a, u32>,
    pub(crate) rlimits: Values<'a, PlanRlimit>,
    pub(crate) filter: Values<'a, Instruction>,
    pub(crate) args: Texts<'a>,
    pub(crate) variables: Texts<'a>,
    /// Where to look for a program that is named without a `/`, parted by `:`.
    pub(crate) search: &'a [u8],
    pub(crate) mounts: Texts<'a>,
    /// See [`flag::source`].
    pub(crate) sources: Texts<'a>,
}

impl<'a> Decoded<'a> {
    /// Decodes the body of a Build or Spawn. `None` if anything is missing, left over, or out of bounds.
    pub(crate) fn new(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let fixed: Fixed = reader.value()?;
        if fixed.args as usize > MAX_STRINGS || fixed.variables as usize > MAX_STRINGS {
            return None;
        }
        let decoded = Self {
            fixed,
            hostname: reader.text()?,
            cwd: reader.text()?,
            groups: reader.values(fixed.groups)?,
            rlimits: reader.values(fixed.rlimits)?,
            filter: reader.values(fixed.instructions)?,
            args: reader.texts(fixed.args)?,
            variables: reader.texts(fixed.variables)?,
            search: reader.text()?,
            mounts: reader.texts(fixed.mounts)?,
            sources: reader.texts(fixed.sources)?,
        };
        reader.is_empty().then_some(decoded)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.fixed.flags & flag != 0
    }
}

/// The name of a zygote, and of a child of it that has not run at all.
pub(crate) const ZYGOTE_NAME: &core::ffi::CStr = c"sk-zygote";
/// The name of a leader until its set-up is done.
pub(crate) const SETUP_NAME: &core::ffi::CStr = c"sk-setup";

/// The name an init takes before it ends, followed by the main process's wait status as four hexadecimal
/// digits.
///
/// An init cannot die of its child's signal, and an exit status has 8 bits where a wait status has 16. The
/// name of a zombie stays readable in `/proc/PID/stat` until it is reaped, wherever it was reparented to, and
/// nobody but the init itself can set it.
pub(crate) const EXIT_NAME: &[u8; 8] = b"sk-exit:";

/// The name that tells this wait status, with its closing NUL.
pub(crate) fn exit_name(wait_status: u32) -> [u8; 13] {
    let mut name = [0; 13];
    name[..8].copy_from_slice(EXIT_NAME);
    for (at, digit) in name[8..12].iter_mut().enumerate() {
        let nibble = (wait_status >> (12 - 4 * at)) as u8 & 0xf;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    }
    name
}

/// The wait status that a name tells, if it tells one.
pub(crate) fn wait_status_of_name(name: &[u8]) -> Option<u32> {
    let digits = name.strip_prefix(EXIT_NAME.as_slice())?;
    if digits.len() != 4 {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u32::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_status_survives_the_name_of_an_init() {
        for status in 0..=0xffff {
            let name = exit_name(status);
            assert!(name.len() <= 16, "a name has 15 bytes and a NUL");
            assert_eq!(wait_status_of_name(&name[..12]), Some(status));
        }
        for other in ["sk-exit:", "sk-exit:00000", "sk-exit:00G0", "sk-exit:-001", "init", ""] {
            assert_eq!(wait_status_of_name(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_truncated_or_overlong_body_decodes_to_nothing() {
        let fixed = Fixed { args: 1, groups: 2, ..Fixed::default() };
        let mut body = bytes_of(&fixed).to_vec();
        body.extend(b"host\0/\0");
        body.extend(7_u32.to_ne_bytes());
        body.extend(9_u32.to_ne_bytes());
        body.extend(b"/bin/true\0\0");
        let decoded = Decoded::new(&body).expect("complete");
        assert_eq!(decoded.groups.collect::<Vec<_>>(), [7, 9]);
        assert_eq!(decoded.args.collect::<Vec<_>>(), [b"/bin/true\0"]);
        for length in 0..body.len() {
            assert!(Decoded::new(&body[..length]).is_none(), "{length} of {} bytes", body.len());
        }
        body.push(0);
        assert!(Decoded::new(&body).is_none());
    }
}
