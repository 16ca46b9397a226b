//! Process IDs that come to others: nothing of theirs is ever taken for a sandbox's, nor signalled.
//!
//! The test runs in a PID namespace of its own, in which it is PID 1 and chooses which number comes next: this executable, run
//! again.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use sandkeeper::{ErrorKind, SandboxSpec};

use crate::support::{Daemon, block_on, directory, has_ended, key, refused, run, size, sleeper, until};

const INSIDE: &str = "SANDKEEPER_TEST_IN_PID_NAMESPACE";

/// Runs a test in a PID namespace of its own. Whether this is in there.
fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(std::env::current_exe().unwrap());
    let status = unshare.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").status();
    assert!(status.expect("unshare(1) is there").success());
    false
}

/// A process that has nothing to do with sandboxes. It beats into a file, without making other processes, and notes there any
/// signal that it gets.
struct Bystander {
    child: Child,
    began: String,
    heart: PathBuf,
}

impl Bystander {
    /// One with this number.
    fn born_as(pid: u32, place: &std::path::Path) -> Self {
        until("a process with the number that was given back", || {
            let heart = place.join(format!("heart-{pid}"));
            std::fs::write(&heart, "").unwrap();
            let script = "trap 'echo signalled' HUP INT QUIT USR1 USR2 PIPE ALRM TERM CONT; \
                          while :; do read -t 0.01 <> \"$1\"; echo beat; done";
            let mut command = Command::new("bash");
            command.args(["-c", script, "heart"]).arg(place.join("fifo"));
            command.stdin(Stdio::null()).stdout(std::fs::File::create(&heart).unwrap());
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let mut child = command.spawn().expect("bash is there");
            if child.id() == pid {
                return Some(Self { child, began: began(pid), heart });
            }
            child.kill().unwrap();
            child.wait().unwrap();
            None
        })
    }

    fn beats(&self) -> usize {
        std::fs::read_to_string(&self.heart).unwrap().lines().count()
    }

    /// It is still the same, nobody has signalled it, and it goes on.
    #[track_caller]
    fn is_unharmed(&mut self) {
        let pid = self.child.id();
        assert!(self.child.try_wait().unwrap().is_none() && !has_ended(pid), "{pid} has ended");
        assert_eq!(began(pid), self.began);
        let beats = self.beats();
        until("it beats", || (self.beats() > beats).then_some(()));
        let mut noted = String::new();
        std::fs::File::open(&self.heart).unwrap().read_to_string(&mut noted).unwrap();
        assert!(!noted.contains("signalled"), "{pid} was signalled");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // Those of this test's own making are waited for by nobody else.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// When a process began, by the kernel's clock.
fn began(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().to_owned()
}

/// Waits for whatever PID 1 has inherited, until these numbers are nobody's.
fn reap(pids: &[u32]) {
    until("all are reaped", || {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) | Err(Errno::CHILD) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let gone = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        pids.iter().all(gone).then_some(())
    });
}

/// The children of a process, and theirs.
fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    // Whoever has ended has none.
    let children = children.unwrap_or_else(|_| String::new());
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    children.flat_map(|child: u32| [vec![child], family(child)].concat()).collect()
}

/// C06: daemon, zygotes and sandboxes are killed, and innocents get their very numbers; one listens where a zygote did. The next
/// daemon tells both sandboxes as ended, ends them on demand, and harms nobody; so for many rounds.
#[test]
fn whoever_gets_a_sandboxs_old_number_is_left_alone() {
    if !is_inside("bystanders::whoever_gets_a_sandboxs_old_number_is_left_alone") {
        return;
    }
    let place = directory();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    block_on(async {
        let mut daemon = Daemon::start(&[]);
        for round in 0..size(20, 1_000) {
            let mut client = daemon.client().await;
            let sandboxes = [
                run(&mut client, "process", sleeper()).await,
                run(&mut client, "pause", SandboxSpec::default()).await,
            ];
            let zygotes = sandboxes.map(parent);
            let mut all = vec![daemon.pid()];
            // Those of the sandbox that is a process first: what it was started as has its number on the host as well.
            for pid in sandboxes.into_iter().chain(zygotes) {
                all.extend([vec![pid], family(pid)].concat());
            }
            all.sort_unstable();
            all.dedup();
            daemon.kill9();
            for pid in all.iter().filter(|pid| **pid != daemon.pid()) {
                // A main process goes along with its init. Numbers go up, so nobody else has it yet.
                let _gone = kill_process(Pid::from_raw(*pid as i32).unwrap(), Signal::KILL);
            }
            reap(&all);
            let mut bystanders: Vec<Bystander> =
                all.iter().map(|pid| Bystander::born_as(*pid, place.path())).collect();
            let _deaf = (round % 10 == 0).then(|| listen_as_a_zygote(&daemon));
            daemon.start_again();
            let told = daemon.settled().await;
            assert_eq!(told.len(), 2, "round {round}: {told:?}");
            for status in &told {
                assert_eq!(status.phase, "stopped", "round {round}: {status:?}");
                let exit = status.exit.as_ref().expect("it is told how it ended");
                // Nobody was there who could know more.
                assert_eq!((exit.reason.as_str(), exit.status), ("lost", 255), "round {round}: {exit:?}");
            }
            let mut client = daemon.client().await;
            for id in ["process", "pause"] {
                let error = refused(client.ping(&key(id)).await);
                assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "round {round}: {error}");
                assert!(!client.probe(&key(id)).await.is_ok_and(|probe| probe.alive), "round {round}");
                client.shutdown(&key(id), Some(Duration::ZERO)).await.unwrap();
            }
            assert_eq!(daemon.groups(), Vec::<String>::new());
            bystanders.iter_mut().for_each(Bystander::is_unharmed);
        }
    });
}

fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Somebody else's socket where a zygote had its own; it answers nothing.
fn listen_as_a_zygote(daemon: &Daemon) -> std::os::fd::OwnedFd {
    let sockets = daemon.state_dir.join("zygotes");
    let name = std::fs::read_dir(&sockets).unwrap().next().expect("a dead zygote's").unwrap().path();
    std::fs::remove_file(&name).unwrap();
    let listening = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&listening, &SocketAddrUnix::new(&name).unwrap()).unwrap();
    listen(&listening, 8).unwrap();
    listening
}
