//! C25 and C21: many callers at once are bounded, ordered and answered, and nothing blocks anything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandkeeper::runtime::memory::{Instead, MemoryRuntime, Script, Step};
use sandkeeper::{Controller, ErrorKind, Filter, Keeper, KeeperBuilder, SandboxKey, SandboxSpec};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

fn house(set_up: impl FnOnce(KeeperBuilder) -> KeeperBuilder) -> (Keeper, Arc<MemoryRuntime>) {
    let runtime = MemoryRuntime::new();
    let keeper = set_up(Keeper::builder().runtime("memory", Arc::clone(&runtime) as _)).build().unwrap();
    (keeper, runtime)
}

fn hangs() -> Step {
    Step { delay: Duration::ZERO, instead: Some(Instead::Hang) }
}

/// C25: never more starts at once than permitted; whose deadline passed in the queue never starts; everybody is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_herd_is_bounded_and_the_expired_never_start() {
    let permitted = 8;
    let (keeper, runtime) = house(|builder| builder.concurrent_starts(permitted));
    for number in 0..100 {
        keeper.run(&key(&format!("old-{number}")), SandboxSpec::default()).await.unwrap();
    }
    runtime.record_calls();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..1_000 {
        let key = key(&format!("herd-{number}"));
        runtime.script(&key, Script { start: Step { delay: MS(2), instead: None }, ..Script::default() });
        let limit = if number % 3 == 0 { MS(60) } else { Duration::from_secs(60) };
        let keeper = keeper.within(limit);
        calls.spawn(async move { (key, keeper.run(&key, SandboxSpec::default()).await) });
    }
    // Cheap calls bypass the queue.
    for number in 0..100 {
        let key = key(&format!("old-{number}"));
        assert!(keeper.ping(&key).is_ok());
        assert!(keeper.status(&key).await.is_ok());
    }
    let (mut started, mut expired) = (0, Vec::new());
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            (_, Ok(_)) => started += 1,
            (key, Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
                expired.push(key);
            }
        }
    }
    assert!(started >= 666, "{started} started");
    assert!(!expired.is_empty(), "the queue was long enough for some to expire");
    assert!(runtime.most_starting() <= permitted, "{} at once", runtime.most_starting());
    tokio::time::sleep(MS(100)).await;
    // An expired one may have been about to run already; then it completed. It never began after it had expired.
    let begun = runtime.calls();
    for key in expired {
        let began = begun.iter().any(|(of, call)| *of == key && *call == "start");
        assert_eq!(began, keeper.ping(&key).is_ok(), "{key}");
    }
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty());
    assert_eq!(runtime.existing(), []);
}

/// C25: a slow sandbox's mailbox is full at some point; who comes then hears it at once, and Shutdown still gets through.
#[tokio::test]
async fn a_full_mailbox_refuses_at_once_and_never_a_shutdown() {
    // One worker, kept busy by this very task: the actor takes nothing out while we send.
    let (keeper, runtime) = house(|builder| builder.mailbox_bound(4));
    let key = key("slow");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    runtime.script(&key, Script { pause: hangs(), ..Script::default() });
    let mut calls: Vec<_> = (0..64).map(|_| Box::pin(keeper.pause(&key))).collect();
    let mut refused = 0;
    for call in &mut calls {
        match futures_util::FutureExt::now_or_never(call) {
            Some(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
                assert!(error.retry_hint().is_some(), "{error}");
                refused += 1;
            }
            Some(Ok(())) => panic!("it hangs"),
            None => {}
        }
    }
    assert_eq!(refused, 60, "four fit");
    keeper.within(Duration::from_secs(2)).shutdown(&key, None).await.expect("needs no room");
    assert_eq!(runtime.existing(), []);
}

/// Waiters have a bound of their own, and those who leave make room.
#[tokio::test]
async fn abandoned_waits_leave_nothing_and_a_full_house_says_so() {
    let (keeper, _runtime) = house(|builder| builder.waiters_bound(100));
    let key = key("waited-for");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    for _ in 0..1_000 {
        let wait = tokio::time::timeout(Duration::from_micros(1), keeper.wait(&key)).await;
        assert!(wait.is_err(), "abandoned");
    }
    let mut waits: Vec<_> = (0..100).map(|_| Box::pin(keeper.wait(&key))).collect();
    for wait in &mut waits {
        assert!(
            futures_util::FutureExt::now_or_never(wait).is_none(),
            "there is room for 100 after 1,000 left"
        );
    }
    assert_eq!(keeper.wait(&key).await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    drop(waits);
    let wait = keeper.wait(&key);
    let (exit, stop) = tokio::join!(wait, keeper.stop(&key, Some(Duration::ZERO)));
    stop.unwrap();
    assert_eq!(exit.unwrap().status(), 137);
}

/// Status asks the sandbox, and answers what is published, marked stale, if it is mute.
#[tokio::test]
async fn status_of_a_mute_sandbox_is_stale_and_in_time() {
    let (keeper, runtime) = house(|builder| builder);
    let key = key("mute");
    keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let decode = |any: prost_types::Any| any.to_msg::<sandkeeper::wire::SandboxStatus>().unwrap();
    assert!(!decode(keeper.status(&key).await.unwrap()).stale);
    runtime.script(&key, Script { probe: hangs(), pause: hangs(), ..Script::default() });
    let begun = Instant::now();
    // Behind an operation that hangs, too.
    let pause = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.pause(&key).await }
    });
    tokio::time::sleep(MS(10)).await;
    let status = decode(keeper.status(&key).await.unwrap());
    assert!(status.stale);
    assert_eq!((status.phase.as_str(), status.id.as_str()), ("pausing", "mute"));
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(keeper.ping(&key).is_ok());
    assert_eq!(keeper.within(MS(50)).probe(&key).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    pause.abort();
}

/// C21: mixed calls on few names, with listing all the time: something always completes, and everything ends in time.
async fn everything_ends_in_time(length: Duration) {
    let (keeper, runtime) = house(|builder| builder);
    let ids: Vec<SandboxKey> = (0..64).map(|number| key(&format!("mixed-{number}"))).collect();
    for (number, id) in ids.iter().enumerate() {
        let delay = Step { delay: MS(1 + number as u64 % 20), instead: None };
        let script =
            Script { start: delay.clone(), delete: delay.clone(), probe: delay, ..Script::default() };
        runtime.script(id, script);
    }
    let until = Instant::now() + length;
    let completed = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..16_u64 {
        let (keeper, ids, completed) = (keeper.clone(), ids.clone(), Arc::clone(&completed));
        tasks.spawn(async move {
            let mut random = client * 7_919 + 1;
            while Instant::now() < until {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let id = &ids[(random >> 33) as usize % ids.len()];
                let begun = Instant::now();
                match (random >> 20) % 6 {
                    0 => drop(keeper.run(id, SandboxSpec::default()).await),
                    1 => drop(keeper.shutdown(id, None).await),
                    2 => drop(keeper.status(id).await),
                    3 => drop(keeper.ping(id)),
                    4 => drop(keeper.list(&Filter::default())),
                    _ => drop(tokio::time::timeout(MS(5), keeper.watch().next()).await),
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "a call outlived its deadline");
                completed.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }
    let mut last = 0;
    while Instant::now() < until {
        tokio::time::sleep(MS(500)).await;
        let now = completed.load(Ordering::Relaxed);
        assert!(now > last, "nothing completed within half a second, after {now} calls");
        last = now;
    }
    tokio::time::timeout(Duration::from_secs(30), async {
        while tasks.join_next().await.transpose().unwrap().is_some() {}
    })
    .await
    .expect("the run ends");
    assert!(keeper.shutdown_all(Some(Duration::ZERO)).await.is_empty());
    assert_eq!(runtime.existing(), []);
}

fn full(short: u64, full: u64) -> Duration {
    Duration::from_secs(if std::env::var_os("SANDKEEPER_FULL").is_some() { full } else { short })
}

#[tokio::test]
async fn mixed_calls_on_one_worker_never_block_each_other() {
    everything_ends_in_time(full(3, 60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_calls_on_two_workers_never_block_each_other() {
    everything_ends_in_time(full(3, 60)).await;
}
