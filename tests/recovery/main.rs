//! What the next keeper on a journal makes of what the one before has left, on scripted sandboxes that outlive both.

mod survivors;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandkeeper::journal::Journal;
use sandkeeper::journal::testing::{Disk, open_on};
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::memory::{Instead, MemoryRuntime, Script, Step};
use sandkeeper::wire::SandboxStatus;
use sandkeeper::{
    Controller, Error, ErrorKind, Filter, Keeper, KeeperBuilder, SandboxKey, SandboxSpec, WatchItem,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn key(id: &str) -> SandboxKey {
    SandboxKey::new("default", id).unwrap()
}

fn spec(label: &str) -> SandboxSpec {
    let mut spec = SandboxSpec::default();
    spec.labels.insert("for".to_owned(), label.to_owned());
    spec.options =
        prost_types::Any { type_url: "example.test/Unknown.v9".to_owned(), value: vec![0, 255, 7] };
    spec
}

fn hang() -> Step {
    Step { delay: Duration::ZERO, instead: Some(Instead::Hang) }
}

/// A keeper on the journal in a directory, which the one before may be about to let go of.
async fn open(dir: &Path, runtime: &Arc<MemoryRuntime>) -> Keeper {
    open_with(|| Journal::open(dir), runtime).await
}

async fn open_with(journal: impl Fn() -> Result<Journal, Error>, runtime: &Arc<MemoryRuntime>) -> Keeper {
    builder_with(journal, runtime).await.build().unwrap()
}

async fn builder_with(
    journal: impl Fn() -> Result<Journal, Error>,
    runtime: &Arc<MemoryRuntime>,
) -> KeeperBuilder {
    Keeper::builder().runtime("memory", Arc::clone(runtime) as _).journal(open_journal(journal).await)
}

async fn open_journal(journal: impl Fn() -> Result<Journal, Error>) -> Journal {
    let mut tries = 0;
    loop {
        match journal() {
            Ok(journal) => return journal,
            Err(error) if tries == 10 => panic!("{error}"),
            Err(_) => tries += 1,
        }
        // The tasks that let go of it may be on this thread.
        tokio::time::sleep(MS(5)).await;
    }
}

async fn settled(keeper: &Keeper) {
    until("nothing is recovering", || keeper.recovering() == 0).await;
}

#[track_caller]
fn until<'a>(what: &'a str, mut holds: impl FnMut() -> bool + 'a) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        for _ in 0..4_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(MS(5)).await;
        }
        panic!("never: {what}, at {place}");
    }
}

fn phase(keeper: &Keeper, key: &SandboxKey) -> String {
    keeper.inspect(key).map_or_else(|error| error.kind().to_string(), |status| status.phase)
}

fn without_marks(mut status: SandboxStatus) -> SandboxStatus {
    status.marks.clear();
    status
}

/// Goal: whatever rests when its keeper dies is known to the next one as it was. Method: one sandbox in each resting phase;
/// everything published of it is compared.
#[tokio::test(flavor = "multi_thread")]
async fn what_rests_is_known_again_as_it_was() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let [defined, created, running, paused, stopped] =
        ["defined", "created", "running", "paused", "stopped"].map(|id| (key(id), spec(id)));
    keeper.define(&defined.0, defined.1).await.unwrap();
    keeper.prepare(&created.0, created.1).await.unwrap();
    for (key, spec) in [running.clone(), paused.clone(), stopped.clone()] {
        keeper.run(&key, spec).await.unwrap();
    }
    keeper.pause(&paused.0).await.unwrap();
    keeper.stop(&stopped.0, None).await.unwrap();
    let before = keeper.list(&Filter::default());
    let epoch = keeper.epoch();
    drop(keeper);

    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.len(), 5, "all are known at once");
    assert_eq!(keeper.epoch(), epoch + 1);
    settled(&keeper).await;
    let after: Vec<_> = keeper.list(&Filter::default()).into_iter().map(without_marks).collect();
    let before: Vec<_> = before.into_iter().map(without_marks).collect();
    assert_eq!(after.len(), before.len());
    for (after, before) in after.iter().zip(&before) {
        assert_eq!(after, before);
    }
    assert_eq!(
        runtime.options(&running.0).unwrap().value,
        [0, 255, 7],
        "C22: unknown options come back byte for byte"
    );

    // All of them go on.
    keeper.resume(&paused.0).await.unwrap();
    assert!(!runtime.is_frozen(&paused.0));
    let used = before.iter().map(|status| status.life).max().unwrap();
    assert_eq!(
        keeper.start(&created.0).await.unwrap().life.0,
        before[0].life,
        "the life that was prepared begins"
    );
    for key in [defined.0, stopped.0] {
        assert!(keeper.start(&key).await.unwrap().life.0 > used, "a number is never used again");
    }
    let wait = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.wait(&running.0).await }
    });
    runtime.exit(&running.0, ExitReason::Exited(3));
    assert_eq!(wait.await.unwrap().unwrap().reason, ExitReason::Exited(3));
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
    drop(keeper);
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.len(), 0, "what is gone stays gone");
}

/// Goal: the next keeper, too, lets go of the records that stopped first, and of no more than it must, though its registry may be
/// told of them twice. Method: some stop in another order than that of their names; the next keeper may keep fewer; some rounds,
/// since it is a matter of chance when the registry looks.
#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_stopped_records_go_first_after_a_restart() {
    for round in 0..10 {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
        let keeper = open(dir.path(), &runtime).await;
        for id in ["c", "d", "a", "b"] {
            keeper.run(&key(id), spec("x")).await.unwrap();
            keeper.stop(&key(id), None).await.unwrap();
        }
        drop(keeper);
        let builder = builder_with(|| Journal::open(dir.path()), &runtime).await;
        let keeper = builder.stopped_records(2).build().unwrap();
        settled(&keeper).await;
        until("no more are kept", || keeper.len() <= 2).await;
        let kept: Vec<String> = keeper.list(&Filter::default()).into_iter().map(|status| status.id).collect();
        assert_eq!(kept, ["a", "b"], "round {round}");
    }
}

/// Goal: an end that nobody saw, and that has no time, is as new as the moment in which it was known. Method: of two records one is
/// let go of: the one that stopped long before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_only_now_found_lost_is_not_the_oldest() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&key("lost"), spec("x")).await.unwrap();
    keeper.run(&key("old"), spec("x")).await.unwrap();
    keeper.stop(&key("old"), None).await.unwrap();
    drop(keeper);
    runtime.forget(&key("lost"));
    let builder = builder_with(|| Journal::open(dir.path()), &runtime).await;
    let keeper = builder.stopped_records(1).build().unwrap();
    settled(&keeper).await;
    until("one is let go of", || keeper.len() == 1).await;
    assert_eq!(phase(&keeper, &key("lost")), "stopped");
}

/// C05: those that ended meanwhile are stopped, with their status; those of which nothing is left are lost, and never 0.
#[tokio::test(flavor = "multi_thread")]
async fn what_ended_meanwhile_is_told() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let (exits, vanishes) = (key("exits"), key("vanishes"));
    for key in [exits, vanishes] {
        keeper.run(&key, spec("a")).await.unwrap();
    }
    drop(keeper);
    runtime.exit(&exits, ExitReason::Exited(7));
    runtime.forget(&vanishes);
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.wait(&exits).await.unwrap().status(), 7);
    let lost = keeper.wait(&vanishes).await.unwrap();
    assert_eq!((lost.reason, lost.status(), lost.at_unix_nanos), (ExitReason::Lost, 255, 0));
    settled(&keeper).await;
    assert_eq!(phase(&keeper, &exits), "stopped");
    assert_eq!(phase(&keeper, &vanishes), "stopped");
    assert!(keeper.ping(&exits).is_err());
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
}

fn panics() -> Step {
    Step { delay: Duration::ZERO, instead: Some(Instead::Panic) }
}

/// Goal: a definition that is durable outlives a later Define of the same, whatever becomes of that one. Method: a disk that
/// refuses between two of them, and the next keeper on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_durable_definition_outlives_a_define_that_the_disk_refuses() {
    let (dir, runtime, disk) = (tempfile::tempdir().unwrap(), MemoryRuntime::new(), Disk::default());
    let keeper = open_with(|| open_on(dir.path(), &disk), &runtime).await;
    keeper.define(&key("a"), spec("a")).await.unwrap();
    disk.refuse(true);
    keeper.define(&key("a"), spec("a")).await.expect("it is durable, and needs no disk");
    keeper.define(&key("b"), spec("b")).await.expect_err("it is nowhere");
    until("what is nowhere is forgotten", || phase(&keeper, &key("b")) == "NotFound").await;
    // It is not forgotten for what was refused of it, either: a start is, and leaves what there was.
    keeper.start(&key("a")).await.unwrap_err();
    until("the start is undone", || phase(&keeper, &key("a")) == "defined").await;
    disk.refuse(false);
    until("it is written again", || keeper.journal_trouble().is_none()).await;
    drop(keeper);
    let keeper = open_with(|| open_on(dir.path(), &disk), &runtime).await;
    assert_eq!(phase(&keeper, &key("a")), "defined", "it was acknowledged, and nobody removed it");
    assert_eq!(phase(&keeper, &key("b")), "NotFound");
}

/// Goal: a wait for a life that never ran ends at once, after a restart as before. Method: a start that fails, and a keeper
/// before and after.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_what_never_ran_ends_after_a_restart_too() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    keeper.define(&key("a"), spec("a")).await.unwrap();
    runtime.script(&key("a"), Script { create: panics(), ..Script::default() });
    keeper.start(&key("a")).await.unwrap_err();
    let mut keeper = Some(keeper);
    for _ in 0..2 {
        let keeper = match keeper.take() {
            Some(first) => first,
            None => open(dir.path(), &runtime).await,
        };
        assert_eq!(phase(&keeper, &key("a")), "defined");
        let exit = tokio::time::timeout(MS(5_000), keeper.wait(&key("a"))).await;
        assert_eq!(exit.expect("at once").unwrap().reason, ExitReason::NeverRan);
    }
}

/// Goal: what has run does not vanish because a later start of it fails; what never has does. Method: a sandbox begun by `run`,
/// with a first start that fails, and with a second.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_run_outlives_a_later_start_that_fails() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let fails = || Script { create: panics(), ..Script::default() };
    runtime.script(&key("a"), fails());
    keeper.run(&key("a"), spec("a")).await.unwrap_err();
    assert_eq!(phase(&keeper, &key("a")), "NotFound", "it was for this start alone");
    runtime.script(&key("a"), Script::default());
    keeper.run(&key("a"), spec("a")).await.unwrap();
    keeper.stop(&key("a"), None).await.unwrap();
    runtime.script(&key("a"), fails());
    keeper.start(&key("a")).await.unwrap_err();
    assert_eq!(phase(&keeper, &key("a")), "defined");
    drop(keeper);
    assert_eq!(phase(&open(dir.path(), &runtime).await, &key("a")), "defined");
}

/// Goal: a registry that fails at once keeps nobody in recovery. Method: on one thread, so that all it is told lies behind its
/// failure.
#[tokio::test]
async fn a_registry_that_fails_with_a_recovery_in_its_mailbox_is_made_up_for() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let keys: Vec<_> = (0..300).map(|number| key(&format!("s{number}"))).collect();
    for key in &keys {
        keeper.run(key, spec("a")).await.unwrap();
    }
    keeper.leave().await;
    drop(keeper);
    let journal = open_journal(|| Journal::open(dir.path())).await;
    let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).journal(journal);
    let keeper = keeper.failing_registry().build().unwrap();
    assert_eq!(keeper.recovering(), keys.len() + 1);
    settled(&keeper).await;
    for key in &keys {
        assert_eq!(phase(&keeper, key), "running");
    }
}

/// Goal: what was under way when its keeper died comes to its end by itself. Method: each operation hangs; the keeper dies in
/// the middle; the script is healthy for the next.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_comes_to_its_end() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let [start, kept, pause, stop, shutdown] = ["start", "kept", "pause", "stop", "shutdown"].map(key);
    for key in [pause, stop, shutdown] {
        keeper.run(&key, spec("a")).await.unwrap();
    }
    keeper.define(&kept, spec("kept")).await.unwrap();
    for key in [start, kept] {
        runtime.script(&key, Script { start: hang(), ..Script::default() });
    }
    runtime.script(&pause, Script { pause: hang(), ..Script::default() });
    runtime.script(&stop, Script { ask: hang(), kill: hang(), ..Script::default() });
    runtime.script(&shutdown, Script { ask: hang(), kill: hang(), delete: hang(), ..Script::default() });
    let calls = [
        tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.run(&start, spec("start")).await.map(drop) }
        }),
        tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.start(&kept).await.map(drop) }
        }),
        tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.pause(&pause).await }
        }),
        tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.stop(&stop, Some(Duration::from_secs(60))).await }
        }),
        tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.shutdown(&shutdown, Some(Duration::from_secs(60))).await }
        }),
    ];
    for (key, wanted) in [
        (start, "starting"),
        (kept, "starting"),
        (pause, "pausing"),
        (stop, "stopping"),
        (shutdown, "stopping"),
    ] {
        until(wanted, || phase(&keeper, &key) == wanted).await;
    }
    keeper.leave().await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    for call in calls {
        let _ = call.await;
    }
    drop(keeper);

    for key in [start, kept, pause, stop, shutdown] {
        runtime.script(&key, Script::default());
    }
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    for (key, wanted) in [
        (start, "NotFound"),
        (kept, "defined"),
        (pause, "running"),
        (stop, "stopped"),
        (shutdown, "NotFound"),
    ] {
        until(wanted, || phase(&keeper, &key) == wanted).await;
    }
    assert!(!runtime.is_frozen(&pause), "a freeze that nobody saw through is withdrawn");
    assert_eq!(keeper.wait(&stop).await.unwrap().reason, ExitReason::Signalled(15));
    assert_eq!(keeper.close(None).await.len(), 0);
    assert_eq!(runtime.existing(), []);
}

/// C18: sandboxes whose backend does not answer hold up nobody else, and are shown as what they are.
#[tokio::test(flavor = "multi_thread")]
async fn mute_sandboxes_hold_up_nobody_else() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    let mute: Vec<_> = (0..20).map(|at| key(&format!("a-mute-{at}"))).collect();
    let healthy: Vec<_> = (0..200).map(|at| key(&format!("healthy-{at}"))).collect();
    let gone: Vec<_> = (0..200).map(|at| key(&format!("gone-{at}"))).collect();
    for key in mute.iter().chain(&healthy).chain(&gone) {
        keeper.run(key, spec("a")).await.unwrap();
    }
    drop(keeper);
    for key in &mute {
        runtime.script(key, Script { reattach: hang(), ..Script::default() });
    }
    gone.iter().for_each(|key| runtime.forget(key));
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.list(&Filter::default()).len(), 420, "none is missing, from the first moment on");
    until("all others are found", || keeper.recovering() == mute.len()).await;
    for key in &mute {
        let status = keeper.inspect(key).unwrap();
        assert_eq!(
            (status.phase.as_str(), status.marks.as_slice()),
            ("running", &["recovering".to_owned()][..])
        );
    }
    assert!(healthy.iter().all(|key| keeper.ping(key).is_ok()));
    assert!(gone.iter().all(|key| phase(&keeper, key) == "stopped"));
    // A Shutdown is heard at once, also by a sandbox of which nothing is known yet.
    keeper.shutdown(&mute[0], Some(Duration::ZERO)).await.unwrap();
    assert_eq!(phase(&keeper, &mute[0]), "NotFound");
}

/// C19: on a full disk nothing new is started and no definition is accepted; what runs can be ended, ends are told, and when
/// there is room again, all of it is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_starts_and_nothing_else() {
    let (dir, runtime, disk) = (tempfile::tempdir().unwrap(), MemoryRuntime::new(), Disk::default());
    let keeper = open_with(|| open_on(dir.path(), &disk), &runtime).await;
    let [stays, exits, stopped, shut, new] = ["stays", "exits", "stopped", "shut", "new"].map(key);
    for key in [stays, exits, stopped, shut] {
        keeper.run(&key, spec("a")).await.unwrap();
    }
    disk.refuse(true);
    let refused = [keeper.run(&new, spec("new")).await.err(), keeper.define(&new, spec("new")).await.err()];
    for error in refused {
        let error = error.expect("nothing begins that is not written");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        assert!(error.to_string().contains("journal.redb"), "{error}");
    }
    assert!(keeper.journal_trouble().is_some());
    until("nothing is left of what was refused", || phase(&keeper, &new) == "NotFound").await;
    assert!(!runtime.existing().contains(&new));
    let wait = keeper.wait(&exits);
    runtime.exit(&exits, ExitReason::Exited(9));
    assert_eq!(wait.await.unwrap().status(), 9, "an end is told all the same");
    keeper.stop(&stopped, None).await.unwrap();
    keeper.shutdown(&shut, None).await.unwrap();
    assert_eq!(phase(&keeper, &shut), "NotFound");
    keeper.ping(&stays).unwrap();

    disk.refuse(false);
    until("the journal is well again", || keeper.journal_trouble().is_none()).await;
    keeper.run(&new, spec("new")).await.unwrap();
    drop(keeper);
    let keeper = open(dir.path(), &runtime).await;
    settled(&keeper).await;
    let phases = [stays, exits, stopped, shut, new].map(|key| phase(&keeper, &key));
    assert_eq!(phases, ["running", "stopped", "stopped", "NotFound", "running"]);
    assert_eq!(keeper.wait(&exits).await.unwrap().status(), 9);
    assert_eq!(keeper.close(None).await.len(), 0);
}

/// What holds already is acknowledged when what led to it is durable, and not before: whoever asks for a pause a second time, while
/// the first is being written, must not find it undone after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_already_is_acknowledged_once_it_is_durable() {
    let (dir, runtime, disk) = (tempfile::tempdir().unwrap(), MemoryRuntime::new(), Disk::default());
    let keeper = open_with(|| open_on(dir.path(), &disk), &runtime).await;
    let key = key("paused");
    keeper.run(&key, spec("a")).await.unwrap();
    disk.hold(true);
    let first = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.within(Duration::from_secs(60)).pause(&key).await }
    });
    until("it is paused", || phase(&keeper, &key) == "paused").await;
    let again = keeper.within(Duration::from_millis(300)).pause(&key).await;
    disk.hold(false);
    assert_eq!(again.expect_err("nothing is written").kind(), ErrorKind::DeadlineExceeded);
    first.await.unwrap().unwrap();
    keeper.pause(&key).await.unwrap();
    assert_eq!(keeper.close(None).await.len(), 0);
}

/// Records of a runtime that is not there now are kept for when it is.
#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_their_runtime() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let other = MemoryRuntime::new();
    let both = || {
        let journal = Journal::open(dir.path()).unwrap();
        let builder = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _);
        builder.runtime("other", Arc::clone(&other) as _).journal(journal).build().unwrap()
    };
    let keeper = both();
    let key = key("a");
    keeper.run(&key, SandboxSpec { runtime: "other".to_owned(), ..spec("a") }).await.unwrap();
    drop(keeper);
    let keeper = open(dir.path(), &runtime).await;
    assert_eq!(keeper.unread_records(), (0, vec![key]));
    drop(keeper);
    until("its lock is free", || Journal::open(dir.path()).is_ok()).await;
    let keeper = both();
    settled(&keeper).await;
    keeper.ping(&key).unwrap();
}

/// A watcher of the keeper before is told that it has missed something, and of everything there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_within_an_epoch_and_takes_stock_in_another() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let keeper = open(dir.path(), &runtime).await;
    keeper.run(&key("a"), spec("a")).await.unwrap();
    let epoch = keeper.epoch();
    let mut watch = keeper.watch_from(epoch, 1);
    for sequence in 1..4 {
        let Some(WatchItem::Event(event)) = watch.next().await else { panic!("event {sequence} is kept") };
        assert_eq!(event.sequence, sequence);
    }
    drop((keeper, watch));
    let keeper = open(dir.path(), &runtime).await;
    let Some(WatchItem::Snapshot { epoch: now, next_sequence, sandboxes }) =
        keeper.watch_from(epoch, 4).next().await
    else {
        panic!("those numbers are another keeper's");
    };
    assert_eq!((now, sandboxes.len()), (epoch + 1, 1));
    let mut watch = keeper.watch_from(now, next_sequence);
    settled(&keeper).await;
    keeper.shutdown(&key("a"), None).await.unwrap();
    let mut phases = Vec::new();
    while phases.last() != Some(&"gone") {
        let Some(WatchItem::Event(event)) = watch.next().await else {
            panic!("it goes on where the snapshot ended")
        };
        phases.push(event.phase.name());
    }
    assert_eq!(phases, ["stopping", "deleting", "gone"]);
}

/// A journal serves one keeper, and a keeper says so.
#[tokio::test]
async fn a_journal_serves_one_keeper() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), MemoryRuntime::new());
    let journal = Journal::open(dir.path()).unwrap();
    let build = || {
        let builder = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _);
        builder.journal(journal.clone()).build()
    };
    let _keeper = build().unwrap();
    assert_eq!(build().err().unwrap().kind(), ErrorKind::FailedPrecondition);
}
