//! What a tree of the host shows by the mounts in it: whatever is mounted below a source comes along, and a path says nothing of that.
//!
//! Decided from the text of `/proc/self/mountinfo` alone.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mounts of this program's mount namespace.
pub(super) struct Mounts(Vec<Entry>);

struct Entry {
    id: u64,
    device: Vec<u8>,
    /// What of its file system it shows.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

/// A place in a file system, wherever that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    device: Vec<u8>,
    path: PathBuf,
}

impl Position {
    /// Whether one shows the other: they are one, or one is in the other.
    fn touches(&self, other: &Self) -> bool {
        self.device == other.device
            && (self.path.starts_with(&other.path) || other.path.starts_with(&self.path))
    }
}

impl Mounts {
    /// Source: proc_pid_mountinfo(5). Lines that make no sense are left out.
    pub(super) fn parse(mountinfo: &[u8]) -> Self {
        let entry = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let device = fields.nth(1)?.to_owned();
            Some(Entry { id, device, root: unescape(fields.next()?), point: unescape(fields.next()?) })
        };
        Self(mountinfo.split(|byte| *byte == b'\n').filter_map(entry).collect())
    }

    /// Where in its file system a path is that is on this mount.
    pub(super) fn position(&self, mount: u64, path: &Path) -> Option<Position> {
        let entry = self.0.iter().find(|entry| entry.id == mount)?;
        let path = below(&entry.root, path.strip_prefix(&entry.point).ok()?);
        Some(Position { device: entry.device.clone(), path })
    }

    /// Where a tree shows `place` or something in it: by what it begins with, or by a mount in it. `source` is without links, and on
    /// `mount`.
    pub(super) fn showing(&self, source: &Path, mount: u64, place: &Position) -> Option<PathBuf> {
        if self.position(mount, source).is_some_and(|begin| begin.touches(place)) {
            return Some(source.to_owned());
        }
        let inside = self.0.iter().filter(|entry| entry.point.starts_with(source));
        let position = |entry: &Entry| Position { device: entry.device.clone(), path: entry.root.clone() };
        inside.filter(|entry| position(entry).touches(place)).map(|entry| entry.point.clone()).next()
    }
}

/// Without the slash at the end that joining nothing leaves.
fn below(root: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { root.to_owned() } else { root.join(rest) }
}

/// Undoes the octal escapes of spaces, line ends and backslashes.
pub(super) fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digit: &u8| digit.is_ascii_digit().then(|| u32::from(digit - b'0'));
        let number = match after {
            [a, b, c, ..] if *first == b'\\' => octal(a)
                .zip(octal(b))
                .zip(octal(c))
                .and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok()),
            _ => None,
        };
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "20 1 8:1 / / rw - ext4 /dev/a rw\n\
         30 20 0:25 / /run rw - tmpfs none rw\n\
         41 20 0:25 /sk /srv/a/deep rw - tmpfs none rw\n\
         42 20 0:25 / /srv/b/deep rw - tmpfs none rw\n\
         43 20 0:25 /sk/zygotes/1.sock /srv/c/file rw - tmpfs none rw\n\
         44 20 0:25 /sk-of-others /srv/d/deep rw - tmpfs none rw\n\
         45 20 8:2 /sk /srv/e/deep rw - ext4 /dev/b rw\n\
         46 20 0:25 /sk /srv/f\\040g/x\\134y rw - tmpfs none rw\n\
         nonsense\n";

    #[test]
    fn a_mount_below_a_source_shows_what_is_below_above_or_at_its_root() {
        let mounts = Mounts::parse(TABLE.as_bytes());
        let place = mounts.position(30, Path::new("/run/sk")).unwrap();
        assert_eq!(place, Position { device: b"0:25".to_vec(), path: "/sk".into() });
        let showing = |source: &str, mount| mounts.showing(Path::new(source), mount, &place);
        for (source, point) in [
            ("/srv/a", "/srv/a/deep"),
            ("/srv/b", "/srv/b/deep"),
            ("/srv/c", "/srv/c/file"),
            ("/srv/f g", "/srv/f g/x\\y"),
            ("/srv", "/srv/a/deep"),
            ("/", "/run"),
        ] {
            assert_eq!(showing(source, 20), Some(point.into()), "{source}");
        }
        // Another name beginning alike, another file system, and a neighbour in the text alone.
        for source in ["/srv/d", "/srv/e", "/sr", "/usr", "/srv/a/dee"] {
            assert_eq!(showing(source, 20), None, "{source}");
        }
        // What it begins with, by way of another mount.
        assert_eq!(showing("/srv/b/deep/sk/zygotes", 42), Some("/srv/b/deep/sk/zygotes".into()));
        assert_eq!(showing("/srv/b/deep/other", 42), None);
        assert_eq!(mounts.position(99, Path::new("/run/sk")), None);
    }
}
