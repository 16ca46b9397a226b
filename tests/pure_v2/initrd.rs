//! The guest's initial RAM disk: a cpio archive in the "newc" form the Linux kernel unpacks.
//!
//! Source: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Initrd {
    bytes: Vec<u8>,
    entries: u32,
    /// What is in it already, by path without the leading `/`.
    paths: BTreeSet<PathBuf>,
}

impl Initrd {
    /// Adds an empty directory, and those above it.
    pub(crate) fn directory(&mut self, path: &Path) {
        let mut above: Vec<_> = path.ancestors().filter(|part| part.file_name().is_some()).collect();
        above.reverse();
        for directory in above {
            self.entry(directory, DIRECTORY, &[]);
        }
    }

    /// Adds a file that may be executed.
    pub(crate) fn file(&mut self, path: &Path, content: &[u8]) {
        self.directory(path.parent().expect("a file is in a directory"));
        self.entry(path, EXECUTABLE, content);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &Path, to: &str) {
        self.directory(path.parent().expect("a link is in a directory"));
        self.entry(path, LINK, to.as_bytes());
    }

    /// Adds a program of this machine as `path`, and the shared libraries it is linked with at their own places.
    pub(crate) fn program(&mut self, path: &Path, here: &Path) -> io::Result<()> {
        self.file(path, &fs::read(here)?);
        for library in libraries(here)? {
            // The place is the one the dynamic linker looked at; what is there may be a link to a file elsewhere.
            self.file(&library, &fs::read(&library)?);
        }
        Ok(())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        let path = path.strip_prefix("/").unwrap_or(path);
        if !self.paths.insert(path.to_owned()) {
            return;
        }
        let name = path.to_str().expect("paths in the guest are UTF-8");
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file in the guest is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("paths are short");
        // inode, mode, uid, gid, links, mtime, size, device (two), special device (two), size of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Where the dynamic linker finds what `program` is linked with, itself included; nothing for a static program.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let ldd = ldd.map_err(|error| io::Error::new(error.kind(), format!("cannot run ldd: {error}")))?;
    let printed = String::from_utf8_lossy(&ldd.stdout);
    if !ldd.status.success() {
        let complaint = String::from_utf8_lossy(&ldd.stderr);
        let is_static = [&*printed, &*complaint].iter().any(|text| text.contains("not a dynamic executable"));
        return if is_static { Ok(Vec::new()) } else { Err(io::Error::other(format!("ldd: {complaint}"))) };
    }
    // Lines such as "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)" and "/lib64/ld-linux-x86-64.so.2 (0x7f…)";
    // the one without a path is the kernel's own.
    let paths = printed.lines().filter_map(|line| {
        let (path, _) = line.rsplit_once(" (")?;
        let path = path.rsplit_once("=> ").map_or(path, |(_, found)| found).trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}
