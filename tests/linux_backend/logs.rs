//! Logs: what a main process writes is kept by its init, in order, within its bound, and readable until the delete.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::linux::LinuxConfig;
use sandkeeper::runtime::{ExecRequest, Instance, LogPage, LogStream, Runtime, Urgency};
use sandkeeper::spec::{ProcessSpec, SandboxSpec};

use crate::support::*;

/// Where the logs of one test are. Gone at its end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sandkeeper-test-{}-logs-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn bed(&self) -> Bed {
        Bed::with(LinuxConfig { log_dir: Some(self.0.clone()), ..LinuxConfig::default() })
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().count() == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn logging(script: &str, log_bytes: u64) -> SandboxSpec {
    let mut spec = shell(script);
    spec.process.as_mut().unwrap().stdio.log_bytes = Some(log_bytes);
    spec
}

/// Runs a script in the sandbox, to its end, which is the sandbox's if that comes first.
async fn run(bed: &Bed, instance: &Arc<Instance>, script: &str) {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", script]);
    process.env = vec!["PATH=/usr/bin:/bin".to_owned()];
    let request = ExecRequest { process, stdin: false, detached: false };
    let exec = bed.runtime.exec(instance, &request).await.unwrap();
    let reason = exec.exit.await;
    assert!(matches!(reason, ExitReason::Exited(0) | ExitReason::Signalled(9)), "{script}: {reason:?}");
}

/// A whole log, read by pages of this size.
struct Whole {
    out: Vec<u8>,
    err: Vec<u8>,
    chunks: Vec<(LogStream, Vec<u8>)>,
    times: Vec<i64>,
    dropped: u64,
    next: u64,
}

async fn whole(bed: &Bed, instance: &Arc<Instance>, page: usize) -> Whole {
    let mut whole = Whole { out: vec![], err: vec![], chunks: vec![], times: vec![], dropped: 0, next: 0 };
    loop {
        let LogPage { chunks, next, dropped } = bed.runtime.logs(instance, whole.next, page).await.unwrap();
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        assert!(bytes < page + 4096, "{bytes} bytes where {page} were asked for");
        assert!(next >= whole.next);
        whole.dropped += dropped;
        if next == whole.next {
            return whole;
        }
        whole.next = next;
        for chunk in chunks {
            match chunk.stream {
                LogStream::Stdout => whole.out.extend(&chunk.bytes),
                LogStream::Stderr => whole.err.extend(&chunk.bytes),
            }
            whole.times.push(chunk.at_unix_nanos);
            whole.chunks.push((chunk.stream, chunk.bytes));
        }
    }
}

fn size_on_disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Goal: both outputs, in the order of writing and byte for byte, as long as it runs and afterwards, until the delete.
#[test]
fn both_outputs_are_kept_in_order_until_the_delete() {
    block_on(async {
        let place = Place::new("order");
        let bed = place.bed();
        let script = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done; \
                      printf '\\000\\001\\377\\n\\r'; echo by name > /dev/stderr; \
                      while [ ! -e /tmp/end ]; do sleep 0.01; done; printf last; exit 3";
        let instance = bed.instance("x", logging(script, 1 << 20));
        assert_eq!(
            bed.runtime.logs(&instance, 0, 4096).await.unwrap(),
            LogPage::default(),
            "before it starts"
        );
        bed.run(&instance).await;
        let late = std::time::Instant::now() + Duration::from_secs(20);
        while !whole(&bed, &instance, 1).await.err.ends_with(b"by name\n") {
            assert!(std::time::Instant::now() < late, "it is not kept while it runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let running = whole(&bed, &instance, 1 << 20).await;
        assert_eq!(running.out, b"out 1\nout 2\nout 3\n\0\x01\xff\n\r");
        assert_eq!(running.err, b"err 1\nerr 2\nerr 3\nby name\n");
        let order: Vec<_> =
            running.chunks.iter().take(6).map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
        assert_eq!(order, ["out 1\n", "err 1\n", "out 2\n", "err 2\n", "out 3\n", "err 3\n"]);
        assert!(running.times.is_sorted() && running.times[0] > 1_600_000_000_000_000_000);
        run(&bed, &instance, "touch /tmp/end").await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(3));
        let tail = bed.runtime.logs(&instance, running.next, 4096).await.unwrap();
        assert_eq!(tail.chunks.len(), 1);
        assert_eq!((tail.chunks[0].bytes.as_slice(), tail.dropped), (b"last".as_slice(), 0));
        // Another backend on the same directory, which has never heard of it, reads it as well.
        let other = place.bed();
        assert_eq!(whole(&other, &instance, 4096).await.out, b"out 1\nout 2\nout 3\n\0\x01\xff\n\rlast");
        other.close().await;
        assert!(!place.is_empty());
        bed.delete(&instance).await;
        assert!(place.is_empty(), "the delete removes it");
        bed.close().await;
    });
}

/// Goal: the log stays within its bound, the newest is kept, and what was dropped is counted. Method: write 10 MB of numbered
/// lines while somebody reads all the time.
#[test]
fn a_flood_is_bounded_and_its_newest_part_kept() {
    block_on(async {
        let place = Place::new("flood");
        let bed = place.bed();
        const BOUND: u64 = 256 * 1024;
        let instance = bed.instance("x", logging("seq 1500000; echo end >&2", BOUND));
        let start = std::time::Instant::now();
        bed.run(&instance).await;
        let dir = place.0.join("default@x");
        let (mut from, mut seen, mut dropped) = (0, 0, 0);
        let mut last: Option<(u64, Vec<u8>)> = None;
        let exit = loop {
            let page = bed.runtime.logs(&instance, from, 64 * 1024).await.unwrap();
            assert!(page.next >= from);
            dropped += page.dropped;
            for chunk in &page.chunks {
                seen += chunk.bytes.len() as u64 + 32;
            }
            if page.dropped == 0 && last.is_some() {
                // Contiguous pages continue each other's line.
                let mut text = last.take().unwrap().1;
                page.chunks
                    .iter()
                    .filter(|chunk| chunk.stream == LogStream::Stdout)
                    .for_each(|chunk| text.extend(&chunk.bytes));
                check_lines(&text);
            }
            if let Some(chunk) = page.chunks.last() {
                last = Some((page.next, chunk.bytes.clone()));
            }
            assert_eq!(page.next, seen + dropped, "every byte was seen or is counted as dropped");
            assert!(size_on_disk(&dir) <= BOUND);
            if page.next == from && bed.recorder.count(instance.life) == 1 {
                break bed.exit(&instance).await;
            }
            from = page.next;
        };
        assert_eq!(exit.reason, ExitReason::Exited(0));
        eprintln!("{from} bytes of log, written and read, in {:?}", start.elapsed());
        assert!(from > 10_000_000, "{from}");
        let kept = whole(&bed, &instance, 64 * 1024).await;
        assert_eq!(kept.err, b"end\n");
        assert!(kept.out.ends_with(b"\n1499999\n1500000\n"));
        check_lines(&kept.out);
        assert!(kept.out.len() as u64 >= BOUND / 2 - 8192, "{} bytes are kept", kept.out.len());
        assert_eq!(kept.next, from);
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Whole lines of this text are numbers that follow each other.
#[track_caller]
fn check_lines(text: &[u8]) {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let whole = &lines[1.min(lines.len())..lines.len() - 1];
    let numbers: Vec<u64> =
        whole.iter().map(|line| std::str::from_utf8(line).unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

/// Goal: the end of the main process does not wait for whoever else holds its output. Method: leave a process behind that
/// writes for ever, and one that just holds.
#[test]
fn whoever_holds_the_output_does_not_hold_up_the_end() {
    block_on(async {
        let place = Place::new("held");
        let bed = place.bed();
        let script = "setsid yes & setsid sleep 1000 & echo first >&2; exit 4";
        let instance = bed.instance("x", logging(script, 64 * 1024));
        bed.run(&instance).await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(4));
        bed.delete(&instance).await;
        // Closing the output does not end it either, and signals are passed on as ever.
        let script = "trap 'exit 5' TERM; echo bye; exec >&- 2>&-; while :; do sleep 0.02; done";
        let instance = bed.instance("x", logging(script, 64 * 1024));
        bed.run(&instance).await;
        let late = std::time::Instant::now() + Duration::from_secs(20);
        while whole(&bed, &instance, 4096).await.out != b"bye\n" {
            assert!(std::time::Instant::now() < late);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bed.runtime.stop(&instance, Urgency::Ask).await.unwrap();
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(5));
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// A file system of this size. Gone at the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        rustix::mount::mount(
            "small",
            &path,
            c"tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(c"size=128k"),
        )
        .unwrap();
        Self(path)
    }

    fn grow(&self) {
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::empty(), "size=4m").unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Goal: a full disk costs output, which is counted, and not the process its progress; and when there is room again, the log
/// goes on. Method: a log on a file system of less size than the log may have, which is made larger later.
#[test]
fn a_full_disk_costs_output_only() {
    block_on(async {
        let place = Place::new("full");
        let small = Small::mount(place.0.join("small"));
        let bed = Bed::with(LinuxConfig { log_dir: Some(small.0.clone()), ..LinuxConfig::default() });
        let script = "seq 200000; touch /tmp/written; while [ ! -e /tmp/end ]; do sleep 0.01; done; seq 1000; echo over >&2";
        let instance = bed.instance("x", logging(script, 64 << 20));
        bed.run(&instance).await;
        // It has written 1.3 MB, and is not held up.
        run(&bed, &instance, "while [ ! -e /tmp/written ]; do sleep 0.01; done").await;
        let full = whole(&bed, &instance, 1 << 20).await;
        assert!(full.out.starts_with(b"1\n2\n3\n") && full.out.len() < 128 * 1024, "{}", full.out.len());
        small.grow();
        run(&bed, &instance, "touch /tmp/end").await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(0));
        let all = whole(&bed, &instance, 1 << 20).await;
        assert!(all.out.starts_with(&full.out) && all.out.ends_with(b"\n999\n1000\n"));
        assert_eq!(all.err, b"over\n");
        assert!(all.dropped > 1_000_000, "{} bytes are told to be lost", all.dropped);
        let read: usize = all.chunks.iter().map(|(_, bytes)| bytes.len() + 32).sum();
        assert_eq!(all.next, read as u64 + all.dropped);
        bed.delete(&instance).await;
        bed.close().await;
    });
}

#[test]
fn what_cannot_be_kept_is_refused_in_words() {
    block_on(async {
        let place = Place::new("refused");
        let (bed, without) = (place.bed(), Bed::new());
        let mut no_init = logging("true", 1 << 20);
        no_init.isolation.no_init = true;
        for (bed, spec, kind, with) in [
            (&without, logging("true", 1 << 20), ErrorKind::FailedPrecondition, "log_dir"),
            (&bed, logging("true", 16 * 1024 - 1), ErrorKind::InvalidArgument, "16384"),
            (&bed, logging("true", u64::MAX), ErrorKind::InvalidArgument, "are possible"),
            (&bed, no_init, ErrorKind::InvalidArgument, "init"),
        ] {
            let error = bed.runtime.check(&spec).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(with), "{error} does not say {with:?}");
        }
        let instance = bed.instance("x", shell("true"));
        let error = bed.runtime.logs(&instance, 0, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        without.close().await;
        bed.close().await;
    });
}

/// Goal: each life has a log of its own, and a late delete of an earlier life does not touch a later one's; one of a life that
/// nobody knows is removed.
#[test]
fn a_new_life_begins_anew_and_what_nobody_knows_is_removed() {
    block_on(async {
        let place = Place::new("lives");
        let bed = place.bed();
        let first = bed.instance("x", logging("echo first", 1 << 20));
        bed.run(&first).await;
        bed.exit(&first).await;
        let second = bed.instance("x", logging("echo second; exec sleep 1000", 1 << 20));
        bed.run(&second).await;
        bed.runtime.delete(&first).await.unwrap();
        let late = std::time::Instant::now() + Duration::from_secs(20);
        while whole(&bed, &second, 4096).await.out != b"second\n" {
            assert!(std::time::Instant::now() < late);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(bed.runtime.logs(&first, 0, 4096).await.unwrap().chunks, [], "not another life's");
        bed.runtime.stop(&second, Urgency::Now).await.unwrap();
        let other = place.bed();
        assert!(!place.is_empty());
        other.runtime.delete(&second).await.unwrap();
        assert!(place.is_empty());
        other.close().await;
        bed.delete(&second).await;
        bed.close().await;
    });
}

/// Goal: nothing in the sandbox reaches the files of its log through its init. Method: try as the sandbox's root, with the
/// capability to trace.
#[test]
fn the_main_process_does_not_reach_the_files() {
    block_on(async {
        let place = Place::new("reach");
        let bed = place.bed();
        let script = "ls /proc/self/fd | wc -l; ls /proc/1/fd 2>&1 | grep -c 'Permission denied'; \
                      cat /proc/1/fd/5 2>&1 | grep -c 'Permission denied'; readlink /proc/1/root 2>&1 | wc -l";
        let mut spec = logging(script, 1 << 20);
        spec.isolation.kept_capabilities = 1 << 19 | 1 << 1 | 1 << 2;
        let instance = bed.instance("x", spec);
        bed.run(&instance).await;
        bed.exit(&instance).await;
        let whole = whole(&bed, &instance, 1 << 20).await;
        assert_eq!(
            String::from_utf8_lossy(&whole.out),
            "4\n1\n1\n0\n",
            "{}",
            String::from_utf8_lossy(&whole.err)
        );
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: an init that keeps a log takes hardly more memory than one that does not.
#[test]
fn a_log_costs_its_init_two_pages() {
    block_on(async {
        let place = Place::new("memory");
        let bed = place.bed();
        let private = |pid: u32| {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let row = |name: &str| -> u64 {
                let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().parse().unwrap()
            };
            (row("Private_Dirty:") + row("Private_Clean:"), row("Pss:"))
        };
        let mut figures = Vec::new();
        for spec in [
            shell("seq 100000; exec sleep 1000"),
            logging("seq 100000; echo end >&2; exec sleep 1000", 1 << 20),
        ] {
            let logs = spec.process.as_ref().unwrap().stdio.log_bytes.is_some();
            let instance = bed.instance(if logs { "log" } else { "plain" }, spec);
            let pid = bed.run(&instance).await.pid;
            let late = std::time::Instant::now() + Duration::from_secs(20);
            while logs && whole(&bed, &instance, 1 << 20).await.err != b"end\n" {
                assert!(std::time::Instant::now() < late);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            figures.push(private(pid));
            bed.delete(&instance).await;
        }
        eprintln!("KiB private and PSS, without and with a log: {figures:?}");
        assert!(figures[1].0 <= figures[0].0 + 12, "{figures:?}");
        bed.close().await;
    });
}

/// Whether a thread that opens what a spec names waits for a file system, in state D.
fn something_is_held_up() -> bool {
    let stats = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = stats.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.contains("(sandkeeper-fs) D "))
}

/// Goal: a start that a file system held up, and that nobody waits for any more, leaves the log of the next life of that name
/// alone. Method: one hangs while its input is opened, and is deleted; the next life writes; then the file system answers.
#[test]
fn a_start_that_wakes_up_late_leaves_the_next_life_its_log() {
    if !alone("logs::a_start_that_wakes_up_late_leaves_the_next_life_its_log") {
        return;
    }
    block_on(async {
        let place = Place::new("late");
        let bed = place.bed();
        let mut mute = MuteFileSystem::mount(&bed.directory.join("mute"));
        let mut spec = logging("echo first; sleep 1000", 1 << 20);
        spec.process.as_mut().unwrap().stdio.stdin = Some(mute.mountpoint.join("input"));
        let first = bed.instance("x", spec);
        bed.runtime.create(&first).await.unwrap();
        let start = tokio::spawn({
            let (runtime, first) = (Arc::clone(&bed.runtime), Arc::clone(&first));
            async move { runtime.start(&first).await }
        });
        eventually("its input is being opened", Duration::from_secs(10), something_is_held_up);
        bed.delete(&first).await;
        assert_eq!(start.await.unwrap().unwrap_err().kind(), ErrorKind::Aborted);
        let script = "echo before; mkfifo /tmp/go; read line < /tmp/go; echo after; sleep 1000";
        let next = bed.instance("x", logging(script, 1 << 20));
        bed.run(&next).await;
        let closes = mute.answer();
        tokio::task::spawn_blocking(move || closes.recv_timeout(Duration::from_secs(10)).unwrap())
            .await
            .unwrap();
        run(&bed, &next, "while [ ! -p /tmp/go ]; do sleep 0.01; done; echo > /tmp/go").await;
        mute.end();
        drop(mute);
        let late = std::time::Instant::now() + Duration::from_secs(10);
        while whole(&bed, &next, 4096).await.out != b"before\nafter\n" {
            assert!(std::time::Instant::now() < late, "{:?}", whole(&bed, &next, 4096).await.chunks);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bed.delete(&next).await;
        assert!(place.is_empty());
        bed.close().await;
    });
}
