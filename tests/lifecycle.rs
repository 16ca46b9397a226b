//! The cases of the lifecycle, on scripted sandboxes: what the kernel adds is in the tests of the linux backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandkeeper::model::{ExitReason, Phase};
use sandkeeper::runtime::memory::{Instead, MemoryRuntime, Script, Step};
use sandkeeper::runtime::{Runtime, contract};
use sandkeeper::{
    Controller, ErrorKind, Filter, Keeper, OperationDeadlines, SandboxKey, SandboxSpec, WatchItem,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

fn keeper() -> (Keeper, Arc<MemoryRuntime>) {
    let runtime = MemoryRuntime::new();
    let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).build().unwrap();
    (keeper, runtime)
}

fn slow(delay: Duration) -> Step {
    Step { delay, instead: None }
}

fn instead(instead: Instead) -> Step {
    Step { delay: Duration::ZERO, instead: Some(instead) }
}

#[track_caller]
fn nothing_is_left(keeper: &Keeper, runtime: &MemoryRuntime) {
    assert_eq!(runtime.existing(), []);
    assert_eq!(keeper.len(), 0);
    assert_eq!(keeper.list(&Filter::default()), []);
    assert_eq!(keeper.sweep().total(), 0);
}

#[tokio::test]
async fn the_memory_backend_upholds_the_contract() {
    let runtime: Arc<dyn Runtime> = MemoryRuntime::new();
    contract::upholds_everything(&runtime, &SandboxSpec::default()).await;
}

/// C01 (a): 32 callers start one ID; one start happens, and all get its pid.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_starts_join_the_one_that_runs() {
    let (keeper, runtime) = keeper();
    let key = key("dup-1");
    runtime.script(&key, Script { start: slow(MS(100)), ..Script::default() });
    runtime.record_calls();
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let keeper = keeper.clone();
            tokio::spawn(async move { keeper.run(&key, SandboxSpec::default()).await })
        })
        .collect();
    let mut pids = Vec::new();
    for call in calls {
        pids.push(call.await.unwrap().expect("each caller hears of the one start").started.pid);
    }
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    let starts = runtime.calls().iter().filter(|(_, call)| *call == "start").count();
    assert_eq!(starts, 1);
    assert_eq!(keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid, pids[0]);
    keeper.shutdown(&key, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);
}

/// C01 (b), library part: a caller whose deadline passes is joined by its own retry.
#[tokio::test]
async fn a_retry_joins_the_start_its_caller_gave_up_on() {
    let (keeper, runtime) = keeper();
    let key = key("dup-2");
    runtime.script(&key, Script { start: slow(MS(300)), ..Script::default() });
    let error = keeper.within(MS(50)).run(&key, SandboxSpec::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    runtime.record_calls();
    keeper.run(&key, SandboxSpec::default()).await.expect("joins");
    assert_eq!(runtime.calls(), [], "nothing was begun a second time");
    keeper.shutdown(&key, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);
}

/// C01 (c): another spec under a taken name.
#[tokio::test]
async fn another_spec_under_a_taken_name_is_refused_and_changes_nothing() {
    let (keeper, _runtime) = keeper();
    let key = key("dup-3");
    let before = keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let status = keeper.inspect(&key).unwrap();
    let other = SandboxSpec { hostname: Some("other".into()), ..SandboxSpec::default() };
    for error in [keeper.run(&key, other.clone()).await.err(), keeper.define(&key, other).await.err()] {
        assert_eq!(error.unwrap().kind(), ErrorKind::AlreadyExists);
    }
    assert_eq!(keeper.inspect(&key).unwrap(), status);
    assert_eq!(keeper.start(&key).await.unwrap(), before);
    keeper.define(&key, SandboxSpec::default()).await.expect("the same again");
}

/// C02: a Shutdown is legal before, during and instead of a start, and wins.
#[tokio::test]
async fn shutdown_of_a_half_made_sandbox_leaves_nothing() {
    let (keeper, runtime) = keeper();
    let created = key("half-1");
    keeper.prepare(&created, SandboxSpec::default()).await.unwrap();
    assert_eq!(keeper.inspect(&created).unwrap().phase, "created");
    keeper.shutdown(&created, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);

    let starting = key("half-2");
    runtime.script(&starting, Script { start: slow(Duration::from_secs(60)), ..Script::default() });
    let start = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.run(&starting, SandboxSpec::default()).await }
    });
    tokio::time::sleep(MS(50)).await;
    assert_eq!(keeper.ping(&starting).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    keeper.within(Duration::from_secs(5)).shutdown(&starting, None).await.unwrap();
    assert_eq!(start.await.unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(keeper.status(&starting).await.unwrap_err().kind(), ErrorKind::NotFound);
    nothing_is_left(&keeper, &runtime);
}

/// C02 (c): whatever the moment, after a Shutdown nothing is left, and no start comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_at_any_moment_of_a_start_is_final() {
    let (keeper, runtime) = keeper();
    let mut watch = keeper.watch();
    let rounds = 200;
    let calls: Vec<_> = (0..rounds)
        .map(|round| {
            let (keeper, runtime) = (keeper.clone(), Arc::clone(&runtime));
            tokio::spawn(async move {
                let key = key(&format!("race-{round}"));
                let script =
                    Script { create: slow(MS(round % 7)), start: slow(MS(round % 11)), ..Script::default() };
                runtime.script(&key, script);
                let start = keeper.run(&key, SandboxSpec::default());
                let shutdown = async {
                    tokio::time::sleep(Duration::from_micros(round * 150)).await;
                    keeper.shutdown(&key, Some(Duration::ZERO)).await
                };
                let (start, shutdown) = tokio::join!(start, shutdown);
                shutdown.expect("always legal");
                start.err().map(|error| error.kind())
            })
        })
        .collect();
    for call in calls {
        let outcome = call.await.unwrap();
        // A shutdown that came first found nothing; the start after it is a start like any other.
        assert!(
            matches!(outcome, None | Some(ErrorKind::Aborted | ErrorKind::FailedPrecondition)),
            "{outcome:?}"
        );
    }
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty());
    nothing_is_left(&keeper, &runtime);
    drop(keeper);
    let mut last = std::collections::HashMap::new();
    while let Some(item) = watch.next().await {
        let WatchItem::Event(event) = item else { continue };
        let before = last.insert((event.key, event.life), event.phase);
        let legal = before.is_none_or(|before| before < event.phase);
        assert!(legal, "{} went from {before:?} to {}", event.key, event.phase);
    }
    assert!(last.len() >= rounds as usize);
}

/// C03: a caller that goes away changes nothing but its own wait: what was begun completes.
#[tokio::test]
async fn an_abandoned_start_completes() {
    let (keeper, runtime) = keeper();
    for round in 0..50_u64 {
        let key = key(&format!("gone-{round}"));
        runtime.script(&key, Script { start: slow(MS(20)), ..Script::default() });
        let _ = tokio::time::timeout(MS(1 + round % 40), keeper.run(&key, SandboxSpec::default())).await;
    }
    for round in 0..50 {
        let key = key(&format!("gone-{round}"));
        let again = keeper.run(&key, SandboxSpec::default()).await.expect("joins, or has it");
        assert_eq!(runtime.running().iter().filter(|(of, _)| *of == key).count(), 1);
        assert!(keeper.ping(&key).is_ok());
        assert_eq!(keeper.inspect(&key).unwrap().pid, again.started.pid);
        keeper.shutdown(&key, None).await.unwrap();
    }
    nothing_is_left(&keeper, &runtime);
}

/// A start that fails is undone before its callers hear of it, and leaves the definition only if there was one.
#[tokio::test]
async fn a_failed_start_is_undone_before_anybody_hears_of_it() {
    let (keeper, runtime) = keeper();
    let key = key("fail");
    for step in [
        instead(Instead::Fail(ErrorKind::Unavailable)),
        instead(Instead::WorkAndFail(ErrorKind::Unavailable)),
    ] {
        runtime.script(&key, Script { start: step, ..Script::default() });
        let error = keeper.run(&key, SandboxSpec::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        nothing_is_left(&keeper, &runtime);
    }
    keeper.define(&key, SandboxSpec::default()).await.unwrap();
    keeper.start(&key).await.unwrap_err();
    assert_eq!(runtime.existing(), []);
    assert_eq!(keeper.inspect(&key).unwrap().phase, "defined");
    runtime.script(&key, Script::default());
    keeper.start(&key).await.expect("works now");
    keeper.shutdown(&key, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);
}

/// C07: instant exits lose nothing; per ID one start before one exit.
#[tokio::test(flavor = "multi_thread")]
async fn instant_exits_are_started_once_and_ended_once() {
    let (keeper, runtime) = keeper();
    let mut watch = keeper.watch();
    let count = 500;
    let calls: Vec<_> = (0..count)
        .map(|number| {
            let (keeper, runtime) = (keeper.clone(), Arc::clone(&runtime));
            tokio::spawn(async move {
                let key = key(&format!("instant-{number}"));
                let status = (number % 200) as u8;
                runtime.script(&key, Script { exits: Some((Duration::ZERO, status)), ..Script::default() });
                let sandbox = keeper.run(&key, SandboxSpec::default()).await.expect("it did start");
                assert!(sandbox.started.pid > 1);
                let exit = keeper.wait(&key).await.expect("it did end");
                assert_eq!(exit.reason, ExitReason::Exited(status));
                assert_eq!(keeper.inspect(&key).unwrap().phase, "stopped");
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(keeper.sweep().count(Phase::Stopped), count);
    let mut seen = std::collections::HashMap::<_, Vec<Phase>>::new();
    while seen.values().filter(|phases| phases.contains(&Phase::Stopped)).count() < count as usize {
        if let Some(WatchItem::Event(event)) = watch.next().await {
            seen.entry(event.key).or_default().push(event.phase);
        }
    }
    for (key, phases) in seen {
        use Phase::*;
        assert_eq!(phases, [Defined, Creating, Starting, Running, Stopped], "{key}");
    }
}

/// C07, second half: a burst of ends from outside, each with somebody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_ends_reaches_everybody_who_waits() {
    let (keeper, runtime) = keeper();
    let mut waits = tokio::task::JoinSet::new();
    for number in 0..500 {
        let key = key(&format!("burst-{number}"));
        keeper.run(&key, SandboxSpec::default()).await.unwrap();
        let keeper = keeper.clone();
        waits.spawn(async move { keeper.wait(&key).await.unwrap().status() });
    }
    tokio::time::sleep(MS(20)).await;
    for number in 0..500 {
        assert!(runtime.exit(&key(&format!("burst-{number}")), ExitReason::Signalled(9)));
    }
    while let Some(status) = waits.join_next().await {
        assert_eq!(status.unwrap(), 137);
    }
}

/// C08: after a Shutdown the name is free in the same instant.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_shutdown_the_name_is_free_at_once() {
    let (keeper, runtime) = keeper();
    let key = key("again");
    let other = SandboxSpec { hostname: Some("other".into()), ..SandboxSpec::default() };
    for round in 0..200 {
        let spec = if round % 2 == 0 { SandboxSpec::default() } else { other.clone() };
        keeper.run(&key, spec).await.expect("the name is free");
        keeper.shutdown(&key, None).await.unwrap();
        assert_eq!(runtime.existing(), []);
    }
    nothing_is_left(&keeper, &runtime);
}

/// C09: unknown IDs are calm, repeated and parallel Shutdowns are one.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_is_idempotent_and_unknown_names_are_calm() {
    let (keeper, runtime) = keeper();
    let unknown = key("never");
    let begun = Instant::now();
    for _ in 0..3 {
        keeper.shutdown(&unknown, None).await.unwrap();
        assert_eq!(keeper.stop(&unknown, None).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(keeper.wait(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(keeper.status(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(keeper.pause(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(keeper.start(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(keeper.ping(&unknown).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(keeper.len(), 0, "asking makes nothing");

    let key = key("known");
    runtime.script(&key, Script { delete: slow(MS(50)), ..Script::default() });
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    runtime.record_calls();
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let keeper = keeper.clone();
            tokio::spawn(async move { keeper.shutdown(&key, None).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let deletes = runtime.calls().iter().filter(|(_, call)| *call == "delete").count();
    assert_eq!(deletes, 1, "one single teardown");
    keeper.shutdown(&key, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);

    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    for _ in 0..3 {
        keeper.stop(&key, None).await.expect("stopping the stopped succeeds");
        assert_eq!(keeper.inspect(&key).unwrap().phase, "stopped");
    }
}

/// C10: a paused sandbox ends at once and is never seen running on the way.
#[tokio::test]
async fn a_paused_sandbox_is_ended_without_being_thawed() {
    let (keeper, runtime) = keeper();
    let key = key("paused");
    runtime.script(&key, Script { ignores_ask: true, ..Script::default() });
    for _ in 0..2 {
        keeper.run(&key, SandboxSpec::default()).await.unwrap();
        keeper.pause(&key).await.unwrap();
        assert!(keeper.ping(&key).is_ok(), "the paused is alive");
        runtime.record_calls();
        keeper.stop(&key, Some(Duration::from_secs(3))).await.unwrap();
        assert_eq!(keeper.wait(&key).await.unwrap().status(), 137);
        assert!(runtime.calls().iter().all(|(_, call)| *call == "kill"), "{:?}", runtime.calls());
        assert_eq!(keeper.resume(&key).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        keeper.shutdown(&key, None).await.unwrap();
    }
    nothing_is_left(&keeper, &runtime);
}

/// C10 (c): pauses that race with the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_during_a_pause_clears_it() {
    let (keeper, runtime) = keeper();
    for round in 0..100_u64 {
        let key = key(&format!("short-{round}"));
        let script = Script {
            exits: Some((Duration::from_micros(round * 60), 5)),
            pause: slow(MS(round % 5)),
            ..Script::default()
        };
        runtime.script(&key, script);
        keeper.run(&key, SandboxSpec::default()).await.unwrap();
        let pause = keeper.pause(&key).await.err().map(|error| error.kind());
        assert!(matches!(pause, None | Some(ErrorKind::FailedPrecondition)), "{pause:?}");
        assert_eq!(keeper.wait(&key).await.unwrap().status(), 5);
        let status = keeper.inspect(&key).unwrap();
        assert_eq!((status.phase.as_str(), status.pid), ("stopped", 0));
        assert_eq!(keeper.resume(&key).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        keeper.shutdown(&key, None).await.unwrap();
    }
    nothing_is_left(&keeper, &runtime);
}

/// C11: a freeze that is never confirmed is withdrawn, in the caller's time.
#[tokio::test]
async fn a_pause_that_hangs_is_withdrawn() {
    let (keeper, runtime) = keeper();
    let key = key("stuck");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    runtime.script(&key, Script { pause: instead(Instead::Hang), ..Script::default() });
    let begun = Instant::now();
    let error = keeper.within(MS(200)).pause(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    tokio::time::sleep(MS(200)).await;
    assert_eq!(keeper.inspect(&key).unwrap().phase, "running");
    assert!(!runtime.is_frozen(&key));

    // Half done and then failed: withdrawn as well.
    let half = instead(Instead::WorkAndFail(ErrorKind::Unavailable));
    runtime.script(&key, Script { pause: half, ..Script::default() });
    assert_eq!(keeper.pause(&key).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!runtime.is_frozen(&key), "withdrawn before the caller hears of it");
    assert_eq!(keeper.inspect(&key).unwrap().phase, "running");

    runtime.script(&key, Script::default());
    keeper.pause(&key).await.unwrap();
    keeper.resume(&key).await.unwrap();
    keeper.shutdown(&key, None).await.unwrap();
    nothing_is_left(&keeper, &runtime);
}

/// C12: a backend that cannot freeze says so before anything happens.
#[tokio::test]
async fn a_backend_that_cannot_freeze_says_unimplemented_and_nothing_happens() {
    let runtime = MemoryRuntime::without_pause();
    let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).build().unwrap();
    let key = key("unfreezable");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let mut watch = keeper.watch();
    assert!(matches!(watch.next().await, Some(WatchItem::Snapshot { .. })));
    assert_eq!(keeper.pause(&key).await.unwrap_err().kind(), ErrorKind::Unimplemented);
    assert_eq!(keeper.resume(&key).await.unwrap_err().kind(), ErrorKind::Unimplemented);
    assert_eq!(keeper.inspect(&key).unwrap().phase, "running");
    assert!(tokio::time::timeout(MS(50), watch.next()).await.is_err(), "no event");
}

/// Nothing sticks: an end that hangs is answered by its deadline, and goes on by itself.
#[tokio::test]
async fn a_shutdown_that_cannot_finish_says_so_and_goes_on_by_itself() {
    let runtime = MemoryRuntime::new();
    let deadlines = OperationDeadlines { delete: MS(100), ..OperationDeadlines::default() };
    let keeper = Keeper::builder()
        .runtime("memory", Arc::clone(&runtime) as _)
        .operation_deadlines(deadlines)
        .build()
        .unwrap();
    let key = key("stuck");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    runtime.script(&key, Script { delete: instead(Instead::Hang), ..Script::default() });
    let error = keeper.shutdown(&key, Some(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert_eq!(keeper.inspect(&key).unwrap().phase, "deleting");
    let error = keeper.run(&key, SandboxSpec::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "the name stays reserved: {error}");
    runtime.script(&key, Script::default());
    tokio::time::timeout(Duration::from_secs(5), async {
        while !keeper.is_empty() {
            tokio::time::sleep(MS(20)).await;
        }
    })
    .await
    .expect("it is tried again by itself");
    nothing_is_left(&keeper, &runtime);
}

/// A stop asks, waits for the grace, and then forces.
#[tokio::test]
async fn a_stop_gives_the_grace_and_then_forces() {
    let (keeper, runtime) = keeper();
    let polite = key("polite");
    keeper.run(&polite, SandboxSpec::default()).await.unwrap();
    let begun = Instant::now();
    keeper.stop(&polite, Some(Duration::from_secs(30))).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(keeper.wait(&polite).await.unwrap().status(), 143);

    let deaf = key("deaf");
    runtime.script(&deaf, Script { ignores_ask: true, ..Script::default() });
    keeper.run(&deaf, SandboxSpec::default()).await.unwrap();
    let begun = Instant::now();
    let patient = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.stop(&deaf, Some(Duration::from_secs(60))).await }
    });
    tokio::time::sleep(MS(50)).await;
    assert!(keeper.ping(&deaf).is_ok(), "it is still there while it is being stopped");
    keeper.stop(&deaf, Some(MS(100))).await.expect("the shorter grace holds");
    patient.await.unwrap().expect("for everybody");
    assert!(begun.elapsed() >= MS(100) && begun.elapsed() < Duration::from_secs(5));
    assert_eq!(keeper.wait(&deaf).await.unwrap().status(), 137);

    // After a stop, a start begins the next life.
    let first = keeper.inspect(&deaf).unwrap().life;
    let second = keeper.start(&deaf).await.unwrap();
    assert!(second.life.0 > first);
    assert!(keeper.inspect(&deaf).unwrap().exit.is_none(), "the new life has not ended");
}

/// Records of the stopped are kept up to the cap; past it the oldest go.
#[tokio::test]
async fn stopped_records_are_kept_up_to_the_cap() {
    let runtime = MemoryRuntime::new();
    let keeper =
        Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).stopped_records(3).build().unwrap();
    for number in 0..8 {
        let key = key(&format!("s{number}"));
        keeper.run(&key, SandboxSpec::default()).await.unwrap();
        keeper.stop(&key, Some(Duration::ZERO)).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(5), async {
        while keeper.len() > 3 {
            tokio::time::sleep(MS(5)).await;
        }
    })
    .await
    .expect("the oldest go");
    let ids: Vec<String> = keeper.list(&Filter::default()).into_iter().map(|status| status.id).collect();
    assert_eq!(ids, ["s5", "s6", "s7"]);
}

/// An embedder's source says what an ID is to be.
#[tokio::test]
async fn a_spec_source_defines_what_is_started_by_id() {
    let runtime = MemoryRuntime::new();
    let keeper = Keeper::builder()
        .runtime("memory", Arc::clone(&runtime) as _)
        .spec_source(|key| {
            let spec = SandboxSpec { hostname: Some(key.id().to_string()), ..SandboxSpec::default() };
            (key.id().as_str() != "nobody").then_some(spec)
        })
        .build()
        .unwrap();
    keeper.start(&key("somebody")).await.unwrap();
    let error = keeper.start(&key("nobody")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("define it first"), "{error}");
}

/// A handle is of one sandbox, not of a name.
#[tokio::test]
async fn a_handle_does_not_pass_to_the_next_sandbox_of_its_name() {
    let (keeper, _runtime) = keeper();
    let key = key("handled");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let handle = keeper.handle(&key).unwrap();
    assert!(handle.ping().is_ok());
    keeper.shutdown(&key, None).await.unwrap();
    assert_eq!(handle.ping().unwrap_err().kind(), ErrorKind::NotFound);
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    assert_eq!(handle.ping().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(keeper.handle(&key).unwrap().ping().is_ok());
}

/// `Controller` is an interface that fronts can hold.
#[tokio::test]
async fn a_controller_can_be_held_as_an_object() {
    let (keeper, _runtime) = keeper();
    let key = key("object");
    keeper.define(&key, SandboxSpec::default()).await.unwrap();
    let controller: Box<dyn Controller> = Box::new(keeper);
    controller.start(&key).await.unwrap();
    assert!(controller.ping(&key).is_ok());
    assert_eq!(controller.platform(&key).await.unwrap().os, "linux");
    assert_eq!(controller.metrics(&key).await.unwrap_err().kind(), ErrorKind::Unimplemented);
    controller.shutdown(&key, None).await.unwrap();
}

/// A keeper that closes lets nothing in any more, and nothing stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_keeper_starts_nothing_and_keeps_nothing() {
    let (keeper, runtime) = keeper();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let keeper = keeper.clone();
        calls.spawn(async move { keeper.run(&key(&format!("late-{number}")), SandboxSpec::default()).await });
    }
    while keeper.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(keeper.close(Some(Duration::ZERO)).await.len(), 0);
    nothing_is_left(&keeper, &runtime);
    while let Some(call) = calls.join_next().await {
        if let Err(error) = call.unwrap() {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Unavailable | ErrorKind::Aborted | ErrorKind::FailedPrecondition),
                "{error}"
            );
        }
    }
    nothing_is_left(&keeper, &runtime);
    assert_eq!(
        keeper.run(&key("later"), SandboxSpec::default()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

/// A keeper that is dropped without a word takes its sandboxes and its backend along.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_keeper_lets_go_of_its_backend() {
    let (keeper, runtime) = keeper();
    for number in 0..3 {
        keeper.run(&key(&format!("dropped-{number}")), SandboxSpec::default()).await.unwrap();
    }
    keeper.stop(&key("dropped-0"), None).await.unwrap();
    let backend = Arc::downgrade(&runtime);
    drop((keeper, runtime));
    let dropped = async {
        while backend.upgrade().is_some() {
            tokio::time::sleep(MS(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), dropped).await.expect("nothing keeps the backend");
}

/// Whoever asks for another spec is told so at any moment, also while a failed start is being undone.
#[tokio::test]
async fn another_spec_is_refused_while_a_failed_start_is_undone() {
    let (keeper, runtime) = keeper();
    let key = key("undone");
    let script = Script {
        start: instead(Instead::Fail(ErrorKind::Unavailable)),
        delete: slow(MS(100)),
        ..Script::default()
    };
    runtime.script(&key, script);
    keeper.define(&key, SandboxSpec::default()).await.unwrap();
    let other = SandboxSpec { hostname: Some("other".into()), ..SandboxSpec::default() };
    let start = keeper.start(&key);
    let define = async {
        tokio::time::sleep(MS(30)).await;
        assert_eq!(keeper.inspect(&key).unwrap().phase, "deleting");
        keeper.define(&key, other).await
    };
    let (start, define) = tokio::join!(start, define);
    assert_eq!(start.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(define.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

/// A refused pause leaves nothing behind that shortens what comes after it.
#[tokio::test]
async fn a_refused_pause_does_not_cut_a_later_stop_short() {
    let runtime = MemoryRuntime::without_pause();
    let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).build().unwrap();
    let key = key("unhurried");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    assert_eq!(keeper.within(MS(20)).pause(&key).await.unwrap_err().kind(), ErrorKind::Unimplemented);
    tokio::time::sleep(MS(50)).await;
    keeper.stop(&key, Some(Duration::from_secs(10))).await.unwrap();
    assert_eq!(keeper.wait(&key).await.unwrap().status(), 143, "it was asked, and ended by itself");
}

/// No limit is a limit that nobody reaches, and not a panic.
#[tokio::test]
async fn the_longest_graces_and_deadlines_are_accepted() {
    let (keeper, runtime) = keeper();
    let key = key("patient");
    keeper.within(Duration::MAX).run(&key, SandboxSpec::default()).await.unwrap();
    keeper.stop(&key, Some(Duration::MAX)).await.unwrap();
    keeper.start(&key).await.unwrap();
    assert!(keeper.shutdown_all(Some(Duration::MAX)).await.is_empty());
    nothing_is_left(&keeper, &runtime);
}

/// Metrics and Update of what does not run, or of nobody, are refused like any other question.
#[tokio::test]
async fn metrics_of_what_does_not_run_are_refused() {
    let (keeper, _runtime) = keeper();
    let key = key("idle");
    keeper.define(&key, SandboxSpec::default()).await.unwrap();
    assert_eq!(keeper.metrics(&key).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(
        keeper.update(&key, &Default::default()).await.unwrap_err().kind(),
        ErrorKind::FailedPrecondition
    );
}

/// An old record that makes room does not take the next life of its name along.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_record_never_takes_the_next_life_along() {
    let runtime = MemoryRuntime::new();
    let keeper =
        Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).stopped_records(1).build().unwrap();
    let mut rounds = tokio::task::JoinSet::new();
    for number in 0..8 {
        let keeper = keeper.clone();
        rounds.spawn(async move {
            let key = key(&format!("evicted-{number}"));
            for _ in 0..200 {
                match keeper.run(&key, SandboxSpec::default()).await {
                    Ok(_) => drop(keeper.stop(&key, Some(Duration::ZERO)).await),
                    // The record was on its way out: the next try finds the name free.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}"),
                }
            }
        });
    }
    while let Some(round) = rounds.join_next().await {
        round.unwrap();
    }
}

/// Each life is seen to begin and to end, once, whatever cancels it.
#[tokio::test]
async fn a_cancelled_restart_is_not_seen_as_another_end_of_the_last_life() {
    let (keeper, runtime) = keeper();
    let mut watch = keeper.watch();
    let key = key("restarted");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    keeper.stop(&key, Some(Duration::ZERO)).await.unwrap();
    runtime.script(&key, Script { delete: slow(MS(200)), ..Script::default() });
    let start = keeper.start(&key);
    let stop = async {
        tokio::time::sleep(MS(30)).await;
        keeper.stop(&key, None).await.unwrap();
    };
    let (start, ()) = tokio::join!(start, stop);
    assert_eq!(start.unwrap_err().kind(), ErrorKind::Aborted);
    keeper.start(&key).await.unwrap();
    keeper.close(Some(Duration::ZERO)).await;
    drop(keeper);
    let mut phases = Vec::new();
    while let Some(item) = watch.next().await {
        if let WatchItem::Event(event) = item {
            phases.push((event.life.0, event.phase));
        }
    }
    use Phase::*;
    let lives: std::collections::BTreeSet<u64> = phases.iter().map(|(life, _)| *life).collect();
    for life in lives.into_iter().filter(|life| *life > 0) {
        let seen = |phase| phases.iter().filter(|(of, at)| *of == life && *at == phase).count();
        assert_eq!((seen(Creating), seen(Running)), (1, 1), "life {life}: {phases:?}");
        assert!(seen(Stopped) <= 1, "life {life}: {phases:?}");
    }
}
