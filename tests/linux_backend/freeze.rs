//! Pause and resume: what is said is true.

use std::time::{Duration, Instant};

use sandkeeper::ErrorKind;
use sandkeeper::runtime::Runtime;

use crate::support::*;

/// Field case C12. Goal: paused means still. Method: a heartbeat is watched through pause and resume, each done twice.
#[test]
fn a_paused_sandbox_stands_still_until_it_is_resumed() {
    block_on(async {
        let bed = Bed::new();
        let file = bed.file("beats");
        let instance = bed.instance("heart", heartbeat(&file));
        bed.run(&instance).await;
        eventually("it beats", Duration::from_secs(5), || beats(&file) > 0);
        for _ in 0..2 {
            bed.runtime.pause(&instance).await.unwrap();
            let before = beats(&file);
            assert!(bed.runtime.probe(&instance).await.unwrap().frozen);
            tokio::time::sleep(Duration::from_millis(size(100, 1_000) as u64)).await;
            assert_eq!(beats(&file), before, "it beats while paused");
            bed.runtime.pause(&instance).await.unwrap();
            bed.runtime.resume(&instance).await.unwrap();
            bed.runtime.resume(&instance).await.unwrap();
            assert!(!bed.runtime.probe(&instance).await.unwrap().frozen);
            eventually("it beats again", Duration::from_millis(200), || beats(&file) > before);
        }
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Field case C10, first part. Goal: a paused sandbox can be ended. Method: stop and delete it while frozen.
#[test]
fn a_paused_sandbox_is_ended_like_any_other() {
    block_on(async {
        let bed = Bed::new();
        for stop_first in [true, false] {
            let instance = bed.instance("frozen", shell("trap 'exit 7' TERM; while :; do sleep 0.01; done"));
            bed.run(&instance).await;
            bed.runtime.pause(&instance).await.unwrap();
            let start = Instant::now();
            if stop_first {
                bed.stop(&instance).await;
            }
            bed.delete(&instance).await;
            assert!(start.elapsed() < Duration::from_secs(1));
            assert_eq!(bed.exit(&instance).await.status(), 137);
        }
        bed.close().await;
    });
}

/// Field case C10, last part. Goal: a pause that meets an exit leaves nothing stuck. Method: both at the same time.
#[test]
fn a_pause_that_races_with_an_exit_is_refused_or_holds() {
    block_on(async {
        let bed = Bed::new();
        let (mut held, mut refused) = (0, 0);
        for round in 0..size(60, 500) as u64 {
            let instance = bed.instance("short", shell(&format!("sleep 0.0{:02}", scatter(round) % 20)));
            bed.run(&instance).await;
            tokio::time::sleep(Duration::from_millis(scatter(!round) % 25)).await;
            match bed.runtime.pause(&instance).await {
                Ok(()) => {
                    held += 1;
                    assert!(bed.runtime.probe(&instance).await.unwrap().frozen, "round {round}");
                    assert_eq!(bed.recorder.count(instance.life), 0, "round {round}: paused, and ended");
                    bed.runtime.resume(&instance).await.unwrap();
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "round {round}: {error}");
                }
            }
            bed.exit(&instance).await;
            let error = bed.runtime.resume(&instance).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert_eq!(bed.runtime.pause(&instance).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
            bed.delete(&instance).await;
        }
        eprintln!("{held} pauses held, {refused} were refused");
        bed.close().await;
    });
}

/// Field case C11. Goal: a freeze that does not come about in time is taken back, and the sandbox goes on. Method: a member
/// of the group waits for a mute file system, in state D, so that the kernel cannot freeze it.
#[test]
fn a_pause_that_cannot_be_confirmed_is_withdrawn_by_resume() {
    block_on(async {
        let bed = Bed::new();
        let mut mute = MuteFileSystem::mount(&bed.directory.join("mute"));
        let file = bed.file("beats");
        let instance = bed.instance("heart", heartbeat(&file));
        bed.run(&instance).await;
        let mut stuck = std::process::Command::new("stat").arg(mute.mountpoint.join("file")).spawn().unwrap();
        std::fs::write(bed.group(&instance).join("cgroup.procs"), stuck.id().to_string()).unwrap();
        // For a while: on its way there it may wait for a disk.
        let mut looks = 0;
        eventually("it stays in state D", Duration::from_secs(10), || {
            let processes = bed.runtime.processes(&instance);
            let waits = processes.iter().any(|process| process.ends_with("(stat) in state D"));
            looks = if waits { looks + 1 } else { 0 };
            looks > 50
        });

        let pause = tokio::time::timeout(Duration::from_millis(300), bed.runtime.pause(&instance));
        assert!(pause.await.is_err(), "it cannot be frozen");
        assert!(!bed.runtime.probe(&instance).await.unwrap().frozen);
        bed.runtime.resume(&instance).await.unwrap();
        let before = beats(&file);
        eventually("it beats again", Duration::from_secs(1), || beats(&file) > before);

        mute.end();
        drop(stuck.wait());
        bed.runtime.pause(&instance).await.unwrap();
        let before = beats(&file);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(beats(&file), before);
        bed.runtime.resume(&instance).await.unwrap();
        bed.delete(&instance).await;
        drop(mute);
        bed.close().await;
    });
}

/// Goal: what one pause left behind cannot freeze a later one's sandbox. Method: drop pauses at once, then resume.
#[test]
fn resume_wins_over_a_dropped_pause() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("flapping", sleeper());
        bed.run(&instance).await;
        for _ in 0..size(200, 2_000) {
            // Polled once: the write is on its way.
            let pause = tokio::time::timeout(Duration::ZERO, bed.runtime.pause(&instance));
            drop(pause.await);
            bed.runtime.resume(&instance).await.unwrap();
            assert!(!bed.runtime.probe(&instance).await.unwrap().frozen);
        }
        bed.delete(&instance).await;
        bed.close().await;
    });
}
