//! C26: an actor, a registry or a backend that fails takes nothing along.

use std::sync::Arc;
use std::time::Duration;

use sandkeeper::model::ExitReason;
use sandkeeper::runtime::memory::{Instead, MemoryRuntime, Script, Step};
use sandkeeper::{Controller, ErrorKind, Filter, Keeper, SandboxKey, SandboxSpec};

const MS: fn(u64) -> Duration = Duration::from_millis;
const SECOND: Duration = Duration::from_secs(1);

fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

struct House {
    keeper: Keeper,
    runtime: Arc<MemoryRuntime>,
    bystanders: Vec<(SandboxKey, u32)>,
}

impl House {
    /// A keeper with 100 running bystanders.
    async fn with_bystanders() -> Self {
        let runtime = MemoryRuntime::new();
        let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).build().unwrap();
        let mut bystanders = Vec::new();
        for number in 0..100 {
            let key = key(&format!("bystander-{number}"));
            let sandbox = keeper.run(&key, SandboxSpec::default()).await.unwrap();
            bystanders.push((key, sandbox.started.pid));
        }
        Self { keeper, runtime, bystanders }
    }

    fn scripted(&self, id: &str, script: Script) -> SandboxKey {
        let key = key(id);
        self.runtime.script(&key, script);
        key
    }

    /// Nobody else noticed, and what was shut down is gone.
    async fn must_be_unharmed(self) {
        for (key, pid) in &self.bystanders {
            assert!(self.keeper.ping(key).is_ok(), "{key}");
            assert_eq!(self.keeper.start(key).await.unwrap().started.pid, *pid, "{key}");
        }
        assert_eq!(self.runtime.existing().len(), self.bystanders.len());
        assert_eq!(self.keeper.list(&Filter::default()).len(), self.bystanders.len());
    }
}

fn panics() -> Step {
    Step { delay: Duration::ZERO, instead: Some(Instead::Panic) }
}

/// Asks until the owner has been replaced and answers again.
async fn settled(keeper: &Keeper, key: &SandboxKey, phase: &str) {
    tokio::time::timeout(SECOND, async {
        loop {
            let status = keeper.inspect(key).unwrap();
            if status.phase == phase && status.marks.iter().all(|mark| mark != "recovering") {
                return;
            }
            tokio::time::sleep(MS(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("it is {:?} and not {phase}", keeper.inspect(key)));
}

#[tokio::test]
async fn a_backend_that_panics_while_preparing_fails_only_that_start() {
    let house = House::with_bystanders().await;
    let key = house.scripted("a", Script { create: panics(), ..Script::default() });
    let error = house.keeper.within(SECOND).run(&key, SandboxSpec::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    house.runtime.script(&key, Script::default());
    house.keeper.run(&key, SandboxSpec::default()).await.expect("the next start works");
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn a_backend_that_panics_while_pausing_leaves_it_running() {
    let house = House::with_bystanders().await;
    let key = house.scripted("b", Script { pause: panics(), ..Script::default() });
    let before = house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let error = house.keeper.within(SECOND).pause(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(house.keeper.ping(&key).is_ok());
    assert_eq!(house.keeper.start(&key).await.unwrap(), before);
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn after_a_backend_that_panics_in_shutdown_a_second_one_finishes() {
    let house = House::with_bystanders().await;
    let key = house.scripted("c", Script { delete: panics(), ..Script::default() });
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let error = house.keeper.within(SECOND).shutdown(&key, Some(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    house.runtime.script(&key, Script::default());
    house.keeper.shutdown(&key, None).await.expect("the second finishes");
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn an_owner_that_fails_is_replaced_by_one_that_rereads_reality() {
    let house = House::with_bystanders().await;
    let key = house.scripted("d", Script::default());
    let before = house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    for frozen in [false, true] {
        if frozen {
            house.keeper.pause(&key).await.unwrap();
        }
        house.keeper.fail_owner(&key);
        tokio::time::sleep(MS(20)).await;
        settled(&house.keeper, &key, if frozen { "paused" } else { "running" }).await;
        assert_eq!(house.keeper.start(&key).await.unwrap().started.pid, before.started.pid);
        assert!(house.keeper.ping(&key).is_ok());
    }
    // It still hears of the end.
    let wait = tokio::spawn({
        let keeper = house.keeper.clone();
        async move { keeper.wait(&key).await }
    });
    tokio::time::sleep(MS(20)).await;
    house.runtime.exit(&key, ExitReason::Exited(9));
    assert_eq!(wait.await.unwrap().unwrap().status(), 9);
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn an_owner_lost_during_a_start_ends_the_call_at_once_and_leaves_a_whole_thing_or_nothing() {
    let house = House::with_bystanders().await;
    for (id, delay) in [("e1", MS(0)), ("e2", MS(300))] {
        let script = Script { start: Step { delay, instead: None }, ..Script::default() };
        let key = house.scripted(id, script);
        let start = tokio::spawn({
            let keeper = house.keeper.clone();
            async move { keeper.run(&key, SandboxSpec::default()).await }
        });
        tokio::time::sleep(MS(50)).await;
        house.keeper.fail_owner(&key);
        let started = tokio::time::timeout(SECOND, start).await.expect("no hang").unwrap();
        if let Err(error) = &started {
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        }
        tokio::time::sleep(MS(50)).await;
        let exists = house.runtime.existing().contains(&key);
        assert_eq!(exists, house.keeper.inspect(&key).is_ok_and(|status| status.phase == "running"));
        house.runtime.script(&key, Script::default());
        house.keeper.run(&key, SandboxSpec::default()).await.expect("the name is usable");
        house.keeper.shutdown(&key, None).await.unwrap();
    }
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn an_end_that_nobody_owned_is_found_by_the_next_owner() {
    let house = House::with_bystanders().await;
    let key = house.scripted("f", Script::default());
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    // Both on their way at once: the end may reach the owner that fails, nobody, or its replacement.
    for _ in 0..20 {
        house.keeper.fail_owner(&key);
        house.runtime.exit(&key, ExitReason::Exited(4));
        assert_eq!(house.keeper.within(SECOND).wait(&key).await.unwrap().status(), 4);
        settled(&house.keeper, &key, "stopped").await;
        house.keeper.shutdown(&key, None).await.unwrap();
        house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    }
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn a_shutdown_under_way_outlives_its_owner() {
    let house = House::with_bystanders().await;
    let script = Script { delete: Step { delay: MS(100), instead: None }, ..Script::default() };
    let key = house.scripted("g", script);
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let shutdown = tokio::spawn({
        let keeper = house.keeper.clone();
        async move { keeper.shutdown(&key, Some(Duration::ZERO)).await }
    });
    tokio::time::sleep(MS(30)).await;
    house.keeper.fail_owner(&key);
    let heard = tokio::time::timeout(SECOND, shutdown).await.expect("no hang").unwrap();
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::Internal);
    house.keeper.shutdown(&key, None).await.expect("joins the one that goes on");
    assert!(!house.runtime.existing().contains(&key));
    house.must_be_unharmed().await;
}

#[tokio::test]
async fn an_owner_that_fails_too_often_is_not_replaced_and_a_shutdown_ends_it() {
    let house = House::with_bystanders().await;
    let key = house.scripted("h", Script::default());
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let wait = tokio::spawn({
        let keeper = house.keeper.clone();
        async move { keeper.wait(&key).await }
    });
    let quarantined = async {
        while !house.keeper.inspect(&key).unwrap().marks.contains(&"quarantined".to_owned()) {
            house.keeper.fail_owner(&key);
            tokio::time::sleep(MS(2)).await;
        }
    };
    tokio::time::timeout(MS(9_000), quarantined).await.expect("it is given up");
    assert_eq!(wait.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable, "nobody waits in vain");
    let error = house.keeper.pause(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("shut it down"), "{error}");
    house.keeper.shutdown(&key, None).await.expect("always possible");
    house.must_be_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_replaced_and_takes_nobody_along() {
    let house = House::with_bystanders().await;
    for round in 0..10 {
        let key = house.scripted(&format!("i{round}"), Script::default());
        let start = tokio::spawn({
            let keeper = house.keeper.within(SECOND);
            async move { keeper.run(&key, SandboxSpec::default()).await }
        });
        house.keeper.fail_registry();
        // Lost with the registry, or not: an answer in time either way, and the name is usable.
        if let Err(error) = start.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        }
        // A call that was in the hands of the lost registry hears so; the next one finds another.
        let mut tries = 0;
        while let Err(error) = house.keeper.run(&key, SandboxSpec::default()).await {
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            tries += 1;
            assert!(tries < 5, "not healed: {error}");
        }
        let shutdown = tokio::spawn({
            let keeper = house.keeper.within(SECOND);
            async move { keeper.shutdown(&key, None).await }
        });
        tokio::task::yield_now().await;
        house.keeper.fail_registry();
        shutdown.await.unwrap().expect("a Shutdown is taken up by the next registry");
        assert!(!house.runtime.existing().contains(&key));
    }
    house.must_be_unharmed().await;
}

/// Goal: without a journal, too, what is kept outlives a registry. Method: what has run, and whose next start failed, is only
/// defined.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_outlives_a_registry_that_fails() {
    let house = House::with_bystanders().await;
    let key = house.scripted("kept", Script::default());
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    house.keeper.stop(&key, None).await.unwrap();
    house.scripted("kept", Script { create: panics(), ..Script::default() });
    house.keeper.start(&key).await.unwrap_err();
    house.keeper.fail_registry();
    // It heals before it hears of this.
    while let Err(error) = house.keeper.define(&self::key("new"), SandboxSpec::default()).await {
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    }
    house.keeper.shutdown(&self::key("new"), None).await.unwrap();
    assert_eq!(house.keeper.inspect(&key).unwrap().phase, "defined");
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

/// Goal: an end that is on its way to a registry that fails is told all the same. Method: on one thread the registry finds its
/// failure first, and the end behind it.
#[tokio::test]
async fn an_end_on_its_way_to_a_registry_that_fails_is_told() {
    let house = House::with_bystanders().await;
    let key = house.scripted("ends", Script::default());
    house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    tokio::time::timeout(SECOND * 10, async {
        while house.keeper.awake_owners() > 0 {
            tokio::time::sleep(MS(5)).await;
        }
    })
    .await
    .expect("its owner rests");
    house.keeper.fail_registry();
    house.runtime.exit(&key, ExitReason::Exited(3));
    let told = tokio::time::timeout(SECOND * 10, house.keeper.wait(&key)).await;
    assert_eq!(told.expect("somebody is told").unwrap().reason, ExitReason::Exited(3));
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

/// A sandbox at rest has no actor, hears of its end all the same, and is owned again by the next call.
#[tokio::test(flavor = "multi_thread")]
async fn owners_at_rest_are_dismissed_and_come_back_when_needed() {
    let house = House::with_bystanders().await;
    let key = house.scripted("rests", Script::default());
    let before = house.keeper.run(&key, SandboxSpec::default()).await.unwrap();
    let all_dismissed = async {
        while house.keeper.awake_owners() > 0 {
            tokio::time::sleep(MS(20)).await;
        }
    };
    tokio::time::timeout(MS(10_000), all_dismissed).await.expect("nobody has anything to do");
    assert!(house.keeper.ping(&key).is_ok());

    house.keeper.pause(&key).await.unwrap();
    assert!(house.runtime.is_frozen(&key));
    assert_eq!(house.keeper.awake_owners(), 1);
    tokio::time::sleep(MS(500)).await;
    assert_eq!(house.keeper.awake_owners(), 0, "the paused rests, too");
    house.keeper.resume(&key).await.unwrap();
    assert_eq!(house.keeper.start(&key).await.unwrap(), before);

    tokio::time::sleep(MS(500)).await;
    let wait = tokio::spawn({
        let keeper = house.keeper.clone();
        async move { keeper.wait(&key).await }
    });
    tokio::time::sleep(MS(20)).await;
    assert_eq!(house.keeper.awake_owners(), 0, "a wait wakes nobody");
    house.runtime.exit(&key, ExitReason::Exited(6));
    assert_eq!(wait.await.unwrap().unwrap().status(), 6);
    tokio::time::sleep(MS(500)).await;
    house.keeper.shutdown(&key, None).await.unwrap();
    house.must_be_unharmed().await;
}

/// Calls and ends that come in the very moment of a dismissal are not lost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_in_the_moment_of_a_dismissal() {
    let house = House::with_bystanders().await;
    let mut rounds = tokio::task::JoinSet::new();
    for number in 0..200_u64 {
        let key = house.scripted(&format!("moment-{number}"), Script::default());
        let (keeper, runtime) = (house.keeper.clone(), Arc::clone(&house.runtime));
        rounds.spawn(async move {
            keeper.run(&key, SandboxSpec::default()).await.unwrap();
            // The registry looks at resting actors about a tenth of a second after they came to rest.
            tokio::time::sleep(Duration::from_micros(90_000 + number * 200)).await;
            if number % 2 == 0 {
                keeper.within(SECOND).pause(&key).await.expect("a call in that moment");
                keeper.within(SECOND).resume(&key).await.expect("and the next");
            }
            runtime.exit(&key, ExitReason::Exited(3));
            assert_eq!(keeper.within(SECOND).wait(&key).await.expect("an end in that moment").status(), 3);
            keeper.within(SECOND).shutdown(&key, None).await.unwrap();
        });
    }
    while let Some(round) = rounds.join_next().await {
        round.unwrap();
    }
    house.must_be_unharmed().await;
}
