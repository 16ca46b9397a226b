//! C16 and C22, library part: hostile names and opaque options.

#[path = "names/hostile.rs"]
mod hostile;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostile::hostile_names;
use prost_types::Any;
use sandkeeper::runtime::memory::{MemoryRuntime, Script};
use sandkeeper::wire::SandboxStatus;
use sandkeeper::{Controller, ErrorKind, InvalidIdentifier, Keeper, SandboxKey, SandboxSpec};

fn house() -> (Keeper, Arc<MemoryRuntime>) {
    let runtime = MemoryRuntime::new();
    let keeper = Keeper::builder().runtime("memory", Arc::clone(&runtime) as _).build().unwrap();
    (keeper, runtime)
}

/// C16: a hostile name becomes no key, so that no call can be made with it; its error shows it escaped, on one line.
#[test]
fn hostile_names_are_refused_at_the_door() {
    let begun = Instant::now();
    for name in hostile_names() {
        for key in [SandboxKey::new("default", &name), SandboxKey::new(&name, "a")] {
            let error: InvalidIdentifier = key.expect_err("refused");
            assert!(!error.to_string().contains(['\n', '\0', '\u{202e}']), "{error}");
        }
    }
    assert!(begun.elapsed() < Duration::from_millis(50));
}

/// C16: what differs in case, or in where namespace ends and ID begins, is two sandboxes.
#[tokio::test]
async fn similar_names_are_different_sandboxes() {
    let (keeper, runtime) = house();
    let longest = "n".repeat(76);
    let names = [
        ("default", "Abc"),
        ("default", "abc"),
        ("a", "bc"),
        ("ab", "c"),
        ("a.b", "c"),
        ("a", "b.c"),
        ("x", "x"),
        (longest.as_str(), longest.as_str()),
        (longest.as_str(), "n"),
        ("n", longest.as_str()),
    ];
    let mut pids = std::collections::HashSet::new();
    for (namespace, id) in names {
        let key = SandboxKey::new(namespace, id).unwrap();
        pids.insert(keeper.run(&key, SandboxSpec::default()).await.unwrap().started.pid);
    }
    assert_eq!(pids.len(), names.len());
    let first = SandboxKey::new("default", "Abc").unwrap();
    keeper.shutdown(&first, None).await.unwrap();
    assert_eq!(runtime.running().len(), names.len() - 1);
    assert!(keeper.ping(&SandboxKey::new("default", "abc").unwrap()).is_ok());
}

/// C22: whatever the options are, they reach the backend byte for byte, and a backend's extra comes back unchanged.
#[tokio::test]
async fn options_and_extras_pass_through_byte_for_byte() {
    let (keeper, runtime) = house();
    let noise: Vec<u8> = (0..1_048_576_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let options = [
        ("example.test/Unknown.v9", vec![1, 2, 3]),
        ("", vec![]),
        ("", noise[..1_000].to_vec()),
        ("sandkeeper.v1.SandboxStatus", vec![0xff; 9]),
        ("type.googleapis.com/sandkeeper.v1.SandboxStatus", vec![0xff; 9]),
        ("runtime.v1.PodSandboxConfig", noise),
    ];
    for (number, (type_url, value)) in options.into_iter().enumerate() {
        let key = SandboxKey::new("default", &format!("any-{number}")).unwrap();
        let any = Any { type_url: type_url.to_owned(), value };
        runtime.script(&key, Script { extra: Some(any.clone()), ..Script::default() });
        let spec = SandboxSpec { options: any.clone(), ..SandboxSpec::default() };
        keeper.run(&key, spec).await.expect("accepted");
        assert_eq!(runtime.options(&key), Some(any.clone()));
        for _ in 0..2 {
            let answer = keeper.status(&key).await.unwrap();
            assert_eq!(answer.type_url, "type.googleapis.com/sandkeeper.v1.SandboxStatus");
            assert_eq!(answer.to_msg::<SandboxStatus>().unwrap().extra, Some(any.clone()));
        }
        keeper.shutdown(&key, None).await.unwrap();
    }
    let spec = SandboxSpec {
        options: Any { type_url: "x".into(), value: vec![0; 1_048_577] },
        ..SandboxSpec::default()
    };
    let error = keeper.define(&SandboxKey::new("default", "big").unwrap(), spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(keeper.len(), 0);
}

/// A spec that names a runtime which is not there.
#[tokio::test]
async fn an_unknown_runtime_is_refused_and_the_known_ones_are_named() {
    let (keeper, _runtime) = house();
    let spec = SandboxSpec { runtime: "io.containerd.kata.v2".into(), ..SandboxSpec::default() };
    let error = keeper.run(&SandboxKey::new("default", "a").unwrap(), spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("memory"), "{error}");
}
