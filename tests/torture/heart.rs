//! What runs in most sandboxes: a heart, whose beats are counted in a file that outlives it.
//!
//! ```text
//! <id>.beat    three numbers: which heart beats there, how many hearts there have been, how often this one has beaten
//! <id>.lives   a line for each heart that began, and one for each that found another in its place
//! ```

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first argument of a heart.
pub(crate) const HEART: &str = "--heart";

/// Where its files are, inside.
pub(crate) const INSIDE: &str = "/mnt";

const BEAT: Duration = Duration::from_millis(20);

/// What a heart has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Beats {
    /// Which heart: no two have the same.
    pub(crate) heart: u64,
    pub(crate) count: u64,
}

fn number(file: &File, place: u64) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, place * 8)?;
    Ok(u64::from_le_bytes(bytes))
}

fn write(file: &File, place: u64, number: u64) -> std::io::Result<()> {
    file.write_all_at(&number.to_le_bytes(), place * 8)
}

/// Beats until it is ended, or as often as it is to. `arguments`: the ID, the run's token, how often (0 for ever).
#[expect(clippy::disallowed_methods, reason = "a process of its own that does nothing else")]
pub(crate) fn beat(arguments: &[String]) -> ! {
    let [id, _token, most] = arguments else { panic!("three arguments are needed") };
    let most: u64 = most.parse().expect("a number");
    let open =
        |name: String| File::options().read(true).append(name.ends_with(".lives")).write(true).open(name);
    let file = open(format!("{INSIDE}/{id}.beat")).expect("its file");
    let mut lives = open(format!("{INSIDE}/{id}.lives")).expect("its lives");
    let now = birthday();
    write(&file, 0, now).expect("it can be written");
    write(&file, 1, 0).expect("it can be written");
    let _ = writeln!(lives, "began {now}");
    for count in 1.. {
        std::thread::sleep(BEAT);
        let there = number(&file, 0).expect("it can be read");
        if there != now {
            let _ = writeln!(lives, "doubled {now} {there}");
            // Said once; whoever looks sees both, for this one stays.
            loop {
                std::thread::park();
            }
        }
        write(&file, 1, count).expect("it can be written");
        if count == most {
            break;
        }
    }
    std::process::exit(7)
}

/// No two hearts of one sandbox begin in the same nanosecond.
fn birthday() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64)
}

/// The files of all hearts, from outside.
pub(crate) struct Hearts {
    pub(crate) dir: PathBuf,
    /// In the arguments of each heart of this run.
    pub(crate) token: String,
}

impl Hearts {
    /// Puts this executable where sandboxes find it.
    pub(crate) fn new(dir: &Path, token: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        let (own, program) = (std::env::current_exe()?, dir.join("heart"));
        if std::fs::hard_link(&own, &program).is_err() {
            std::fs::copy(&own, &program)?;
        }
        Ok(Self { dir: dir.to_owned(), token: token.to_owned() })
    }

    /// Makes the files of one, which every user may write: a sandbox's are others in each life.
    pub(crate) fn prepare(&self, id: &str) -> std::io::Result<()> {
        for (suffix, content) in [("beat", &[0u8; 16][..]), ("lives", &[])] {
            let path = self.dir.join(format!("{id}.{suffix}"));
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    pub(crate) fn beats(&self, id: &str) -> Beats {
        let file = File::open(self.dir.join(format!("{id}.beat"))).expect("it was made");
        Beats { heart: number(&file, 0).unwrap_or(0), count: number(&file, 1).unwrap_or(0) }
    }

    /// The lines that tell of two hearts at one time.
    pub(crate) fn doubled(&self, id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(format!("{id}.lives"))).expect("it was made");
        text.lines().filter(|line| line.starts_with("doubled")).map(str::to_owned).collect()
    }
}
