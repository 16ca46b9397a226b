//! Zygotes of another version than the program that finds them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::protocol::VERSION;
use super::rig::{Scratch, children_of, until};
use super::{LinuxConfig, LinuxRuntime};
use crate::id::SandboxKey;
use crate::model::{Exit, ExitReason, Life};
use crate::runtime::{Instance, Observer, Reality, Runtime};
use crate::spec::SandboxSpec;

#[derive(Default)]
struct Ears(parking_lot::Mutex<Vec<(Life, Exit)>>);

impl Observer for Ears {
    fn exited(&self, life: Life, exit: Exit, _: bool) {
        self.0.lock().push((life, exit));
    }
}

fn instance(ears: &Arc<Ears>, life: u64) -> Arc<Instance> {
    let key = SandboxKey::new("test", &format!("box-{life}")).unwrap();
    let observer: Arc<dyn Observer> = Arc::clone(ears) as _;
    Instance::new(key, Life(life), Arc::new(SandboxSpec::default()), observer)
}

/// Goal: sandboxes outlive an upgrade: a zygote of another version is asked for nothing but what every version speaks, keeps its
/// children, lets them go as they end, and ends with the last. Method: a host that says it is of another version.
#[tokio::test(flavor = "multi_thread")]
async fn a_zygote_of_another_version_keeps_its_children_and_makes_no_others() {
    let scratch = Scratch::new();
    let config = LinuxConfig {
        state_dir: Some(scratch.0.clone()),
        zygotes: 2,
        ready_networks: 0,
        ..LinuxConfig::default()
    };
    let ears = Arc::new(Ears::default());
    let first = LinuxRuntime::speaking(config.clone(), VERSION).unwrap();
    let old = first.usage().zygotes;
    let mut pids = Vec::new();
    for life in 1..=2 {
        let instance = instance(&ears, life);
        first.create(&instance).await.unwrap();
        pids.push(first.start(&instance).await.unwrap().pid);
    }
    first.leave().await;
    let second = LinuxRuntime::speaking(config, VERSION + 1).unwrap();
    // The one without children has ended at once.
    let known = || old.iter().filter(|pid| second.usage().zygotes.contains(pid)).count();
    assert!(known() > 0);
    let olds_children = || old.iter().map(|pid| children_of(*pid)).collect::<String>();
    let before = olds_children();
    let found: Vec<_> = (1..=2).map(|life| instance(&ears, life)).collect();
    for (instance, pid) in found.iter().zip(&pids) {
        match second.reattach(instance).await.unwrap() {
            Reality::Running { started, frozen: false } => assert_eq!(started.pid, *pid),
            other => panic!("{other:?}"),
        }
    }
    let new: Vec<_> = (3..=8).map(|life| instance(&ears, life)).collect();
    for instance in &new {
        second.create(instance).await.unwrap();
        second.start(instance).await.unwrap();
    }
    assert_eq!(olds_children(), before, "the old ones are not asked");
    let number = rustix::process::Pid::from_raw(pids[0] as i32).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    until("its end is told", || !ears.0.lock().is_empty()).await;
    assert_eq!(ears.0.lock()[0].1.reason, ExitReason::Signalled(9));
    for instance in found.iter().chain(&new) {
        tokio::time::timeout(Duration::from_secs(10), second.delete(instance)).await.unwrap().unwrap();
    }
    until("the old ones end with their last child", || known() == 0).await;
    let gone = |pid: &u32| fs::metadata(format!("/proc/{pid}")).is_err();
    until("they are reaped", || old.iter().all(gone)).await;
    assert_eq!(fs::read_dir(scratch.0.join("zygotes")).unwrap().count(), 2, "sockets of the new ones");
    second.close().await;
}
