//! Plans, without a kernel: what is encoded is what the init decodes.

use super::super::protocol::Decoded;
use super::super::rig::{IDS, instance};
use super::*;
use crate::spec::{Resource, Rlimit, User, bounds};

fn planned(spec: SandboxSpec, ids: Option<IdMap>, network: PlanNetwork) -> Plan {
    Plan::new(&instance(spec), ids, network).unwrap_or_else(|error| panic!("{error}"))
}

/// A text without its closing NUL.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes.strip_suffix(b"\0").unwrap()).unwrap()
}

#[test]
fn a_plan_decodes_to_what_the_spec_said() {
    let process = ProcessSpec {
        args: ["prog", "", "b c"].map(str::to_owned).into(),
        env: ["PATH=/one", "A=b", "PATH=/two:/three"].map(str::to_owned).into(),
        cwd: "/work".into(),
        user: User { uid: 5, gid: 6, groups: vec![7, 8, 9] },
        rlimits: vec![Rlimit { resource: Resource::Core, soft: 1, hard: u64::MAX }],
        ..ProcessSpec::default()
    };
    let mut spec =
        SandboxSpec { process: Some(process), hostname: Some("blue".to_owned()), ..SandboxSpec::default() };
    spec.isolation.kept_capabilities = 1 << 10 | 1 << 40;
    let plan = planned(spec, Some(IDS), PlanNetwork::Given);
    assert!(plan.build.is_none() && plan.takes_network);
    let decoded = Decoded::new(&plan.spawn).expect("the init understands it");
    let Fixed { uid, gid, host_start, id_count, kept_capabilities, .. } = decoded.fixed;
    assert_eq!((uid, gid, host_start, id_count), (5, 6, IDS.host_start, IDS.count));
    assert_eq!(kept_capabilities, 1 << 10 | 1 << 40);
    assert_eq!(
        (text(decoded.hostname), text(decoded.cwd), text(decoded.search)),
        ("blue", "/work", "/two:/three")
    );
    assert_eq!(decoded.groups.collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(decoded.rlimits.collect::<Vec<_>>(), [PlanRlimit { resource: 4, soft: 1, hard: u64::MAX }]);
    assert_eq!(decoded.args.map(text).collect::<Vec<_>>(), ["prog", "", "b c"]);
    assert_eq!(decoded.variables.map(text).collect::<Vec<_>>(), ["PATH=/one", "A=b", "PATH=/two:/three"]);
    assert_eq!(decoded.filter.collect::<Vec<_>>(), seccomp::default_filter(false).to_vec());
    assert!(decoded.has(flag::USERS) && decoded.has(flag::PROCESS) && decoded.has(flag::MASK));
    assert!(
        !decoded.has(flag::NEW_PRIVILEGES) && !decoded.has(flag::NO_INIT) && !decoded.has(flag::NET_FRESH)
    );
}

#[test]
fn a_pause_leader_is_named_after_its_sandbox_and_held_to_little() {
    let plan = planned(SandboxSpec::default(), None, PlanNetwork::Fresh);
    let decoded = Decoded::new(&plan.spawn).unwrap();
    assert_eq!((text(decoded.hostname), text(decoded.cwd)), ("box-1", "/"));
    assert_eq!(decoded.fixed.flags, flag::NET_FRESH | flag::MASK | flag::TMP);
    assert_eq!(decoded.filter.count(), seccomp::pause_filter().len());
}

#[test]
fn without_a_network_a_sandbox_never_shares_the_hosts() {
    let network = |change: fn(&mut SandboxSpec)| {
        let mut spec = SandboxSpec { network: Network::None, ..SandboxSpec::default() };
        change(&mut spec);
        let plan = planned(spec, None, PlanNetwork::Host);
        Decoded::new(&plan.spawn).unwrap().fixed.flags & (flag::NET_GIVEN | flag::NET_FRESH | flag::NET_HOST)
    };
    assert_eq!(network(|_| {}), 0);
    assert_eq!(network(|spec| spec.isolation.no_seccomp = true), flag::NET_FRESH);
    assert_eq!(network(|spec| spec.network = Network::New), flag::NET_HOST);
}

/// Goal: every spec that passes its check fits into a message, or is refused in words. Method: the largest of
/// each part.
#[test]
fn the_largest_process_fits_and_more_is_refused() {
    let mut process = ProcessSpec::new(["/bin/true"]);
    process.args.resize(bounds::ARGS, String::new());
    process.args.push("x".repeat(bounds::ARGS_AND_ENV_BYTES - bounds::ARGS - 10));
    process.args.remove(1);
    process.user.groups = vec![0; bounds::GROUPS];
    process.cwd = format!("/{}", "c".repeat(bounds::PATH_BYTES - 1)).into();
    let spec = SandboxSpec { process: Some(process), ..SandboxSpec::default() };
    spec.check("define").unwrap();
    let plan = planned(spec.clone(), Some(IDS), PlanNetwork::Fresh);
    assert!(Decoded::new(&plan.spawn).is_some());
    let mut spec = spec;
    spec.process.as_mut().unwrap().env.push(format!("A={}", "x".repeat(100_000)));
    let error = Plan::new(&instance(spec), None, PlanNetwork::Fresh).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("the limit is"), "{error}");
}

#[test]
fn targets_that_make_no_sense_are_refused() {
    for (target, with) in
        [("/", "the root itself"), ("/proc/sys", "its own processes"), ("//proc/./1", "its own processes")]
    {
        let mount = crate::spec::Mount { source: "/usr".into(), target: target.into(), writable: false };
        let spec = SandboxSpec { mounts: vec![mount], ..SandboxSpec::default() };
        let error = Plan::new(&instance(spec), None, PlanNetwork::Fresh).expect_err(target);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(with), "{error}");
    }
}

#[test]
fn status_tells_every_isolation_that_is_given_up() {
    let all = isolation_in_force(&SandboxSpec::default(), Some(&IDS));
    let mut given_up = SandboxSpec { process: Some(ProcessSpec::new(["/a"])), ..SandboxSpec::default() };
    given_up.isolation = crate::spec::Isolation {
        users: crate::spec::Users::Host,
        kept_capabilities: 0x400,
        allow_new_privileges: true,
        no_seccomp: true,
        unmasked_paths: true,
        no_init: true,
    };
    let some = isolation_in_force(&given_up, None);
    for item in [
        "user-namespace:1000000+65536",
        "capabilities:none",
        "no-new-privileges",
        "seccomp:pause",
        "masked-paths",
    ] {
        assert!(all.iter().any(|found| found == item), "{item} is not in {all:?}");
        assert!(!some.iter().any(|found| found == item), "{item} is in {some:?}");
    }
    for item in [
        "users:host",
        "capabilities:0x400",
        "new-privileges:allowed",
        "seccomp:none",
        "paths:unmasked",
        "init:none",
    ] {
        assert!(some.iter().any(|found| found == item), "{item} is not in {some:?}");
    }
}

/// A program for a sandbox of this spec.
fn exec_of(spec: &SandboxSpec) -> Vec<u8> {
    let process = ProcessSpec {
        args: ["prog", "", "b c"].map(str::to_owned).into(),
        env: ["PATH=/one".to_owned()].into(),
        cwd: "/work".into(),
        user: User { uid: 5, gid: 6, groups: vec![7, 8] },
        rlimits: vec![Rlimit { resource: Resource::Core, soft: 1, hard: 2 }],
        ..ProcessSpec::default()
    };
    exec_body(spec, &process, Some(IDS), flag::STDOUT).unwrap_or_else(|error| panic!("{error}"))
}

/// Goal: a program gets its own user, and the sandbox's isolation: for a pause leader the filter of programs, not that of the
/// pause.
#[test]
fn a_program_for_a_sandbox_decodes_to_its_own_words_and_the_sandboxs_isolation() {
    let mut spec = SandboxSpec { network: Network::None, ..SandboxSpec::default() };
    spec.isolation.kept_capabilities = 1 << 10;
    let body = exec_of(&spec);
    let decoded = Decoded::new(&body).expect("the middle child understands it");
    let Fixed { uid, gid, kept_capabilities, flags, .. } = decoded.fixed;
    assert_eq!((uid, gid, kept_capabilities), (5, 6, 1 << 10));
    assert_eq!(flags, flag::PROCESS | flag::USERS | flag::STDOUT);
    assert_eq!((text(decoded.cwd), text(decoded.search)), ("/work", "/one"));
    assert_eq!(decoded.args.map(text).collect::<Vec<_>>(), ["prog", "", "b c"]);
    assert_eq!(decoded.groups.collect::<Vec<_>>(), [7, 8]);
    assert_eq!(decoded.filter.collect::<Vec<_>>(), seccomp::default_filter(true).to_vec());
    spec.isolation.no_seccomp = true;
    assert_eq!(Decoded::new(&exec_of(&spec)).unwrap().filter.count(), 0);
}

/// Goal: to zygotes of an ordinary user their own user is 0, and what is shown of the host goes along by name. Method: the plan
/// of a directory and a mount for such a user, beside root's.
#[test]
fn one_user_is_0_to_its_zygotes_and_its_builders_open_what_is_shown() {
    let ids = IdMap::of_one_user(1000);
    let mount = crate::spec::Mount { source: "/usr".into(), target: "/opt".into(), writable: true };
    let spec = SandboxSpec {
        root: RootFs::Directory { path: "/srv".into(), writable: false },
        mounts: vec![mount],
        ..SandboxSpec::default()
    };
    let plan = planned(spec.clone(), Some(ids), PlanNetwork::Fresh);
    assert!(plan.trees.is_empty());
    for body in [&plan.spawn, plan.build.as_ref().unwrap()] {
        let decoded = Decoded::new(body).unwrap();
        assert_eq!((decoded.fixed.host_start, decoded.fixed.id_count), (0, 1));
        assert!(decoded.has(flag::ONE_USER) && decoded.has(flag::BUILT) && decoded.has(flag::ROOT_GIVEN));
    }
    let decoded = Decoded::new(plan.build.as_ref().unwrap()).unwrap();
    let found = |path: &str| {
        let stat = rustix::fs::stat(path).unwrap();
        format!("{:016x}{:016x}{path}", stat.st_dev, stat.st_ino)
    };
    let (root, mount) = (found("/srv"), found("/usr"));
    let expected = [(flag::source::IS_ONE, &*root), (flag::source::IS_ONE | flag::source::WRITABLE, &*mount)];
    let sources: Vec<_> = decoded.sources.map(|bytes| (bytes[0], text(&bytes[1..]))).collect();
    assert_eq!(sources, expected);
    let isolation = isolation_in_force(&spec, Some(&ids));
    assert!(isolation.contains(&"user-namespace:1000+1".to_owned()), "{isolation:?}");
    assert!(isolation.contains(&"users:one".to_owned()), "{isolation:?}");

    let roots = planned(spec, Some(IDS), PlanNetwork::Fresh);
    assert_eq!(roots.trees.len(), 2);
    let decoded = Decoded::new(roots.build.as_ref().unwrap()).unwrap();
    assert!(!decoded.has(flag::ONE_USER));
    assert_eq!(decoded.sources.count(), 0);
}

/// Walks through everything that the init would.
fn walk(body: &[u8]) {
    let Some(decoded) = Decoded::new(body) else { return };
    let texts = decoded.args.chain(decoded.variables).chain(decoded.mounts).chain(decoded.sources);
    for text in texts.chain([decoded.hostname, decoded.cwd, decoded.search]) {
        assert_eq!(text.last(), Some(&0));
    }
    assert_eq!(decoded.groups.count(), decoded.fixed.groups as usize);
    assert_eq!(decoded.filter.bytes().len(), decoded.fixed.instructions as usize * 8);
    assert_eq!(decoded.rlimits.count(), decoded.fixed.rlimits as usize);
}

proptest::proptest! {
    /// Goal: no message makes the decoder read past its end or panic. Method: any bytes, and sound bodies with some changed.
    #[test]
    fn any_message_decodes_or_is_refused(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        changes in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 0..6),
        cut in proptest::prelude::any::<usize>(),
    ) {
        walk(&bytes);
        let mut body = exec_of(&SandboxSpec::default());
        for (at, byte) in changes {
            // Mostly in the counts, which are at the front.
            let length = body.len();
            body[if byte % 4 == 0 { at % length } else { at % size_of::<Fixed>() }] = byte;
        }
        walk(&body);
        walk(&body[..cut % body.len()]);
    }
}
