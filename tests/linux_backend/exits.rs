//! Ends: every one is seen, once, with its status, whoever caused it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::linux::{ExitEvidence, LinuxConfig};
use sandkeeper::runtime::{Instance, Reality, Runtime, Urgency};
use tokio::task::JoinSet;

use crate::support::*;

/// Goal: the ordinary life. Method: create, start, probe, ask it to stop, delete; what each step makes true is looked at.
#[test]
fn a_life_from_create_to_delete() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("life", shell("trap 'exit 7' TERM; while :; do sleep 0.01; done"));
        assert_eq!(bed.runtime.reattach(&instance).await.unwrap(), Reality::Absent);
        assert_eq!(bed.runtime.start(&instance).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        bed.runtime.create(&instance).await.unwrap();
        bed.runtime.create(&instance).await.unwrap();
        assert_eq!(bed.runtime.reattach(&instance).await.unwrap(), Reality::Created);
        bed.runtime.stop(&instance, Urgency::Now).await.unwrap();
        let started = bed.runtime.start(&instance).await.unwrap();
        assert!(started.pid > 1);
        assert_eq!(bed.runtime.start(&instance).await.unwrap(), started, "started once");
        let report = bed.runtime.probe(&instance).await.unwrap();
        assert!(report.alive && !report.frozen);
        let reality = bed.runtime.reattach(&instance).await.unwrap();
        assert_eq!(reality, Reality::Running { started, frozen: false });
        tokio::time::sleep(Duration::from_millis(50)).await;
        bed.runtime.stop(&instance, Urgency::Ask).await.unwrap();
        let exit = bed.exit(&instance).await;
        assert_eq!(exit.reason, ExitReason::Exited(7));
        assert!(!bed.runtime.probe(&instance).await.unwrap().alive);
        assert_eq!(bed.runtime.reattach(&instance).await.unwrap(), Reality::Ended(exit));
        bed.runtime.stop(&instance, Urgency::Ask).await.unwrap();
        bed.stop(&instance).await;
        bed.delete(&instance).await;
        bed.delete(&instance).await;
        assert_eq!(bed.runtime.reattach(&instance).await.unwrap(), Reality::Absent);
        bed.close().await;
    });
}

/// Field case C07, first part. Goal: no instant exit is lost. Method: as many sandboxes that end at once, 64 at a time.
#[test]
fn every_instant_exit_is_reported_once_with_its_status() {
    block_on(async {
        let bed = Arc::new(Bed::new());
        let count = size(150, 500);
        let mut tasks = JoinSet::new();
        let permits = Arc::new(tokio::sync::Semaphore::new(64));
        for i in 0..count {
            let (bed, permits) = (Arc::clone(&bed), Arc::clone(&permits));
            tasks.spawn(async move {
                let _permit = permits.acquire().await.unwrap();
                let code = (i % 200) as u8;
                let instance = bed.instance(&format!("instant-{i}"), shell(&format!("exit {code}")));
                let started = bed.run(&instance).await;
                assert!(started.pid > 1 && started.pid < 1 << 22);
                assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(code));
                bed.delete(&instance).await;
                assert_eq!(bed.recorder.count(instance.life), 1);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        Arc::into_inner(bed).unwrap().close().await;
    });
}

/// Field case C07, second part. Goal: a burst of ends is seen at once. Method: kill all leaders from outside.
#[test]
fn a_storm_of_kills_from_outside_is_seen_at_once() {
    block_on(async {
        let bed = Bed::new();
        let mut running = Vec::new();
        for i in 0..size(100, 500) {
            let instance = bed.instance(&format!("sleeper-{i}"), sleeper());
            let pid = bed.run(&instance).await.pid;
            running.push((instance, pid));
        }
        let start = Instant::now();
        let killed = running.iter().map(|(instance, pid)| {
            kill(*pid);
            (instance, Instant::now())
        });
        let killed: Vec<_> = killed.collect();
        let all_killed = start.elapsed();
        let mut delays = Vec::new();
        for (instance, killed) in killed {
            assert_eq!(bed.exit(instance).await.status(), 137);
            let seen = bed.recorder.seen(instance.life, Duration::ZERO);
            delays.push(seen.at.saturating_duration_since(killed));
        }
        delays.sort();
        let (half, most) = (delays[delays.len() / 2], delays[delays.len() - 1]);
        eprintln!(
            "{} killed within {all_killed:?}; seen after p50 {half:?}, at most {most:?}",
            running.len()
        );
        assert!(most < Duration::from_secs(5));
        for (instance, pid) in &running {
            bed.delete(instance).await;
            assert!(!process_exists(*pid), "{pid} is not even a zombie");
        }
        bed.close().await;
    });
}

/// Field case C06, second part. Goal: no signal ever goes astray. Method: rounds in which the exit and the end by us race;
/// this process counts the signals it gets.
#[test]
fn an_exit_that_races_with_a_stop_never_signals_a_bystander() {
    block_on(async {
        let bed = Bed::new();
        let mut signals = Signals::listen();
        for round in 0..size(200, 1_000) as u64 {
            let pause = scatter(round) % 20;
            let instance = bed.instance("race", shell(&format!("sleep 0.0{pause:02}; exit 4")));
            bed.run(&instance).await;
            tokio::time::sleep(Duration::from_micros(scatter(!round) % 20_000)).await;
            if round % 2 == 0 {
                bed.runtime.stop(&instance, Urgency::Ask).await.unwrap();
                bed.stop(&instance).await;
            }
            bed.delete(&instance).await;
            let exit = bed.exit(&instance).await;
            // 143: the shell had no handler for TERM, as any other process without one.
            assert!([4, 137, 143].contains(&exit.status()), "round {round}: {exit}");
        }
        assert_eq!(signals.received().await, None);
        bed.close().await;
    });
}

/// Field case C08. Goal: an end is the end of all. Method: a child that forks twice, leaves the session and ignores TERM
/// outlives its leader's own exit with 3, or its deletion.
#[test]
fn descendants_that_left_the_session_end_with_the_sandbox() {
    block_on(async {
        let bed = Bed::new();
        let daemon = "setsid sh -c 'trap \"\" TERM; while :; do echo beat; sleep 0.01; done' & ";
        for round in 0..size(20, 200) {
            let file = bed.file("beats");
            let ends_by_itself = round % 2 == 0;
            let mut spec = shell(&format!(
                "{daemon} sleep 0.03; {}",
                if ends_by_itself { "exit 3" } else { "sleep 60" }
            ));
            spec.process.as_mut().unwrap().stdio.stdout = Some(file.clone());
            let instance = bed.instance("daemon", spec);
            let pid = bed.run(&instance).await.pid;
            eventually("the daemon beats", Duration::from_secs(5), || beats(&file) > 0);
            if ends_by_itself {
                assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(3));
            }
            bed.delete(&instance).await;
            assert!(!process_exists(pid), "round {round}: {pid} is left");
            let before = beats(&file);
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert_eq!(beats(&file), before, "round {round}: it still beats");
        }
        bed.close().await;
    });
}

async fn kill_zygotes(bed: &Bed) {
    let zygotes = bed.runtime.usage().zygotes;
    assert!(!zygotes.is_empty());
    zygotes.iter().for_each(|pid| kill(*pid));
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Goal: killed zygotes cost no sandbox and no exit, and starts go on. Method: kill all of them with sandboxes running.
#[test]
fn exits_are_seen_after_the_zygotes_were_killed() {
    block_on(async {
        let bed = Bed::new();
        let mut running = Vec::new();
        for i in 0..8 {
            let script = if i < 4 { "sleep 0.4; exit 5" } else { "sleep 600" };
            let instance = bed.instance(&format!("orphan-{i}"), shell(script));
            let pid = bed.run(&instance).await.pid;
            running.push((instance, pid));
        }
        kill_zygotes(&bed).await;
        for (instance, pid) in &running[4..] {
            assert!(bed.runtime.probe(instance).await.unwrap().alive);
            kill(*pid);
            assert!([137, 255].contains(&bed.exit(instance).await.status()));
        }
        for (instance, _) in &running[..4] {
            assert!([5, 255].contains(&bed.exit(instance).await.status()));
        }
        for (instance, _) in &running {
            bed.delete(instance).await;
        }
        let instance = bed.instance("after", shell("exit 6"));
        bed.runtime.create(&instance).await.unwrap();
        let start = Instant::now();
        while let Err(error) = bed.runtime.start(&instance).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(start.elapsed() < Duration::from_secs(10), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bed.exit(&instance).await.status(), 6, "a new zygote spawns");
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Linux 6.15 and later.
fn pidfds_tell_the_status() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
}

/// Goal: the fallbacks work, on this kernel as on older ones. Method: force each.
#[test]
fn each_fallback_of_the_exit_status_works() {
    block_on(async {
        for evidence in [ExitEvidence::Best, ExitEvidence::Pidfd, ExitEvidence::Nothing] {
            let bed = Bed::with(LinuxConfig { exit_evidence: evidence, ..LinuxConfig::default() });
            for (script, status) in
                [("exit 9", 9), ("exit 0", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
            {
                let instance = bed.instance("evidence", shell(script));
                bed.run(&instance).await;
                let exit = bed.exit(&instance).await;
                let known = match evidence {
                    ExitEvidence::Best => true,
                    ExitEvidence::Pidfd => pidfds_tell_the_status(),
                    ExitEvidence::Nothing => false,
                };
                let expected = if known { status } else { 255 };
                assert_eq!(exit.status(), expected, "{evidence:?}, {script}: {exit}");
                bed.delete(&instance).await;
            }
            bed.close().await;
        }
    });
}

/// Goal: a start whose caller has gone leaves nothing that a delete does not end. Method: drop the future at some moment.
#[test]
fn a_dropped_start_is_ended_by_delete() {
    block_on(async {
        let bed = Bed::new();
        for round in 0..size(100, 1_000) as u64 {
            let instance: Arc<Instance> = bed.instance("dropped", sleeper());
            let budget = Duration::from_micros(scatter(round) % 2_000);
            let run = async {
                bed.runtime.create(&instance).await.unwrap();
                bed.runtime.start(&instance).await
            };
            // A timer of tokio's has a grain of 1 ms; the budget is spent polling.
            let start = Instant::now();
            let mut run = Box::pin(run);
            loop {
                let polled = polled_once(run.as_mut()).await;
                if polled || start.elapsed() > budget {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(run);
            bed.delete(&instance).await;
            assert!(bed.recorder.count(instance.life) <= 1);
        }
        bed.close().await;
    });
}

/// Polls once. Whether it is ready.
async fn polled_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready())).await
}
