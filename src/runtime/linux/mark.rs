//! What is written on a sandbox's group, for whoever finds it: whose it is, how far its life has come, and what its owner gave
//! along.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use super::group;
use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason, Life};

/// The most that is kept of what an owner gives along. The kernel allows 128 KiB of attributes for each group.
pub(super) const KEEPSAKE_BYTES: usize = 32 * 1024;

/// Whose a group is: `namespace/id life N ids M`, without the last two for one without IDs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) key: SandboxKey,
    pub(super) life: Life,
    /// The first of its block of IDs.
    pub(super) ids: Option<u32>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} life {}", self.key, self.life.0)?;
        self.ids.map_or(Ok(()), |ids| write!(f, " ids {ids}"))
    }
}

impl Mark {
    /// Reads a mark's text. What follows what is known here is a later version's.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let key = words.next()?.parse().ok()?;
        let life = words.next().filter(|word| *word == "life").and_then(|_| words.next())?.parse().ok()?;
        let ids = match words.next() {
            Some("ids") => Some(words.next()?.parse().ok()?),
            _ => None,
        };
        Some(Self { key, life: Life(life), ids })
    }

    /// The mark of a group; nothing if it has none, or none that can be read.
    pub(super) fn of(group: impl AsFd) -> Option<Self> {
        Self::parse(&group::attribute(group, group::MARK)?)
    }
}

/// How far a life has come, as far as it was written on its group. Nothing is written for one that was never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A zygote is about to be asked for it.
    Starting,
    /// It has been set up.
    Running,
    /// It has ended so.
    Ended(Exit),
}

impl Stage {
    fn text(self) -> String {
        let Self::Ended(Exit { reason, at_unix_nanos }) = self else {
            return if self == Self::Starting { "starting" } else { "running" }.to_owned();
        };
        let number = match reason {
            ExitReason::Exited(status) => status,
            ExitReason::Signalled(signal) => signal,
            ExitReason::OomKilled | ExitReason::Lost | ExitReason::NeverRan => 0,
        };
        format!("ended {at_unix_nanos} {} {number}", reason.name())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        match words.next()? {
            "starting" => Some(Self::Starting),
            "running" => Some(Self::Running),
            "ended" => {
                let at_unix_nanos = words.next()?.parse().ok()?;
                let (name, number) = (words.next()?, words.next()?.parse().ok()?);
                let reasons = [
                    ExitReason::Exited(number),
                    ExitReason::Signalled(number),
                    ExitReason::OomKilled,
                    ExitReason::NeverRan,
                ];
                // A reason of a later version's is one that nobody here can tell.
                let reason =
                    reasons.into_iter().find(|reason| reason.name() == name).unwrap_or(ExitReason::Lost);
                Some(Self::Ended(Exit { reason, at_unix_nanos }))
            }
            _ => None,
        }
    }

    /// What is written on a group.
    pub(super) fn of(group: impl AsFd) -> Option<Self> {
        Self::parse(&group::attribute(group, group::STAGE)?)
    }

    /// Writes it on a group.
    pub(super) fn write(self, group: impl AsFd) -> io::Result<()> {
        group::set_attribute(group, group::STAGE, self.text().as_bytes())
    }
}

/// What an owner gave along; empty if there is nothing.
pub(super) fn keepsake(group: impl AsFd) -> Vec<u8> {
    let mut value = vec![0; KEEPSAKE_BYTES];
    let length = rustix::fs::fgetxattr(group, group::KEEPSAKE, &mut value[..]).unwrap_or(0);
    value.truncate(length);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_stages_are_read_as_they_were_written() {
        let key = SandboxKey::new("default", "web-7").unwrap();
        for ids in [None, Some(1 << 20)] {
            let mark = Mark { key, life: Life(u64::MAX - 1), ids };
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        let reasons = [
            ExitReason::Exited(7),
            ExitReason::Signalled(9),
            ExitReason::OomKilled,
            ExitReason::Lost,
            ExitReason::NeverRan,
        ];
        let ends =
            reasons.map(|reason| Stage::Ended(Exit { reason, at_unix_nanos: 1_700_000_000_000_000_000 }));
        for stage in ends.into_iter().chain([Stage::Starting, Stage::Running]) {
            assert_eq!(Stage::parse(&stage.text()), Some(stage));
        }
    }

    #[test]
    fn what_nobody_of_ours_wrote_is_no_mark() {
        for text in ["", "root", "zygotes", "a/b", "a/b life", "a/b life x", "a b life 3", "a/b life 3 ids x"]
        {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
        assert_eq!(Stage::parse("ended 7 exited"), None);
    }
}
