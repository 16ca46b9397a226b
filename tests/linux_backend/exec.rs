//! Other programs inside a sandbox: isolated as its main process is, ended with whoever asked for them, and nothing left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::linux::LinuxConfig;
use sandkeeper::runtime::{Exec, ExecRequest, Instance, Runtime};
use sandkeeper::spec::{Mount, Network, ProcessSpec, SandboxSpec, User, Users};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// A backend with no namespaces in stock, whose number changes by itself.
fn bed_without_stock() -> Bed {
    Bed::with(LinuxConfig { ready_networks: 0, ..LinuxConfig::default() })
}

fn script(text: &str) -> ExecRequest {
    let mut process = ProcessSpec::new(["/bin/sh", "-c", text]);
    process.env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    ExecRequest { process, stdin: false, detached: false }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

/// How a program ended, and what it wrote.
async fn finish(mut exec: Exec) -> (ExitReason, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (exec.stdout.take().unwrap(), exec.stderr.take().unwrap());
    drop(exec.stdin.take());
    let (reason, _, _) = within("its end", async {
        tokio::join!(exec.exit.as_mut(), stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))
    })
    .await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (reason, text(&out), text(&err))
}

async fn run(bed: &Bed, instance: &Arc<Instance>, text: &str) -> (ExitReason, String, String) {
    finish(bed.runtime.exec(instance, &script(text)).await.unwrap()).await
}

/// Waits for a line.
async fn line(exec: &mut Exec, wanted: &str) {
    let mut read = vec![0; wanted.len()];
    within(wanted, exec.stdout.as_mut().unwrap().read_exact(&mut read)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&read), wanted);
}

/// The processes of a sandbox's group, zombies not counted.
fn living(group: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let pids = text.lines().map(|line| line.parse().unwrap());
    let lives = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    let mut pids: Vec<u32> = pids.filter(lives).collect();
    pids.sort_unstable();
    pids
}

/// Waits until the helper that made the sandbox's mounts is gone, with its descriptor. What lives then, and is open.
fn at_rest(bed: &Bed, instance: &Instance) -> (Vec<u32>, usize) {
    let late = Duration::from_secs(20);
    eventually("only leader and main process are there", late, || {
        children(bed) == 1 && living(&bed.group(instance)).len() == 2
    });
    let (mut last, mut same) = (0, 0);
    eventually("descriptors do not change any more", late, || {
        let now = bed.runtime.usage().descriptors;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 20
    });
    (living(&bed.group(instance)), last)
}

/// The children of all zygotes, zombies included.
fn children(bed: &Bed) -> usize {
    let of = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let count = |pid| of(pid).map_or(0, |text| text.split_whitespace().count());
    bed.runtime.usage().zygotes.iter().map(count).sum()
}

fn with_busybox() -> SandboxSpec {
    // A static program is all that a minimal root needs to run something.
    let mounts = vec![Mount { source: "/bin".into(), target: "/opt".into(), writable: false }];
    SandboxSpec { mounts, ..SandboxSpec::default() }
}

#[test]
fn output_and_status_come_through_and_input_is_read() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        let (reason, out, err) = run(&bed, &instance, "echo out; echo err >&2; exit 7").await;
        assert_eq!((reason, out.as_str(), err.as_str()), (ExitReason::Exited(7), "out\n", "err\n"));
        let (reason, ..) = run(&bed, &instance, "kill -TERM $$; sleep 10").await;
        assert_eq!(reason, ExitReason::Signalled(15));
        let (_, out, err) =
            run(&bed, &instance, "echo again > /dev/stdout; echo too > /dev/stderr; cat").await;
        assert_eq!((out.as_str(), err.as_str()), ("again\n", "too\n"), "pipes can be opened by their names");
        let request = ExecRequest { stdin: true, ..script("cat; echo end") };
        let mut exec = bed.runtime.exec(&instance, &request).await.unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        let text = "line\n".repeat(40_000);
        let (_, (reason, out, _)) = tokio::join!(
            async {
                stdin.write_all(text.as_bytes()).await.unwrap();
                drop(stdin);
            },
            finish(exec)
        );
        assert_eq!((reason, out), (ExitReason::Exited(0), format!("{text}end\n")));
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: nothing accumulates over many programs one after the other, which are timed besides.
#[test]
fn one_program_after_the_other() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        let mut request = script("");
        request.process.args = vec!["/bin/true".to_owned()];
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for _ in 0..size(100, 1_000) {
            let start = Instant::now();
            let exec = bed.runtime.exec(&instance, &request).await.unwrap();
            begun.push(start.elapsed());
            assert_eq!(exec.exit.await, ExitReason::Exited(0));
            ended.push(start.elapsed());
        }
        for (what, times) in [("executed", &mut begun), ("ended", &mut ended)] {
            times.sort();
            eprintln!("{what}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
        }
        eventually("no child but the leader is left", Duration::from_secs(20), || children(&bed) == 1);
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// What tells of a process's isolation, a row each.
const ROWS: &str = "cat /proc/self/status | grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters):'; \
    cat /proc/self/uid_map /proc/self/gid_map /proc/self/cgroup; for n in user mnt net ipc uts cgroup pid; do readlink /proc/self/ns/$n; done; \
    ulimit -n; umask; hostname; pwd; env | grep -v ^_= | sort; readlink /proc/self/root; ls /proc/self/fd | wc -l; \
    cut -d' ' -f6,7 /proc/$$/stat | grep -c \"^$$ 0\"";

/// Goal: nothing is looser, nor tighter, than for the main process. Method: the same script as main process and as another
/// program, in sandboxes of every kind, and what the host says about both.
#[test]
fn a_program_is_isolated_as_the_main_process_is() {
    block_on(async {
        let bed = Bed::new();
        type Change = fn(&mut SandboxSpec);
        let kinds: [(&str, Change); 6] = [
            ("plain", |_| {}),
            ("user", |spec| {
                let process = spec.process.as_mut().unwrap();
                process.user = User { uid: 1234, gid: 2345, groups: vec![7, 8] };
                process.cwd = "/usr".into();
            }),
            ("no-init", |spec| spec.isolation.no_init = true),
            ("no-network", |spec| spec.network = Network::None),
            ("host-users", |spec| spec.isolation.users = Users::Host),
            ("loose", |spec| {
                spec.isolation.kept_capabilities = 1 << 10 | 1 << 13;
                spec.isolation.no_seccomp = true;
                spec.isolation.allow_new_privileges = true;
            }),
        ];
        for (name, change) in kinds {
            let file = bed.file(name);
            let mut spec = shell(&format!("{ROWS}; echo done; sleep 1000"));
            spec.process.as_mut().unwrap().stdio.stdout = Some(file.clone());
            change(&mut spec);
            let instance = bed.instance(name, spec.clone());
            let leader = bed.run(&instance).await.pid;
            let read = || std::fs::read_to_string(&file).unwrap();
            eventually("the main process has told", Duration::from_secs(20), || read().contains("done\n"));
            let mut request = script(ROWS);
            let main = spec.process.unwrap();
            request.process.user = main.user;
            request.process.cwd = main.cwd;
            let (_, out, err) = finish(bed.runtime.exec(&instance, &request).await.unwrap()).await;
            assert_eq!(format!("{out}done\n"), read(), "{name}: {err}");
            assert!(out.contains("0::/\n"), "{out}");

            // By what the host sees.
            request.process.args[2] = "echo up; sleep 1000".to_owned();
            let mut exec = bed.runtime.exec(&instance, &request).await.unwrap();
            line(&mut exec, "up\n").await;
            let links = |pid: u32| {
                let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"]
                    .map(|name| (name.to_owned(), link(name)))
            };
            assert_eq!(BTreeMap::from(links(exec.pid)), BTreeMap::from(links(leader)), "{name}");
            assert!(living(&bed.group(&instance)).contains(&exec.pid));
            drop(exec);
            bed.delete(&instance).await;
        }
        eventually("no child is left", Duration::from_secs(20), || children(&bed) == 0);
        bed.close().await;
    });
}

/// Goal: the filter of a pause leader is not that of a program; without a network there is no socket either. Method: busybox
/// alone in a minimal root.
#[test]
fn a_pause_sandbox_runs_what_is_mounted_into_it() {
    block_on(async {
        let bed = Bed::new();
        for network in [Network::New, Network::None] {
            let instance = bed.instance("pause", SandboxSpec { network: network.clone(), ..with_busybox() });
            bed.run(&instance).await;
            let mut request = script("");
            request.process.args =
                ["/opt/busybox", "sh", "-c", "echo $$ $PPID; /opt/busybox nc -l -p 1 -w 1"]
                    .map(str::to_owned)
                    .into();
            let (_, out, err) = finish(bed.runtime.exec(&instance, &request).await.unwrap()).await;
            let (pid, parent) = out.trim().split_once(' ').unwrap_or_else(|| panic!("{out:?} {err:?}"));
            assert!(pid.parse::<u32>().unwrap() > 1, "{out}");
            assert_eq!(parent, "0", "its parent is not of the sandbox");
            assert_eq!(err.contains("family not supported"), network == Network::None, "{err}");
            bed.delete(&instance).await;
        }
        bed.close().await;
    });
}

#[test]
fn what_cannot_run_says_why() {
    if !alone("exec::what_cannot_run_says_why") {
        return;
    }
    block_on(async {
        let bed = bed_without_stock();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        let error = bed.runtime.exec(&instance, &script("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        bed.run(&instance).await;
        let (_, before) = at_rest(&bed, &instance);
        let program =
            |name: &str| ExecRequest { process: ProcessSpec::new([name]), stdin: true, detached: false };
        let mut elsewhere = script("true");
        elsewhere.process.cwd = "/no/where".into();
        let mut stranger = script("true");
        stranger.process.user.uid = 65_536;
        for (request, with) in [
            (program("/no/such"), "no such program in the sandbox's root: /no/such"),
            (program("no-such"), "no such program in the search path of the sandbox: no-such"),
            (program("/etc/passwd"), "not executable"),
            (program(""), "no program"),
            (elsewhere, "cannot enter its working directory"),
            (stranger, "user or group 65536"),
        ] {
            let error = bed.runtime.exec(&instance, &request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(with), "{error} does not say {with:?}");
            assert!(error.to_string().contains("default/x"), "{error}");
        }
        bed.runtime.pause(&instance).await.unwrap();
        let error = bed.runtime.exec(&instance, &script("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("paused"), "{error}");
        bed.runtime.resume(&instance).await.unwrap();
        assert_eq!(run(&bed, &instance, "true").await.0, ExitReason::Exited(0));
        eventually("no child but the leader is left", Duration::from_secs(20), || children(&bed) == 1);
        eventually("nor a descriptor", Duration::from_secs(20), || bed.runtime.usage().descriptors == before);
        bed.stop(&instance).await;
        let error = bed.runtime.exec(&instance, &script("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: a program ends with its sandbox, however that ends.
#[test]
fn the_end_of_the_sandbox_ends_a_program() {
    block_on(async {
        let bed = Bed::new();
        for by_itself in [false, true] {
            let script_of_main =
                if by_itself { "while [ ! -e /tmp/end ]; do sleep 0.01; done" } else { "sleep 1000" };
            let instance = bed.instance("x", shell(script_of_main));
            bed.run(&instance).await;
            let mut exec = bed.runtime.exec(&instance, &script("echo up; sleep 1000")).await.unwrap();
            line(&mut exec, "up\n").await;
            if by_itself {
                // It may be ended itself by what it brings about.
                run(&bed, &instance, "touch /tmp/end").await;
                bed.exit(&instance).await;
            } else {
                bed.stop(&instance).await;
            }
            assert_eq!(within("its end", &mut exec.exit).await, ExitReason::Signalled(9));
            bed.delete(&instance).await;
        }
        eventually("no child is left", Duration::from_secs(20), || children(&bed) == 0);
        bed.close().await;
    });
}

/// Goal: nothing of a program stays when nobody wants it: what it has started, in its process group or out of it, in its
/// session or out of it, included. Method: drop the whole, or its exit only; also while the sandbox is paused.
#[test]
fn a_dropped_program_is_killed_with_all_it_has_started() {
    if !alone("exec::a_dropped_program_is_killed_with_all_it_has_started") {
        return;
    }
    block_on(async {
        let bed = bed_without_stock();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        let group = bed.group(&instance);
        let before = at_rest(&bed, &instance);
        let text = "sleep 1001 & setsid sleep 1002 & (sleep 1003 & sleep 1004 & wait) & echo up; wait";
        for paused in [false, true] {
            for whole in [false, true] {
                let mut exec = bed.runtime.exec(&instance, &script(text)).await.unwrap();
                line(&mut exec, "up\n").await;
                eventually("all are there", Duration::from_secs(20), || {
                    living(&group).len() >= before.0.len() + 6
                });
                if paused {
                    bed.runtime.pause(&instance).await.unwrap();
                }
                if whole {
                    drop(exec);
                } else {
                    drop(exec.exit);
                }
                eventually("all are gone", Duration::from_secs(20), || living(&group) == before.0);
                if paused {
                    bed.runtime.resume(&instance).await.unwrap();
                }
            }
        }
        // One that has undone the kernel's tie to its parent, where there is a tool for that.
        let untie = "command -v setpriv >&2 && exec setpriv --pdeathsig clear sh -c 'echo up; exec sleep 1000'; echo up; exec sleep 1000";
        let mut exec = bed.runtime.exec(&instance, &script(untie)).await.unwrap();
        line(&mut exec, "up\n").await;
        drop(exec);
        eventually("it is gone", Duration::from_secs(20), || living(&group) == before.0);
        eventually("no child but the leader is left", Duration::from_secs(20), || children(&bed) == 1);
        eventually("nor a descriptor", Duration::from_secs(20), || {
            bed.runtime.usage().descriptors == before.1
        });
        bed.delete(&instance).await;
        bed.close().await;
    });
}

#[test]
fn a_detached_program_goes_on_and_is_reaped() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        let request = ExecRequest {
            detached: true,
            ..script("echo lost; while [ ! -e /tmp/end ]; do sleep 0.01; done; touch /tmp/ended")
        };
        let exec = bed.runtime.exec(&instance, &request).await.unwrap();
        assert!(exec.stdin.is_none() && exec.stdout.is_none() && exec.stderr.is_none());
        let pid = exec.pid;
        drop(exec);
        let (_, out, _) = run(
            &bed,
            &instance,
            "sleep 0.1; ls /tmp; touch /tmp/end; while [ ! -e /tmp/ended ]; do sleep 0.01; done",
        )
        .await;
        assert_eq!(out, "");
        eventually("it is gone", Duration::from_secs(20), || !process_exists(pid));
        eventually("no child but the leader is left", Duration::from_secs(20), || children(&bed) == 1);
        // Who wants to may still wait for it.
        let request = ExecRequest { detached: true, ..script("exit 3") };
        let exec = bed.runtime.exec(&instance, &request).await.unwrap();
        assert_eq!(within("its end", exec.exit).await, ExitReason::Exited(3));
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: neither a process nor a descriptor is left by many at once, some of which are given up at every stage.
#[test]
fn many_programs_at_once_leave_nothing() {
    if !alone("exec::many_programs_at_once_leave_nothing") {
        return;
    }
    block_on(async {
        let bed = Arc::new(bed_without_stock());
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        assert_eq!(run(&bed, &instance, "true").await.0, ExitReason::Exited(0));
        let before = at_rest(&bed, &instance);
        let tasks: Vec<_> = (0..200_u64)
            .map(|number| {
                let (bed, instance) = (Arc::clone(&bed), Arc::clone(&instance));
                tokio::spawn(async move {
                    if number % 4 == 0 {
                        let time = Duration::from_micros(scatter(number) % 30_000);
                        let request = script("sleep 1000");
                        drop(tokio::time::timeout(time, bed.runtime.exec(&instance, &request)).await);
                    } else {
                        let (reason, out, _) =
                            run(&bed, &instance, &format!("echo {number}; exit {}", number % 100)).await;
                        assert_eq!(
                            (reason, out),
                            (ExitReason::Exited((number % 100) as u8), format!("{number}\n"))
                        );
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let late = Duration::from_secs(20);
        eventually("no child but the leader is left", late, || children(&bed) == 1);
        eventually("none lives in the group", late, || living(&bed.group(&instance)) == before.0);
        eventually("no descriptor is left", late, || bed.runtime.usage().descriptors == before.1);
        bed.delete(&instance).await;
        Arc::try_unwrap(bed).ok().expect("all tasks are over").close().await;
    });
}

/// Goal: a program does not need the zygote that made it. Its status is then where the kernel keeps it, if it does (Linux 6.15).
#[test]
fn a_program_goes_on_when_its_zygote_is_killed() {
    block_on(async {
        let bed = Bed::new();
        let instance = bed.instance("x", shell("exec sleep 1000"));
        bed.run(&instance).await;
        let request = ExecRequest { stdin: true, ..script("echo up; read line; echo $line; exit 7") };
        let mut exec = bed.runtime.exec(&instance, &request).await.unwrap();
        line(&mut exec, "up\n").await;
        let zygotes = bed.runtime.usage().zygotes;
        zygotes.iter().for_each(|pid| kill(*pid));
        eventually("others take their place", Duration::from_secs(20), || {
            let now = bed.runtime.usage().zygotes;
            now.len() == zygotes.len() && now.iter().all(|pid| !zygotes.contains(pid))
        });
        exec.stdin.as_mut().unwrap().write_all(b"still here\n").await.unwrap();
        line(&mut exec, "still here\n").await;
        let reason = within("its end", &mut exec.exit).await;
        assert!(matches!(reason, ExitReason::Exited(7) | ExitReason::Lost), "{reason:?}");
        assert_eq!(run(&bed, &instance, "exit 3").await.0, ExitReason::Exited(3), "another runs the next");
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: nobody inside reaches the middle child, which is outside, nor what it holds. Method: look for it as the sandbox's
/// root; and read the descriptors and namespaces that the host sees of it.
#[test]
fn the_process_between_is_out_of_reach_and_holds_nothing() {
    block_on(async {
        let bed = Bed::new();
        let mut spec = shell("exec sleep 1000");
        spec.isolation.kept_capabilities = (1 << 19) | (1 << 5); // To trace, and to kill.
        let instance = bed.instance("x", spec);
        bed.run(&instance).await;
        let mut exec = bed.runtime.exec(&instance, &script("echo up; exec sleep 1000")).await.unwrap();
        line(&mut exec, "up\n").await;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", exec.pid)).unwrap();
        let middle: u32 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        let (_, out, _) =
            run(&bed, &instance, "grep -l sk-exec /proc/[0-9]*/comm; ls /proc | grep -c '^[0-9]'").await;
        assert!(!out.contains("/comm"), "{out}");
        let held: Vec<_> = std::fs::read_dir(format!("/proc/{middle}/fd"))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
            .collect();
        let mut kinds: Vec<_> = held.iter().map(|name| name.split(':').next().unwrap()).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["anon_inode", "pipe"], "its signals and its leash: {held:?}");
        let status = std::fs::read_to_string(format!("/proc/{middle}/status")).unwrap();
        for row in ["CapEff:\t0000000000000020", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(row), "no {row} in {status}");
        }
        bed.delete(&instance).await;
        bed.close().await;
    });
}
