//! Groups: what is claimed is fresh, what is not ours is left alone, and at the end nothing is left.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandkeeper::ErrorKind;
use sandkeeper::runtime::linux::{LinuxConfig, LinuxRuntime};
use sandkeeper::runtime::{Instance, Runtime};
use sandkeeper::spec::{Limits, Network};

use crate::support::*;

/// A process of somebody else's in a group.
fn foreigner(group: &std::path::Path) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
    child
}

/// Field case C20 (a) and (c). Goal: an empty group is no obstacle. Method: make one, and one with a frozen group below it.
#[test]
fn an_empty_leftover_group_is_replaced() {
    block_on(async {
        let bed = Bed::new();
        for frozen_child in [false, true] {
            let instance = bed.instance("x", sleeper());
            let group = bed.group(&instance);
            std::fs::create_dir(&group).unwrap();
            if frozen_child {
                std::fs::create_dir_all(group.join("a/b")).unwrap();
                std::fs::write(group.join("a/cgroup.freeze"), "1").unwrap();
                std::fs::write(group.join("cgroup.freeze"), "1").unwrap();
            }
            bed.run(&instance).await;
            assert!(!group.join("a").exists());
            let report = bed.runtime.probe(&instance).await.unwrap();
            assert!(report.alive && !report.frozen);
            bed.delete(&instance).await;
        }
        bed.close().await;
    });
}

/// Field case C20 (b). Goal: others' processes are neither killed nor joined. Method: one sits in the group of that name.
#[test]
fn a_group_with_foreign_processes_is_refused_and_left_alone() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("x", sleeper());
        let group = bed.group(&instance);
        std::fs::create_dir(&group).unwrap();
        let mut child = foreigner(&group);
        let error = bed.runtime.create(&instance).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        for part in ["default/x", &group.display().to_string(), &format!("pid {} (sleep)", child.id())] {
            assert!(error.to_string().contains(part), "{error} does not name {part}");
        }
        bed.runtime.delete(&instance).await.unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it lives");
        child.kill().unwrap();
        child.wait().unwrap();
        bed.run(&instance).await;
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: what an earlier life of ours left behind is ended. Method: start a life of an ID whose last one still runs.
#[test]
fn what_an_earlier_life_left_running_is_ended_by_the_next() {
    block_on(async {
        let bed = Bed::new();
        let first = bed.instance("x", sleeper());
        let second = bed.instance("x", sleeper());
        bed.run(&first).await;
        bed.run(&second).await;
        assert_eq!(bed.exit(&first).await.status(), 137);
        // The earlier life's deletion comes late, and must not touch the later one.
        bed.runtime.delete(&first).await.unwrap();
        assert!(bed.runtime.probe(&second).await.unwrap().alive);
        bed.delete(&second).await;
        bed.close().await;
    });
}

/// Goal: one ID can be used over and over without a pause. Method: rounds of run and delete, which are timed besides.
#[test]
fn an_id_is_free_the_moment_its_delete_returns() {
    block_on(async {
        let bed = Bed::new();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..size(100, 1_000) {
            let instance = bed.instance("again", sleeper());
            let start = Instant::now();
            let pid = bed.run(&instance).await.pid;
            starts.push(start.elapsed());
            let start = Instant::now();
            bed.delete(&instance).await;
            ends.push(start.elapsed());
            assert!(!process_exists(pid));
        }
        for (what, times) in [("create and start", &mut starts), ("delete", &mut ends)] {
            times.sort();
            eprintln!("{what}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
        }
        bed.close().await;
    });
}

/// Goal: a file system that does not answer holds up the starts that need it, and nothing else. Method: start more such
/// sandboxes than there are threads for cgroups; pause another one; delete them all before the server goes.
#[test]
fn a_mute_file_system_holds_up_only_the_starts_that_need_it() {
    block_on(async {
        let bed = Bed::new();
        let mut mute = MuteFileSystem::mount(&bed.directory.join("mute"));
        let healthy = bed.instance("healthy", sleeper());
        bed.run(&healthy).await;
        let held: Vec<Arc<Instance>> = (0..12)
            .map(|i| {
                let mut spec = shell("true");
                spec.process.as_mut().unwrap().stdio.stdout = Some(mute.mountpoint.join("out"));
                bed.instance(&format!("held-{i}"), spec)
            })
            .collect();
        let mut starts = tokio::task::JoinSet::new();
        for instance in &held {
            let (runtime, instance) = (Arc::clone(&bed.runtime), Arc::clone(instance));
            starts.spawn(async move {
                runtime.create(&instance).await.unwrap();
                runtime.start(&instance).await.unwrap_err().kind()
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let others = async {
            bed.runtime.pause(&healthy).await.unwrap();
            bed.runtime.resume(&healthy).await.unwrap();
            for instance in &held {
                bed.delete(instance).await;
            }
            bed.delete(&healthy).await;
            while let Some(kind) = starts.join_next().await {
                assert_eq!(kind.unwrap(), ErrorKind::Aborted);
            }
        };
        tokio::time::timeout(Duration::from_secs(5), others).await.expect("not held up");
        mute.end();
        drop(mute);
        bed.close().await;
    });
}

/// Goal: no descriptor, thread or namespace is lost per sandbox. Method: count before and after.
#[test]
fn a_sandbox_costs_one_descriptor_and_gives_it_back() {
    // A process of its own would be needed to count exactly: other tests open files meanwhile.
    if std::env::var_os("SANDKEEPER_ALONE").is_none() {
        let test = std::env::current_exe().unwrap();
        let name = "leftovers::a_sandbox_costs_one_descriptor_and_gives_it_back";
        let status =
            Command::new(test).args([name, "--exact"]).env("SANDKEEPER_ALONE", "1").status().unwrap();
        assert!(status.success());
        return;
    }
    block_on(async {
        let bed = Bed::with(LinuxConfig { ready_networks: 0, ..LinuxConfig::default() });
        let warm = bed.instance("warm", sleeper());
        bed.run(&warm).await;
        bed.delete(&warm).await;
        let before = bed.runtime.usage().descriptors;
        let mut running: Vec<Arc<Instance>> = Vec::new();
        for i in 0..50 {
            let mut spec = sleeper();
            spec.network = if i % 2 == 0 { Network::None } else { Network::New };
            running.push(bed.instance(&format!("one-{i}"), spec));
            bed.run(running.last().unwrap()).await;
        }
        assert_eq!(bed.runtime.usage().descriptors - before, 50);
        for instance in &running {
            bed.delete(instance).await;
        }
        assert_eq!(bed.runtime.usage().descriptors, before);
        bed.close().await;
    });
}

/// Goal: a backend that goes takes its sandboxes along. Method: close it, and drop it, with some running and one paused.
#[test]
fn a_backend_that_goes_leaves_nothing() {
    block_on(async {
        for dropped in [false, true] {
            let bed = Bed::new();
            let mut lives = Vec::new();
            for i in 0..10 {
                let instance = bed.instance(&format!("left-{i}"), sleeper());
                lives.push((bed.run(&instance).await.pid, instance));
            }
            bed.runtime.pause(&lives[0].1).await.unwrap();
            let zygotes = bed.runtime.usage().zygotes;
            let recorder = Arc::clone(&bed.recorder);
            if dropped {
                let root = bed.runtime.cgroup_root().to_owned();
                let Bed { runtime, directory, .. } = bed;
                drop(runtime);
                assert!(!root.exists(), "{} is left", root.display());
                std::fs::remove_dir_all(directory).unwrap();
            } else {
                let runtime = Arc::clone(&bed.runtime);
                bed.close_with_what_runs().await;
                let late = runtime.create(&lives[0].1).await.unwrap_err();
                assert_eq!(late.kind(), ErrorKind::FailedPrecondition);
            }
            for (pid, instance) in &lives {
                assert_eq!(recorder.exit(instance.life, Duration::ZERO).status(), 137);
                eventually("the process goes", Duration::from_secs(5), || !process_exists(*pid));
            }
            for pid in zygotes {
                eventually("the zygote goes", Duration::from_secs(5), || !process_exists(pid));
            }
        }
    });
}

/// Goal: two backends of one name never meet; the later one takes over when the earlier is gone. Method: both orders.
#[test]
fn a_name_belongs_to_one_backend_at_a_time() {
    block_on(async {
        let config =
            LinuxConfig { name: Some(format!("test {}", std::process::id())), ..LinuxConfig::default() };
        let bed = Bed::with(config.clone());
        let refused = tokio::task::spawn_blocking({
            let config = config.clone();
            move || LinuxRuntime::new(config).err().expect("refused")
        });
        let error = refused.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("another name"), "{error}");
        let instance = bed.instance("x", sleeper());
        bed.run(&instance).await;
        bed.close_with_what_runs().await;
        Bed::with(config).close().await;
    });
}

/// Goal: what a backend of this name left is cleared by the next. Method: leave groups as if its zygotes had been killed too.
#[test]
fn what_an_earlier_backend_left_is_cleared_by_the_next() {
    block_on(async {
        let config =
            LinuxConfig { name: Some(format!("leaving {}", std::process::id())), ..LinuxConfig::default() };
        let bed = Bed::with(config.clone());
        let root = bed.runtime.cgroup_root().to_owned();
        bed.close().await;
        let ours = |path: &std::path::Path| {
            std::fs::create_dir(path).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(path, "user.sandkeeper", b"test", flags).unwrap();
        };
        ours(&root);
        ours(&root.join("default@x"));
        let mut left = foreigner(&root.join("default@x"));
        let bed = Bed::with(config);
        left.wait().unwrap();
        bed.close().await;
    });
}

/// Goal: a host that is killed leaves nothing, and the next of its name can begin at once. Method: this executable runs
/// itself as the host, with sandboxes, and kills that.
#[test]
fn a_killed_host_leaves_nothing_to_the_next_of_its_name() {
    const NAME: &str = "SANDKEEPER_HOST_NAME";
    let config = |name: &str| LinuxConfig { name: Some(name.to_owned()), ..LinuxConfig::default() };
    if let Ok(name) = std::env::var(NAME) {
        return block_on(async {
            let bed = Bed::with(config(&name));
            for i in 0..5 {
                let pid = bed.run(&bed.instance(&format!("x-{i}"), sleeper())).await.pid;
                eprintln!("sandbox {pid}");
            }
            eprintln!("directory {}", bed.directory.display());
            std::future::pending::<()>().await;
        });
    }
    for round in 0..size(2, 10) {
        let name = format!("host {} {round}", std::process::id());
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args([
                "leftovers::a_killed_host_leaves_nothing_to_the_next_of_its_name",
                "--exact",
                "--nocapture",
            ])
            .env(NAME, &name)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut pids: Vec<u32> = Vec::new();
        for line in BufReader::new(host.stderr.take().unwrap()).lines().map(Result::unwrap) {
            if let Some(pid) = line.strip_prefix("sandbox ") {
                pids.push(pid.parse().unwrap());
            } else if let Some(directory) = line.strip_prefix("directory ") {
                std::fs::remove_dir_all(directory).unwrap();
                break;
            }
        }
        assert_eq!(pids.len(), 5);
        host.kill().unwrap();
        host.wait().unwrap();
        block_on(async {
            let bed = Bed::with(config(&name));
            let instance = bed.instance("x-0", sleeper());
            bed.run(&instance).await;
            // Its zygotes reap them, or whoever inherits them does.
            for pid in pids {
                eventually("the sandbox is gone", Duration::from_secs(5), || !process_exists(pid));
            }
            bed.delete(&instance).await;
            bed.close().await;
        });
    }
}

/// Goal: no limit is faked. Method: ask for each that this machine cannot enforce.
#[test]
fn a_limit_that_cannot_be_enforced_is_refused_with_the_remedy() {
    block_on(async {
        let bed = Bed::new();
        let capabilities = bed.runtime.capabilities();
        let cases = [
            (
                capabilities.limit_memory,
                Limits { memory_bytes: Some(1 << 24), ..Limits::default() },
                "memory",
            ),
            (capabilities.limit_swap, Limits { swap_bytes: Some(0), ..Limits::default() }, "memory"),
            (capabilities.limit_cpu, Limits { cpu_millis: Some(100), ..Limits::default() }, "cpu"),
            (capabilities.limit_pids, Limits { pids: Some(10), ..Limits::default() }, "pids"),
        ];
        for (works, limits, controller) in cases {
            let mut spec = sleeper();
            spec.limits = limits;
            if works {
                assert!(bed.runtime.check(&spec).is_ok());
                continue;
            }
            let error = bed.runtime.check(&spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            let text = error.to_string();
            assert!(text.contains(&format!("{controller} controller")) && text.contains("; "), "{text}");
            let instance = bed.instance("limited", spec);
            assert!(bed.runtime.create(&instance).await.is_err());
            bed.delete(&instance).await;
        }
        bed.close().await;
    });
}
