//! What every backend must uphold, as tests that run against any of them.
//!
//! Each function drives a backend directly, with no keeper in between, and panics with what it found. `spec` is something
//! the backend can run until it is ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;

use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason, Life};
use crate::spec::SandboxSpec;

use super::{Instance, Observer, Reality, Runtime, Urgency};

/// Nothing a backend does on a quiet machine takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes down every end that is reported to it.
#[derive(Default)]
pub struct Recorder {
    exits: Mutex<Vec<(Life, Exit, bool)>>,
}

impl Recorder {
    /// What was reported, in order: life, end, and whether everything of it had ended.
    pub fn exits(&self) -> Vec<(Life, Exit, bool)> {
        self.exits.lock().clone()
    }

    /// Waits until a number of ends have been reported.
    pub async fn wait_for(&self, count: usize) -> Vec<(Life, Exit, bool)> {
        for _ in 0..4_000 {
            let exits = self.exits();
            if exits.len() >= count {
                return exits;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("only {:?} of {count} ends were reported", self.exits());
    }
}

impl Observer for Recorder {
    fn exited(&self, life: Life, exit: Exit, all_ended: bool) {
        self.exits.lock().push((life, exit, all_ended));
    }
}

/// A life with a name and a number of its own, and who hears of its end.
pub fn instance(spec: &SandboxSpec) -> (Arc<Instance>, Arc<Recorder>) {
    static NUMBER: AtomicU64 = AtomicU64::new(1_000_000);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let key = SandboxKey::new("contract", &format!("c{number}")).expect("a valid name");
    let recorder = Arc::new(Recorder::default());
    let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
    (Instance::new(key, Life(number), Arc::new(spec.clone()), observer), recorder)
}

/// Runs every check of this module, one after another.
pub async fn upholds_everything(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    within(each_operation_may_be_repeated(runtime, spec)).await;
    within(an_end_is_reported_once_and_before_stop_returns(runtime, spec)).await;
    within(what_never_started_has_no_end(runtime, spec)).await;
    within(delete_works_at_every_stage(runtime, spec)).await;
    within(a_dropped_call_leaves_nothing_after_delete(runtime, spec)).await;
    within(a_freeze_is_confirmed(runtime, spec)).await;
    within(a_frozen_instance_can_be_ended(runtime, spec)).await;
}

async fn within(check: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, check).await.expect("the check ends in time");
}

/// Doing again what holds already succeeds.
pub async fn each_operation_may_be_repeated(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    let (instance, recorder) = instance(spec);
    for _ in 0..2 {
        runtime.create(&instance).await.expect("create");
    }
    assert_eq!(runtime.reattach(&instance).await.expect("reattach"), Reality::Created);
    let first = runtime.start(&instance).await.expect("start");
    let second = runtime.start(&instance).await.expect("start again");
    assert_eq!(first.pid, second.pid, "a second start starts nothing");
    assert!(first.pid > 1, "a real pid");
    for _ in 0..2 {
        runtime.stop(&instance, Urgency::Now).await.expect("stop");
    }
    assert!(matches!(runtime.reattach(&instance).await.expect("reattach"), Reality::Ended(_)));
    for _ in 0..2 {
        runtime.delete(&instance).await.expect("delete");
    }
    assert_eq!(runtime.reattach(&instance).await.expect("reattach"), Reality::Absent);
    assert_eq!(recorder.exits().len(), 1);
}

/// The end is known when a forced stop returns, it names the signal, and it is reported once.
pub async fn an_end_is_reported_once_and_before_stop_returns(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    let (instance, recorder) = instance(spec);
    runtime.create(&instance).await.expect("create");
    runtime.start(&instance).await.expect("start");
    assert_eq!(recorder.exits(), []);
    runtime.stop(&instance, Urgency::Now).await.expect("stop");
    let exits = recorder.exits();
    assert_eq!(exits.len(), 1, "{exits:?}");
    assert_eq!(exits[0].0, instance.life);
    assert_eq!(exits[0].1.reason, ExitReason::Signalled(9));
    assert!(!runtime.probe(&instance).await.is_ok_and(|report| report.alive), "what was ended is not alive");
    runtime.delete(&instance).await.expect("delete");
    assert_eq!(recorder.exits().len(), 1, "a delete after the end reports nothing new");
}

/// What was only prepared ends without an end.
pub async fn what_never_started_has_no_end(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    let (instance, recorder) = instance(spec);
    runtime.create(&instance).await.expect("create");
    runtime.stop(&instance, Urgency::Ask).await.expect("nothing to ask");
    runtime.stop(&instance, Urgency::Now).await.expect("nothing to end");
    runtime.delete(&instance).await.expect("delete");
    assert_eq!(recorder.exits(), []);
}

/// A delete succeeds for what never was, what was prepared, and what runs.
pub async fn delete_works_at_every_stage(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    for stage in 0..3 {
        let (instance, recorder) = instance(spec);
        if stage > 0 {
            runtime.create(&instance).await.expect("create");
        }
        if stage > 1 {
            runtime.start(&instance).await.expect("start");
        }
        runtime.delete(&instance).await.expect("delete");
        assert_eq!(runtime.reattach(&instance).await.expect("reattach"), Reality::Absent, "stage {stage}");
        assert_eq!(recorder.exits().len(), usize::from(stage > 1), "stage {stage}");
    }
}

/// Whatever a dropped create or start has come to, a delete ends it.
pub async fn a_dropped_call_leaves_nothing_after_delete(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    for micros in [0, 50, 200, 500, 1_000, 3_000] {
        let (instance, _recorder) = instance(spec);
        let both = async {
            runtime.create(&instance).await?;
            runtime.start(&instance).await
        };
        if micros == 0 {
            // Polled once, so that it has begun, and dropped.
            let _ = both.now_or_never();
        } else {
            let _ = tokio::time::timeout(Duration::from_micros(micros), both).await;
        }
        runtime.delete(&instance).await.expect("delete");
        assert_eq!(
            runtime.reattach(&instance).await.expect("reattach"),
            Reality::Absent,
            "after {micros} us"
        );
    }
}

/// What is said to be frozen is frozen by the source of truth, and thaws again.
pub async fn a_freeze_is_confirmed(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    if !runtime.capabilities().pause {
        return;
    }
    let (instance, recorder) = instance(spec);
    runtime.create(&instance).await.expect("create");
    runtime.start(&instance).await.expect("start");
    for frozen in [true, true, false, false, true, false] {
        if frozen {
            runtime.pause(&instance).await.expect("pause");
        } else {
            runtime.resume(&instance).await.expect("resume");
        }
        let report = runtime.probe(&instance).await.expect("probe");
        assert_eq!((report.alive, report.frozen), (true, frozen));
        let reality = runtime.reattach(&instance).await.expect("reattach");
        assert!(matches!(reality, Reality::Running { frozen: at, .. } if at == frozen), "{reality:?}");
    }
    runtime.delete(&instance).await.expect("delete");
    assert_eq!(recorder.exits().len(), 1);
}

/// A frozen instance ends like any other.
pub async fn a_frozen_instance_can_be_ended(runtime: &Arc<dyn Runtime>, spec: &SandboxSpec) {
    if !runtime.capabilities().pause {
        return;
    }
    let (instance, recorder) = instance(spec);
    runtime.create(&instance).await.expect("create");
    runtime.start(&instance).await.expect("start");
    runtime.pause(&instance).await.expect("pause");
    runtime.stop(&instance, Urgency::Now).await.expect("stop");
    assert_eq!(recorder.exits().len(), 1);
    runtime.delete(&instance).await.expect("delete");
}
