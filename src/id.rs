//! Names of sandboxes: checked once at the edge, stored inline, never on the heap.
//!
//! A sandbox is named by its [`Namespace`] and its [`SandboxId`] together; [`SandboxKey`] is both. Two
//! namespaces never meet: not in the index, not in a cgroup, not in a file name ([`SandboxKey::file_name`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The longest namespace or sandbox ID, in characters (containerd's identifier rule).
pub const MAX_IDENTIFIER_LEN: usize = 76;

/// Room for a length, both names and the separator between them, in whole words.
const KEY_BYTES: usize = (2 * MAX_IDENTIFIER_LEN + 2).next_multiple_of(8);

/// Separates namespace and ID where both are stored or shown together. No identifier contains it.
const SEPARATOR: u8 = b'/';

/// Takes the place of [`SEPARATOR`] in names of files and cgroups. No identifier contains it either.
const FILE_SEPARATOR: char = '@';

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// The name is empty.
    #[error("it is empty; 1 to 76 characters are needed")]
    Empty,
    /// The name is too long.
    #[error("it has {0} bytes; 76 are allowed")]
    TooLong(usize),
    /// A character other than an ASCII letter, a digit, or a single `.`, `_` or `-` between two of those.
    #[error(
        "byte {0} is not allowed there; use ASCII letters and digits, with single '.', '_' or '-' between them"
    )]
    BadByte(usize),
    /// A key in text form has no `/` between namespace and ID.
    #[error("it has no '/' between namespace and sandbox ID")]
    NoSeparator,
}

/// Checks containerd's identifier rule: `[A-Za-z0-9]+([._-][A-Za-z0-9]+)*`, 1 to 76 characters.
fn check_identifier(name: &str) -> Result<(), InvalidIdentifier> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(InvalidIdentifier::Empty);
    }
    if bytes.len() > MAX_IDENTIFIER_LEN {
        return Err(InvalidIdentifier::TooLong(bytes.len()));
    }
    let mut after_alphanumeric = false;
    for (at, byte) in bytes.iter().enumerate() {
        let alphanumeric = byte.is_ascii_alphanumeric();
        let joint = matches!(byte, b'.' | b'_' | b'-') && after_alphanumeric;
        if !alphanumeric && !joint {
            return Err(InvalidIdentifier::BadByte(at));
        }
        after_alphanumeric = alphanumeric;
    }
    if after_alphanumeric { Ok(()) } else { Err(InvalidIdentifier::BadByte(bytes.len() - 1)) }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            // Ordered before the length, so that the derived order is the order of the text.
            bytes: [u8; MAX_IDENTIFIER_LEN],
            len: u8,
        }

        impl $name {
            /// Checks `name` against the identifier rule and keeps a copy of it, inline.
            ///
            /// # Errors
            /// [`InvalidIdentifier`] says which rule it breaks, and where.
            pub fn new(name: &str) -> Result<Self, InvalidIdentifier> {
                check_identifier(name)?;
                let mut bytes = [0; MAX_IDENTIFIER_LEN];
                bytes[..name.len()].copy_from_slice(name.as_bytes());
                Ok(Self { bytes, len: name.len() as u8 })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                text(&self.bytes[..usize::from(self.len)])
            }
        }

        impl FromStr for $name {
            type Err = InvalidIdentifier;
            fn from_str(name: &str) -> Result<Self, InvalidIdentifier> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

identifier! {
    /// Keeps the sandboxes of one tenant apart from those of another: the same ID in two namespaces names two
    /// sandboxes.
    Namespace
}

identifier! {
    /// Names a sandbox within its [`Namespace`].
    SandboxId
}

impl Default for Namespace {
    /// `default`, as in containerd.
    fn default() -> Self {
        Namespace::new("default").expect("a valid identifier")
    }
}

/// Names a sandbox on this node: its namespace and its ID.
///
/// 160 bytes, inline and `Copy`: looking a sandbox up allocates nothing. The text form is `namespace/id`.
///
/// ```
/// use sandkeeper::SandboxKey;
/// let key = SandboxKey::new("default", "web-7")?;
/// assert_eq!(key.to_string(), "default/web-7");
/// assert_eq!("default/web-7".parse::<SandboxKey>()?, key);
/// assert!(SandboxKey::new("default", "..").is_err());
/// # Ok::<(), sandkeeper::InvalidIdentifier>(())
/// ```
#[derive(Clone, Copy)]
pub struct SandboxKey {
    /// The length of the text, the text `namespace/id`, then zeros. The length comes first so that keys of different
    /// length differ in their first word.
    bytes: [u8; KEY_BYTES],
}

impl SandboxKey {
    /// How many [`words`](Self::words) the longest key has.
    pub(crate) const MOST_WORDS: usize = KEY_BYTES / 8;

    /// Checks both names and keeps a copy of them.
    ///
    /// # Errors
    /// [`InvalidIdentifier`] says which rule is broken, and where.
    pub fn new(namespace: &str, id: &str) -> Result<Self, InvalidIdentifier> {
        Ok(Self::from_parts(Namespace::new(namespace)?, SandboxId::new(id)?))
    }

    /// Joins two names that have been checked before.
    pub fn from_parts(namespace: Namespace, id: SandboxId) -> Self {
        let (namespace, id) = (namespace.as_str().as_bytes(), id.as_str().as_bytes());
        let mut bytes = [0; KEY_BYTES];
        let separator = 1 + namespace.len();
        let end = separator + 1 + id.len();
        bytes[0] = (end - 1) as u8;
        bytes[1..separator].copy_from_slice(namespace);
        bytes[separator] = SEPARATOR;
        bytes[separator + 1..end].copy_from_slice(id);
        Self { bytes }
    }

    /// The length and the text.
    #[inline]
    fn used(&self) -> &[u8] {
        &self.bytes[..1 + usize::from(self.bytes[0])]
    }

    /// Length and text as words, the last filled up with zeros: keys are equal if and only if these are.
    #[inline]
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let (words, _) = self.bytes.as_chunks::<8>();
        words[..self.used().len().div_ceil(8)].iter().map(|word| u64::from_le_bytes(*word))
    }

    fn split(&self) -> (&str, &str) {
        self.as_str().split_once(char::from(SEPARATOR)).expect("a key holds its separator")
    }

    /// The namespace.
    pub fn namespace(&self) -> Namespace {
        Namespace::new(self.split().0).expect("checked when the key was made")
    }

    /// The ID within the namespace.
    pub fn id(&self) -> SandboxId {
        SandboxId::new(self.split().1).expect("checked when the key was made")
    }

    /// `namespace/id`.
    pub fn as_str(&self) -> &str {
        text(&self.used()[1..])
    }

    /// A name for this sandbox's files and cgroup, at most `max_len` bytes long, different for each key.
    ///
    /// It is `namespace@id` where that fits. Where it does not, it is as much of that as fits, `@@`, and 32 hex
    /// digits of the key's SHA-256. No identifier contains `@`, so neither form can be taken for the other or for
    /// another key's.
    ///
    /// # Panics
    /// If `max_len` is under 34, the length of mark and digest.
    pub fn file_name(&self, max_len: usize) -> String {
        let plain = self.as_str().replace(char::from(SEPARATOR), FILE_SEPARATOR.encode_utf8(&mut [0; 4]));
        if plain.len() <= max_len {
            return plain;
        }
        let digest = Sha256::digest(self.as_str().as_bytes());
        let digest: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = max_len.checked_sub(digest.len() + 2).expect("a file name of at least 34 bytes");
        format!("{}@@{digest}", &plain[..kept])
    }

    /// The key whose plain [`file_name`](Self::file_name) this is; nothing for a shortened one.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (namespace, id) = name.split_once(FILE_SEPARATOR)?;
        Self::new(namespace, id).ok()
    }
}

/// Only checked ASCII is ever stored in a name.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("identifiers are ASCII")
}

impl PartialEq for SandboxKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        // The used part only: a comparison of all bytes costs more than it saves.
        self.used() == other.used()
    }
}

impl Eq for SandboxKey {}

impl Hash for SandboxKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        // One write and no terminator: it begins with the length, and the separator keeps `a/bc` and `ab/c` apart.
        state.write(self.used());
    }
}

impl PartialOrd for SandboxKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SandboxKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.split().cmp(&other.split())
    }
}

impl FromStr for SandboxKey {
    type Err = InvalidIdentifier;

    fn from_str(key: &str) -> Result<Self, InvalidIdentifier> {
        let (namespace, id) = key.split_once(char::from(SEPARATOR)).ok_or(InvalidIdentifier::NoSeparator)?;
        Self::new(namespace, id)
    }
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
#[path = "../tests/names/hostile.rs"]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identifier_rule_is_containerds() {
        let longest = "a".repeat(76);
        for good in ["a", "A", "0", "web-7", "a.b_c-d", "Abc", longest.as_str()] {
            assert_eq!(Namespace::new(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in hostile::hostile_names() {
            assert!(SandboxId::new(&bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn file_names_never_meet() {
        let long = "n".repeat(76);
        let almost = format!("{}m", "n".repeat(75));
        let names = ["a", "ab", "a.b", "b", "a-b", "A", long.as_str(), almost.as_str()];
        for max_len in [34, 40, 64, 255] {
            let mut seen = std::collections::HashSet::new();
            for namespace in names {
                for id in names {
                    let name = SandboxKey::new(namespace, id).unwrap().file_name(max_len);
                    assert!(name.len() <= max_len, "{name} is longer than {max_len}");
                    assert!(seen.insert(name.clone()), "{name} names two sandboxes");
                }
            }
        }
    }

    #[test]
    fn keys_are_equal_if_and_only_if_their_words_are() {
        let names = ["a", "ab", "abcdefg", "abcdefgh", "abcdefgh.i", "b"];
        let keys: Vec<_> =
            names.iter().flat_map(|ns| names.iter().map(|id| SandboxKey::new(ns, id).unwrap())).collect();
        for left in &keys {
            for right in &keys {
                assert_eq!(left == right, left.words().eq(right.words()), "{left} and {right}");
            }
        }
        let longest = SandboxKey::new(&"n".repeat(76), &"i".repeat(76)).unwrap();
        assert_eq!(longest.as_str().len(), 153);
        assert_eq!(longest.words().count(), SandboxKey::MOST_WORDS);
    }

    #[test]
    fn a_plain_file_name_gives_its_key_back() {
        let key = SandboxKey::new("k8s.io", "web-7").unwrap();
        assert_eq!(SandboxKey::from_file_name(&key.file_name(255)), Some(key));
        assert_eq!(SandboxKey::from_file_name(&key.file_name(34).replace("@", "@@")), None);
        assert_eq!(key.namespace().as_str(), "k8s.io");
        assert_eq!(key.id().as_str(), "web-7");
    }
}
