//! What a ping answers, in one word.
//!
//! ```text
//!  63                              16 15    8 7     0
//! ┌──────────────────────────────────┬───────┬───────┐
//! │ life (keeper-wide, never reused)  │ marks │ phase │
//! └──────────────────────────────────┴───────┴───────┘
//! ```

use super::{Life, Phase};

const LIFE_SHIFT: u32 = 16;
const MARKS_SHIFT: u32 = 8;

/// What stands beside a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Marks(u8);

impl Marks {
    /// Its life has ended, whether or not its phase says so yet.
    pub const EXITED: Marks = Marks(1);
    /// What exists of it is being found out.
    pub const RECOVERING: Marks = Marks(2);
    /// It is known not to answer.
    pub const UNRESPONSIVE: Marks = Marks(4);
    /// Its owner failed too often; only a Shutdown is accepted.
    pub const QUARANTINED: Marks = Marks(8);

    const NAMES: [(Marks, &'static str); 4] = [
        (Marks::EXITED, "exited"),
        (Marks::RECOVERING, "recovering"),
        (Marks::UNRESPONSIVE, "unresponsive"),
        (Marks::QUARANTINED, "quarantined"),
    ];

    /// Whether all of `other` are set.
    pub fn contains(self, other: Marks) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of those that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(mark, _)| self.contains(*mark)).map(|(_, name)| name)
    }

    /// These with `other` set or taken away.
    pub fn with(self, other: Marks, set: bool) -> Marks {
        if set { Marks(self.0 | other.0) } else { Marks(self.0 & !other.0) }
    }
}

/// What was last observed of a sandbox: its answer to a ping.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pong(u64);

impl Pong {
    /// The bits of a word that hold marks.
    pub(crate) const MARKS: u64 = 0xff << MARKS_SHIFT;

    #[inline]
    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// What there is to say of a phase, a life and its marks.
    pub fn new(phase: Phase, life: Life, marks: Marks) -> Self {
        Self(life.0 << LIFE_SHIFT | u64::from(marks.0) << MARKS_SHIFT | phase as u64)
    }

    /// Its phase; `Gone` if the slot is vacant.
    pub fn phase(self) -> Phase {
        Phase::from_number(self.0 as u8).unwrap_or(Phase::Gone)
    }

    /// The life that runs or ran last.
    pub fn life(self) -> Life {
        Life(self.0 >> LIFE_SHIFT)
    }

    /// Its marks.
    pub fn marks(self) -> Marks {
        Marks((self.0 >> MARKS_SHIFT) as u8)
    }

    /// Whether an instance was there when last observed, and nothing speaks against it.
    #[inline]
    pub fn is_alive(self) -> bool {
        // One comparison: a mark that speaks against it lies above every phase.
        let against = (Marks::EXITED.0 | Marks::UNRESPONSIVE.0) as u16;
        let told = self.0 as u16 & (against << MARKS_SHIFT | 0xff);
        told.wrapping_sub(Phase::Running as u16) <= Phase::Stopping as u16 - Phase::Running as u16
    }
}

impl std::fmt::Debug for Pong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (life {}", self.phase(), self.life())?;
        self.marks().names().try_for_each(|name| write!(f, ", {name}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_it_was_made_of() {
        for phase in Phase::ALL {
            for marks in (0..=15).map(Marks) {
                let pong = Pong::new(phase, Life(1 << 40), marks);
                assert_eq!((pong.phase(), pong.life(), pong.marks()), (phase, Life(1 << 40), marks));
                let against = marks.contains(Marks::EXITED) || marks.contains(Marks::UNRESPONSIVE);
                assert_eq!(pong.is_alive(), phase.is_alive() && !against, "{pong:?}");
            }
        }
        assert_eq!(Pong(0).phase(), Phase::Gone);
        assert!(!Pong(0).is_alive());
    }
}
