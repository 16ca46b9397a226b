//! The verbs, their errors, and what a name must not be.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use sandkeeper::runtime::memory::{Instead, MemoryRuntime, Script, Step};
use sandkeeper::spec::{ProcessSpec, SandboxSpec};
use sandkeeper::surface::grpc::{Client, SERVICE_NAME};
use sandkeeper::wire::generated::{self as wire, keeper_client::KeeperClient};
use sandkeeper::{Controller, Error, ErrorKind, SandboxKey};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::hostile::hostile_names;
use crate::house::{House, key, on_one_core_and_on_two, until};

fn slow(step: Step) -> Script {
    Script { start: step, ..Script::default() }
}

fn hangs() -> Script {
    slow(Step { instead: Some(Instead::Hang), ..Step::default() })
}

#[test]
fn every_verb_does_what_the_keepers_does() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let a = key("a");
        let spec =
            SandboxSpec { labels: BTreeMap::from([("app".into(), "web".into())]), ..SandboxSpec::default() };
        client.define(&a, &spec).await.unwrap();
        client.define(&a, &spec).await.unwrap();
        client.create(&a, None).await.unwrap();
        assert_eq!(client.status(&a).await.unwrap().phase, "created");
        let started = client.start(&a, None).await.unwrap();
        assert_eq!(client.start(&a, Some(&spec)).await.unwrap(), started);
        let pong = client.ping(&a).await.unwrap();
        assert_eq!((pong.phase.as_str(), pong.life, pong.marks.len()), ("running", started.life, 0));
        client.pause(&a).await.unwrap();
        assert!(client.probe(&a).await.unwrap().frozen);
        assert_eq!(client.ping(&a).await.unwrap().phase, "paused");
        client.resume(&a).await.unwrap();
        let status = client.status(&a).await.unwrap();
        assert_eq!((status.pid, status.labels["app"].as_str()), (started.pid, "web"));
        assert_eq!(client.platform(&a).await.unwrap().os, "linux");
        for error in [client.metrics(&a).await.map(drop), client.update(&a, Any::default()).await] {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Unimplemented);
        }
        let mut other = house.client().await;
        let wait = tokio::spawn(async move { other.wait(&a).await });
        client.stop(&a, Some(Duration::from_secs(3))).await.unwrap();
        let exit = wait.await.unwrap().unwrap();
        assert_eq!(client.wait(&a).await.unwrap(), exit);
        assert!(exit.exited_at.is_some());
        let sweep = client.sweep().await.unwrap();
        assert_eq!((sweep.total, sweep.phases["stopped"], sweep.total_marked), (1, 1, 1));
        assert_eq!(sweep.marked[0].marks, ["exited"]);
        client.create(&key("b"), Some(&spec)).await.unwrap();
        assert_eq!(client.list(wire::ListRequest::default()).await.unwrap().len(), 2);
        client.shutdown(&a, Some(Duration::ZERO)).await.unwrap();
        client.shutdown(&a, None).await.unwrap();
        assert_eq!(client.ping(&a).await.unwrap_err().kind(), ErrorKind::NotFound);
        let version = client.version().await.unwrap();
        assert_eq!((version.pid, version.epoch), (std::process::id(), house.keeper.epoch()));
        assert_eq!((version.state_dir.as_str(), version.journal_trouble.as_str()), ("/state", ""));
        assert_eq!(client.orphans().await.unwrap().total, 0);
        assert_eq!(client.end_orphans().await.unwrap().ended, 0);
        house.close().await;
    });
}

/// Goal: an error says over the wire, word for word, what the keeper says, and its code is its kind.
#[test]
fn an_error_keeps_its_kind_and_its_words() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let a = key("a");
        let same = |there: Error, here: Error| {
            assert_eq!(there.kind(), here.kind());
            assert_eq!(there.to_string(), here.to_string());
            there.kind()
        };
        let kind = same(client.start(&a, None).await.unwrap_err(), house.keeper.start(&a).await.unwrap_err());
        assert_eq!(kind, ErrorKind::NotFound);
        client.define(&a, &SandboxSpec::default()).await.unwrap();
        let kind = same(client.pause(&a).await.unwrap_err(), house.keeper.pause(&a).await.unwrap_err());
        assert_eq!(kind, ErrorKind::FailedPrecondition);
        let other = SandboxSpec { runtime: "nowhere\n".into(), ..SandboxSpec::default() };
        let kind = same(
            client.define(&a, &other).await.unwrap_err(),
            house.keeper.define(&a, other).await.unwrap_err(),
        );
        assert_eq!(kind, ErrorKind::InvalidArgument);
        let other = SandboxSpec { hostname: Some("x".into()), ..SandboxSpec::default() };
        let kind = same(
            client.define(&a, &other).await.unwrap_err(),
            house.keeper.define(&a, other).await.unwrap_err(),
        );
        assert_eq!(kind, ErrorKind::AlreadyExists);
        // An error longer than any header is cut, and still comes.
        let process = ProcessSpec { env: vec!["x".repeat(100_000)], ..ProcessSpec::new(["/bin/true"]) };
        let long = SandboxSpec { process: Some(process), ..SandboxSpec::default() };
        let error = client.start(&a, Some(&long)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error.to_string().contains("is not of the form") || error.to_string().ends_with('…'),
            "{error}"
        );
        house.close().await;
    });
}

/// Goal: callers are told when to come again.
#[test]
fn a_full_keeper_says_so_with_its_code() {
    on_one_core_and_on_two(async || {
        let memory = MemoryRuntime::new();
        let house = House::of(Arc::clone(&memory) as _, memory, |keeper| keeper.max_sandboxes(1)).await;
        let mut client = house.client().await;
        client.define(&key("a"), &SandboxSpec::default()).await.unwrap();
        let error = client.define(&key("b"), &SandboxSpec::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        house.close().await;
    });
}

type Call = Pin<Box<dyn Future<Output = Result<(), Status>>>>;

/// Every method that names a sandbox, called with this name.
#[allow(clippy::needless_update, reason = "some requests have nothing but the name")]
fn every_call(
    client: &KeeperClient<Channel>,
    sandbox: Option<wire::SandboxName>,
) -> Vec<(&'static str, Call)> {
    macro_rules! calls {
        ($($name:literal $verb:ident $request:ident),* $(,)?) => {
            vec![$((
                $name,
                Box::pin({
                    let (mut client, sandbox) = (client.clone(), sandbox.clone());
                    async move {
                        let request = wire::$request { sandbox, ..Default::default() };
                        client.$verb(request).await.map(drop)
                    }
                }) as Call,
            )),*]
        };
    }
    let mut calls = calls! {
        "define" define DefineRequest,
        "create" create CreateRequest,
        "start" start StartRequest,
        "stop" stop StopRequest,
        "shutdown" shutdown ShutdownRequest,
        "pause" pause PauseRequest,
        "resume" resume ResumeRequest,
        "ping" ping PingRequest,
        "probe" probe ProbeRequest,
        "status" status StatusRequest,
        "wait" wait WaitRequest,
        "logs" logs LogsRequest,
        "platform" platform PlatformRequest,
        "metrics" metrics MetricsRequest,
        "update" update UpdateRequest,
    };
    let mut exec = client.clone();
    let begin =
        wire::ExecBegin { sandbox, process: Some((&ProcessSpec::new(["x"])).into()), ..Default::default() };
    let begin = wire::ExecRequest { message: Some(wire::exec_request::Message::Begin(begin)) };
    calls.push(("exec", Box::pin(async move { exec.exec(tokio_stream::once(begin)).await.map(drop) })));
    calls
}

/// C16: at every method's door, without a trace.
#[test]
fn a_hostile_name_is_refused_by_every_method() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let client = house.client().await.raw();
        for name in hostile_names() {
            let named = |namespace: &str, id: &str| {
                Some(wire::SandboxName { namespace: namespace.to_owned(), id: id.to_owned() })
            };
            for sandbox in [named("default", &name), named(&name, "a"), None] {
                for (method, call) in every_call(&client, sandbox) {
                    let status = call.await.expect_err(method);
                    assert_eq!(status.code(), Code::InvalidArgument, "{method} {name:?}: {status}");
                    assert!(!status.message().contains(['\n', '\0', '\u{202e}']), "{method}: {status}");
                }
            }
        }
        let mut client = client;
        for namespace in [".", "..", "a/b", "a\nb", &"a".repeat(10_000)] {
            let list = wire::ListRequest { namespace: namespace.to_owned(), ..Default::default() };
            assert_eq!(client.list(list).await.unwrap_err().code(), Code::InvalidArgument, "{namespace:?}");
        }
        assert!(house.keeper.is_empty(), "no record was made");
        assert!(house.memory.running().is_empty());
        house.close().await;
    });
}

#[test]
fn valid_names_are_as_many_sandboxes() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let longest = "n".repeat(76);
        let mut pids = std::collections::BTreeSet::new();
        for (namespace, id) in [("default", "Abc"), ("default", "abc"), (&longest, &longest), ("n", "0")] {
            let key = SandboxKey::new(namespace, id).unwrap();
            pids.insert(client.start(&key, Some(&SandboxSpec::default())).await.unwrap().pid);
            assert_eq!(client.status(&key).await.unwrap().id, id);
        }
        assert_eq!(pids.len(), 4);
        house.close().await;
    });
}

/// C22: options reach the backend, and its extra comes back, byte for byte; over the bound they are refused.
#[test]
fn unknown_options_and_extras_pass_through_unchanged() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let noise: Vec<u8> =
            (0..1_048_576_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let options = [
            ("example.test/Unknown.v9", vec![1, 2, 3]),
            ("", vec![]),
            ("", noise[..1_000].to_vec()),
            ("sandkeeper.v1.SandboxStatus", vec![0xff; 9]),
            ("type.googleapis.com/sandkeeper.v1.SandboxStatus", vec![0xff; 9]),
            ("runtime.v1.PodSandboxConfig", noise.clone()),
        ];
        for (number, (type_url, value)) in options.into_iter().enumerate() {
            let key = key(&format!("any-{number}"));
            let any = Any { type_url: type_url.to_owned(), value };
            house.memory.script(&key, Script { extra: Some(any.clone()), ..Script::default() });
            let spec = SandboxSpec { options: any.clone(), ..SandboxSpec::default() };
            client.start(&key, Some(&spec)).await.expect("accepted");
            assert_eq!(house.memory.options(&key), Some(any.clone()));
            assert_eq!(client.status(&key).await.unwrap().extra, Some(any.clone()));
            assert_eq!(client.probe(&key).await.unwrap().extra, Some(any));
        }
        for size in [1_048_577, 8 * 1_048_576] {
            let options = Any { type_url: "x".into(), value: vec![0; size] };
            let spec = SandboxSpec { options, ..SandboxSpec::default() };
            let error = client.define(&key("big"), &spec).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        house.close().await;
    });
}

/// Goal: a caller's deadline holds instead of the verb's own, the answer says what is going on, and what was begun goes on.
#[test]
fn a_deadline_ends_the_call_and_not_the_work() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let client = house.client().await;
        let a = key("a");
        house.memory.script(&a, slow(Step { delay: Duration::from_millis(700), ..Step::default() }));
        let mut hasty = client.within(Duration::from_millis(200));
        let error = hasty.start(&a, Some(&SandboxSpec::default())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(error.to_string().contains("it is starting"), "the daemon's own words: {error}");
        // C01 (b): whoever tries again joins what is still under way.
        let retried =
            client.within(Duration::from_secs(60)).start(&a, Some(&SandboxSpec::default())).await.unwrap();
        assert_eq!(house.memory.running(), [(a, retried.pid)]);
        assert_eq!(house.memory.most_starting(), 1);
        let error = hasty.wait(&a).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(error.to_string().contains("not done within"), "the daemon's own words: {error}");
        let mut watch = hasty.watch(0, 0).await.unwrap();
        let error = loop {
            match watch.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a watch does not end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        let mut raw = client.raw();
        let mut request = tonic::Request::new(wire::SweepRequest {});
        request.metadata_mut().insert("grpc-timeout", "99999999H".parse().unwrap());
        raw.sweep(request).await.expect("a very long time is as good as any");
        let mut request = tonic::Request::new(wire::ListRequest::default());
        request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
        assert_eq!(raw.list(request).await.unwrap_err().code(), Code::InvalidArgument);
        house.close().await;
    });
}

/// Goal: a start whose caller goes away, with its connection, completes.
#[test]
fn a_caller_that_goes_away_during_a_start_does_not_undo_it() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let a = key("a");
        house.memory.script(&a, slow(Step { delay: Duration::from_millis(300), ..Step::default() }));
        let mut client = house.client().await;
        let call = tokio::spawn(async move { client.start(&a, Some(&SandboxSpec::default())).await });
        until("it starts", || {
            house.keeper.inspect(&a).is_ok_and(|status| status.phase == "starting").then_some(())
        })
        .await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        until("it runs", || house.keeper.ping(&a).ok()).await;
        house.close().await;
    });
}

/// Goal: when the daemon ends, nobody who waits for something without end holds it up, and its sandboxes go on.
#[test]
fn the_daemons_end_ends_waits_and_watches_at_once_and_lets_short_calls_be_done() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        let (a, b, c) = (key("a"), key("b"), key("c"));
        client.start(&a, Some(&SandboxSpec::default())).await.unwrap();
        house.memory.script(&b, slow(Step { delay: Duration::from_millis(300), ..Step::default() }));
        house.memory.script(&c, hangs());
        let mut watch = client.watch(0, 0).await.unwrap();
        watch.next().await.unwrap().expect("a snapshot");
        let mut calls = JoinSet::new();
        for _ in 0..10 {
            let mut client = client.clone();
            calls.spawn(async move { client.wait(&a).await.map(drop) });
        }
        let [mut starter, mut stuck] = [client.clone(), client.clone()];
        let start = tokio::spawn(async move { starter.start(&b, Some(&SandboxSpec::default())).await });
        let stuck = tokio::spawn(async move { stuck.start(&c, Some(&SandboxSpec::default())).await });
        for key in [b, c] {
            let starting =
                || house.keeper.inspect(&key).is_ok_and(|status| status.phase == "starting").then_some(());
            until("it starts", starting).await;
        }
        let path = house.path.clone();
        let ended = house.end();
        while let Some(call) = calls.join_next().await {
            let error = call.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("the daemon is ending; its sandboxes go on"), "{error}");
        }
        loop {
            match watch.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it says why"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                    break;
                }
            }
        }
        start.await.unwrap().expect("it had the time to be done");
        let keeper = ended.await;
        assert_eq!(stuck.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        keeper.ping(&a).expect("it goes on");
        assert_eq!(client.ping(&a).await.unwrap_err().kind(), ErrorKind::Unavailable);
        let error = Client::connect(&path).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("sandkeeper serve"), "{error}");
        keeper.within(Duration::from_secs(1)).close(Some(Duration::ZERO)).await;
    });
}

#[test]
fn the_health_service_says_that_it_serves() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut health = HealthClient::new(crate::socket::channel(&house.path).await);
        for service in [SERVICE_NAME, ""] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving);
        }
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let unknown = HealthCheckRequest { service: "nobody".to_owned() };
        assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
        let ended = house.end();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        ended.await.close(None).await;
    });
}

/// C21, in short: many callers with everything at once; every call ends, and with an answer that makes sense.
#[test]
fn many_callers_with_everything_at_once_all_get_answers() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut callers = JoinSet::new();
        for caller in 0..16_u64 {
            let mut client = house.client().await.within(Duration::from_secs(20));
            callers.spawn(async move {
                let mut random = caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for _ in 0..150 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let key = key(&format!("s{}", random >> 8 & 63));
                    let answer = match random % 8 {
                        0 | 1 => client.start(&key, Some(&SandboxSpec::default())).await.map(drop),
                        2 => client.shutdown(&key, None).await,
                        3 => client.status(&key).await.map(drop),
                        4 => client.ping(&key).await.map(drop),
                        5 => client.pause(&key).await,
                        6 => client.list(wire::ListRequest::default()).await.map(drop),
                        _ => {
                            let mut watch = client.watch(0, 0).await.unwrap();
                            watch.next().await.map(drop)
                        }
                    };
                    if let Err(error) = answer {
                        let expected = [
                            ErrorKind::NotFound,
                            ErrorKind::FailedPrecondition,
                            ErrorKind::Aborted,
                            ErrorKind::Cancelled,
                        ];
                        assert!(expected.contains(&error.kind()), "{error:?}");
                    }
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.expect("every call got its answer");
        }
        house.close().await;
    });
}
