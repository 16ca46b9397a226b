//! A backend to test, with everything it reports written down.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sandkeeper::SandboxKey;
use sandkeeper::model::{Exit, Life};
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::{Instance, Observer, Runtime, Started, Urgency};
use sandkeeper::spec::{ProcessSpec, RootFs, SandboxSpec};

/// The size of a test: scaled down, or full on request.
pub(crate) fn size(scaled: usize, full: usize) -> usize {
    if std::env::var_os("SANDKEEPER_FULL").is_some_and(|value| value == "1") { full } else { scaled }
}

/// Runs a test on a tokio runtime with two threads.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

/// A report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) exit: Exit,
    pub(crate) all_ended: bool,
    pub(crate) at: Instant,
}

/// What is given along with every sandbox.
pub(crate) const KEEPSAKE: &[u8] = b"to be kept";

/// Writes down every report.
#[derive(Default)]
pub(crate) struct Recorder {
    reports: Mutex<HashMap<Life, Vec<Seen>>>,
    changed: Condvar,
}

impl Observer for Recorder {
    fn exited(&self, life: Life, exit: Exit, all_ended: bool) {
        let seen = Seen { exit, all_ended, at: Instant::now() };
        self.reports.lock().unwrap().entry(life).or_default().push(seen);
        self.changed.notify_all();
    }

    fn keepsake(&self) -> Vec<u8> {
        KEEPSAKE.to_vec()
    }
}

impl Recorder {
    /// The one report of a life, waiting for it. Blocks.
    #[track_caller]
    pub(crate) fn seen(&self, life: Life, within: Duration) -> Seen {
        let deadline = Instant::now() + within;
        let mut reports = self.reports.lock().unwrap();
        while !reports.contains_key(&life) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no exit of life {life} within {within:?}");
            reports = self.changed.wait_timeout(reports, left).unwrap().0;
        }
        let of_life = &reports[&life];
        assert_eq!(of_life.len(), 1, "life {life} ended more than once: {of_life:?}");
        assert!(of_life[0].all_ended, "with a PID namespace, all have ended");
        of_life[0]
    }

    /// How a life ended. Waits for it.
    #[track_caller]
    pub(crate) fn exit(&self, life: Life, within: Duration) -> Exit {
        self.seen(life, within).exit
    }

    /// How often the end of a life was reported so far.
    pub(crate) fn count(&self, life: Life) -> usize {
        self.reports.lock().unwrap().get(&life).map_or(0, Vec::len)
    }
}

/// A backend under test.
pub(crate) struct Bed {
    pub(crate) runtime: Arc<LinuxRuntime>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) directory: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(LinuxConfig::default())
    }

    pub(crate) fn with(config: LinuxConfig) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("sandkeeper-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let runtime = LinuxRuntime::new(config).expect("the backend can be set up; the tests need root");
        Self { runtime, recorder: Arc::default(), directory }
    }

    /// A life of its own of this sandbox.
    pub(crate) fn instance(&self, id: &str, spec: SandboxSpec) -> Arc<Instance> {
        let life = Life(NEXT.fetch_add(1, Ordering::Relaxed));
        let key = SandboxKey::new("default", id).unwrap();
        Instance::new(key, life, Arc::new(spec), Arc::clone(&self.recorder) as Arc<dyn Observer>)
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, instance: &Arc<Instance>) -> Started {
        self.runtime.create(instance).await.unwrap();
        self.runtime.start(instance).await.unwrap()
    }

    pub(crate) async fn exit(&self, instance: &Arc<Instance>) -> Exit {
        let (recorder, life) = (Arc::clone(&self.recorder), instance.life);
        tokio::task::spawn_blocking(move || recorder.exit(life, Duration::from_secs(10))).await.unwrap()
    }

    pub(crate) async fn stop(&self, instance: &Arc<Instance>) {
        self.runtime.stop(instance, Urgency::Now).await.unwrap();
        assert_eq!(self.recorder.count(instance.life), 1, "reported before stop returns");
    }

    pub(crate) async fn delete(&self, instance: &Arc<Instance>) {
        self.runtime.delete(instance).await.unwrap();
        let group = self.group(instance);
        assert!(!group.exists(), "{} is left", group.display());
    }

    /// Where the sandbox's cgroup is.
    pub(crate) fn group(&self, instance: &Instance) -> PathBuf {
        self.runtime.cgroup_root().join(instance.key.file_name(255))
    }

    /// Closes it and checks that nothing is left.
    pub(crate) async fn close(self) {
        assert_eq!(self.runtime.left_behind(), Vec::<String>::new());
        let usage = self.runtime.usage();
        assert_eq!((usage.sandboxes, usage.id_blocks), (0, 0), "{usage:?}");
        self.close_with_what_runs().await;
    }

    pub(crate) async fn close_with_what_runs(self) {
        let root = self.runtime.cgroup_root().to_owned();
        self.runtime.close().await;
        assert!(!root.exists(), "{} is left", root.display());
        std::fs::remove_dir_all(&self.directory).unwrap();
    }

    /// What the next heartbeat writes to.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let file = self.directory.join(name);
        std::fs::write(&file, "").unwrap();
        // The sandbox's users are nobody here; but the file is opened for them.
        file
    }
}

/// A sandbox in the host's root that runs this shell script.
pub(crate) fn shell(script: &str) -> SandboxSpec {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", script]);
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    SandboxSpec { root: RootFs::HostReadOnly, process: Some(process), ..SandboxSpec::default() }
}

/// Whether this is a process of this one test: else it runs the test in such a process. For tests that count what other tests
/// would make and open meanwhile.
#[track_caller]
pub(crate) fn alone(name: &str) -> bool {
    if std::env::var_os("SANDKEEPER_ALONE").is_some() {
        return true;
    }
    let test = std::env::current_exe().unwrap();
    let status =
        std::process::Command::new(test).args([name, "--exact"]).env("SANDKEEPER_ALONE", "1").status();
    assert!(status.unwrap().success());
    false
}

/// A sandbox that does nothing.
pub(crate) fn sleeper() -> SandboxSpec {
    SandboxSpec::default()
}

/// A sandbox that writes a line to `file` every 10 ms.
pub(crate) fn heartbeat(file: &Path) -> SandboxSpec {
    let mut spec = shell("while :; do echo beat; sleep 0.01; done");
    if let Some(process) = &mut spec.process {
        process.stdio.stdout = Some(file.to_owned());
    }
    spec
}

/// How many beats there were so far.
pub(crate) fn beats(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

/// Waits until it holds. Blocks, which the other threads of a test's runtime make up for.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a test has nothing else to do on this thread")]
pub(crate) fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether there is such a process, a zombie included.
pub(crate) fn process_exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// SIGKILL to a process of this test's own making.
pub(crate) fn kill(pid: u32) {
    assert!(pid > 1, "never to be sent to {pid}");
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A number that looks random, the same in every run.
pub(crate) fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Hears of every signal that could end or disturb this process, from now on.
pub(crate) struct Signals(Vec<(i32, tokio::signal::unix::Signal)>);

impl Signals {
    pub(crate) fn listen() -> Self {
        let numbers =
            [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
        let listen = |number| {
            let kind = tokio::signal::unix::SignalKind::from_raw(number);
            (number, tokio::signal::unix::signal(kind).unwrap())
        };
        Self(numbers.map(listen).into())
    }

    /// The first signal that came, if any did.
    pub(crate) async fn received(&mut self) -> Option<i32> {
        for (number, signal) in &mut self.0 {
            let soon = tokio::time::timeout(Duration::from_millis(1), signal.recv());
            if soon.await.is_ok() {
                return Some(*number);
            }
        }
        None
    }
}

/// A file system whose server never answers. Whoever asks it for anything is in state D until it is dropped.
pub(crate) struct MuteFileSystem {
    pub(crate) mountpoint: PathBuf,
    server: Option<File>,
}

impl MuteFileSystem {
    pub(crate) fn mount(mountpoint: &Path) -> Self {
        std::fs::create_dir_all(mountpoint).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse").expect("this test needs FUSE");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "mute",
            mountpoint,
            c"fuse",
            rustix::mount::MountFlags::empty(),
            Some(&*options),
        )
        .unwrap();
        Self { mountpoint: mountpoint.to_owned(), server: Some(server) }
    }

    /// The server wakes up: there is an empty file of any name. What is returned is told each time one is closed.
    pub(crate) fn answer(&self) -> std::sync::mpsc::Receiver<()> {
        let mut server = self.server.as_ref().unwrap().try_clone().unwrap();
        let (closed, closes) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut request = vec![0; 1 << 17];
            // Until the server goes.
            while let Ok(1..) = server.read(&mut request) {
                let field = |at: usize| u32::from_le_bytes(*request[at..].first_chunk().unwrap());
                // Source: linux/fuse.h. The lengths are those of fuse_init_out, fuse_entry_out, fuse_attr_out and fuse_open_out.
                let (opcode, mut body) = (field(4), Vec::new());
                let regular_file = (libc::S_IFREG | 0o644).to_le_bytes();
                match opcode {
                    1 => {
                        body = vec![0; 128];
                        body[0] = 2;
                        body[40] = 2;
                        body[40 + 60..][..4].copy_from_slice(&regular_file);
                    }
                    3 => {
                        body = vec![0; 104];
                        body[16] = 2;
                        body[16 + 60..][..4].copy_from_slice(&regular_file);
                    }
                    14 => body = vec![0; 16],
                    18 => drop(closed.send(())),
                    26 => {
                        body = vec![0; 64];
                        body[0] = 7;
                        body[4] = 31;
                        body[20..][..4].copy_from_slice(&4096_u32.to_le_bytes());
                    }
                    // Nobody waits for an answer to being forgotten.
                    2 | 42 => continue,
                    _ => {}
                }
                let known = matches!(opcode, 1 | 3 | 14 | 18 | 25 | 26);
                let error = if known { 0 } else { -libc::ENOSYS };
                let mut answer = (16 + body.len() as u32).to_le_bytes().to_vec();
                answer.extend(error.to_le_bytes());
                answer.extend(&request[8..16]);
                answer.extend(body);
                // Who asked may have been killed.
                let _ = server.write(&answer);
            }
        });
        closes
    }

    /// The server goes. Who waits for it gets an error.
    pub(crate) fn end(&mut self) {
        drop(self.server.take());
    }
}

impl Drop for MuteFileSystem {
    fn drop(&mut self) {
        self.end();
        rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
