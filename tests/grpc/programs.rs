//! Programs run inside a sandbox, and logs: with a backend that runs them on the host.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::runtime::{
    Capabilities, Exec, ExecRequest, Instance, LogChunk, LogPage, LogStream, Reality, Report, Runtime,
    Started, Urgency,
};
use sandkeeper::spec::{ProcessSpec, SandboxSpec};
use sandkeeper::surface::grpc::Watching;
use sandkeeper::wire::generated as wire;
use sandkeeper::wire::generated::exec_request::Message as Said;
use sandkeeper::wire::generated::exec_response::Message as Told;
use sandkeeper::{Controller, Error, ErrorKind};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tonic::Code;

use crate::house::{House, key, on_one_core_and_on_two, until};

struct OnTheHost {
    memory: Arc<MemoryRuntime>,
    log: Mutex<Vec<LogChunk>>,
}

#[async_trait]
impl Runtime for OnTheHost {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn check(&self, spec: &SandboxSpec) -> Result<(), Error> {
        self.memory.check(spec)
    }
    async fn create(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.memory.create(instance).await
    }
    async fn start(&self, instance: &Arc<Instance>) -> Result<Started, Error> {
        self.memory.start(instance).await
    }
    async fn pause(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.memory.pause(instance).await
    }
    async fn resume(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.memory.resume(instance).await
    }
    async fn stop(&self, instance: &Arc<Instance>, urgency: Urgency) -> Result<(), Error> {
        self.memory.stop(instance, urgency).await
    }
    async fn delete(&self, instance: &Arc<Instance>) -> Result<(), Error> {
        self.memory.delete(instance).await
    }
    async fn probe(&self, instance: &Arc<Instance>) -> Result<Report, Error> {
        self.memory.probe(instance).await
    }
    async fn reattach(&self, instance: &Arc<Instance>) -> Result<Reality, Error> {
        self.memory.reattach(instance).await
    }

    async fn exec(&self, _instance: &Arc<Instance>, request: &ExecRequest) -> Result<Exec, Error> {
        let [program, arguments @ ..] = request.process.args.as_slice() else { panic!("a program") };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(if request.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(!request.detached)
            .spawn()
            .map_err(|error| {
                Error::new(ErrorKind::InvalidArgument, "execute", "no such program").caused_by(error)
            })?;
        let receiver = |fd| pipe::Receiver::from_owned_fd(fd).unwrap();
        let stdin =
            child.stdin.take().map(|end| pipe::Sender::from_owned_fd(end.into_owned_fd().unwrap()).unwrap());
        let stdout = child.stdout.take().map(|end| receiver(end.into_owned_fd().unwrap()));
        let stderr = child.stderr.take().map(|end| receiver(end.into_owned_fd().unwrap()));
        let pid = child.id().unwrap();
        let exit = Box::pin(async move {
            use std::os::unix::process::ExitStatusExt as _;
            let status = child.wait().await.unwrap();
            match status.code() {
                Some(code) => ExitReason::Exited(code as u8),
                None => ExitReason::Signalled(status.signal().unwrap() as u8),
            }
        });
        Ok(Exec { pid, stdin, stdout, stderr, exit })
    }

    /// A position is a number of chunks, and a page has three of them.
    async fn logs(&self, _instance: &Arc<Instance>, from: u64, _most: usize) -> Result<LogPage, Error> {
        let chunks: Vec<_> = self.log.lock().unwrap().iter().skip(from as usize).take(3).cloned().collect();
        Ok(LogPage { next: from + chunks.len() as u64, chunks, dropped: 0 })
    }
}

async fn house() -> (House, Arc<OnTheHost>) {
    let memory = MemoryRuntime::new();
    let runtime = Arc::new(OnTheHost { memory: Arc::clone(&memory), log: Mutex::default() });
    let house = House::of(Arc::clone(&runtime) as _, memory, |keeper| keeper).await;
    house.keeper.run(&key("a"), SandboxSpec::default()).await.unwrap();
    (house, runtime)
}

/// What a program told.
#[derive(Debug, Default)]
struct Heard {
    pid: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<wire::ExitStatus>,
}

async fn listen(mut program: Watching<wire::ExecResponse>) -> Result<Heard, Error> {
    let mut heard = Heard::default();
    while let Some(told) = program.next().await? {
        assert!(heard.exit.is_none(), "the exit comes last");
        match told.message.expect("it says something") {
            Told::Started(started) => heard.pid = started.pid,
            Told::Stdout(bytes) => heard.stdout.extend(bytes),
            Told::Stderr(bytes) => heard.stderr.extend(bytes),
            Told::Exit(exit) => heard.exit = Some(exit),
        }
        assert_ne!(heard.pid, 0, "the start comes first");
    }
    Ok(heard)
}

fn shell(script: &str) -> ProcessSpec {
    ProcessSpec::new(["/bin/sh", "-c", script])
}

fn runs(pid: u32) -> bool {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|_| String::from("(x) Z"));
    !status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn a_program_gets_its_input_and_all_its_output_comes_before_its_exit() {
    on_one_core_and_on_two(async || {
        let (house, _runtime) = house().await;
        let mut client = house.client().await;
        let a = key("a");
        let program = client.exec(&a, &shell("echo out; echo err >&2; exit 7"), false, None).await.unwrap();
        let heard = listen(program).await.unwrap();
        assert_eq!((heard.stdout.as_slice(), heard.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        let exit = heard.exit.unwrap();
        assert_eq!((exit.status, exit.reason.as_str()), (7, "exited"));

        let chunks: Vec<Vec<u8>> = (0..64_u32).map(|at| vec![at as u8; 50_000]).collect();
        let sent = chunks.concat();
        let input = Box::pin(tokio_stream::iter(chunks));
        let program = client.exec(&a, &ProcessSpec::new(["/bin/cat"]), false, Some(input)).await.unwrap();
        let heard = listen(program).await.unwrap();
        assert!(heard.stdout == sent, "{} of {} bytes came back", heard.stdout.len(), sent.len());
        assert_eq!(heard.exit.unwrap().status, 0);

        // An empty message closes the input although the caller stays.
        let input = tokio_stream::StreamExt::chain(
            tokio_stream::iter([b"last words".to_vec(), Vec::new()]),
            tokio_stream::pending(),
        );
        let program =
            client.exec(&a, &ProcessSpec::new(["/bin/cat"]), false, Some(Box::pin(input))).await.unwrap();
        assert_eq!(listen(program).await.unwrap().stdout, b"last words");
        house.close().await;
    });
}

/// Goal: the exit does not wait for a child that lives on and holds the output open.
#[test]
fn a_child_left_behind_does_not_hold_up_the_exit() {
    on_one_core_and_on_two(async || {
        let (house, _runtime) = house().await;
        let mut client = house.client().await;
        let program =
            client.exec(&key("a"), &shell("sleep 1000 & echo $!; kill -9 $$"), false, None).await.unwrap();
        let heard = listen(program).await.unwrap();
        assert_eq!(heard.exit.unwrap().status, 137);
        let child: i32 = String::from_utf8(heard.stdout).unwrap().trim().parse().unwrap();
        let child = rustix::process::Pid::from_raw(child).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
        house.close().await;
    });
}

#[test]
fn a_program_ends_with_its_caller_unless_it_is_detached() {
    on_one_core_and_on_two(async || {
        let (house, _runtime) = house().await;
        let mut client = house.client().await;
        let sleep = ProcessSpec::new(["/bin/sleep", "1000"]);
        let mut program = client.exec(&key("a"), &sleep, false, None).await.unwrap();
        let Some(Told::Started(started)) = program.next().await.unwrap().unwrap().message else { panic!() };
        assert!(runs(started.pid));
        drop(program);
        until("it is killed", || (!runs(started.pid)).then_some(())).await;

        let detached = client.exec(&key("a"), &sleep, true, None).await.unwrap();
        let heard = listen(detached).await.unwrap();
        assert!(heard.exit.is_none() && runs(heard.pid));
        let pid = rustix::process::Pid::from_raw(heard.pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

        let mut hasty = client.within(Duration::from_millis(300));
        let program = hasty.exec(&key("a"), &sleep, false, None).await.unwrap();
        let error = listen(program).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        let mut program = client.exec(&key("a"), &sleep, false, None).await.unwrap();
        let Some(Told::Started(last)) = program.next().await.unwrap().unwrap().message else { panic!() };
        let keeper = house.end().await;
        assert_eq!(listen(program).await.unwrap_err().kind(), ErrorKind::Unavailable);
        until("it is killed", || (!runs(last.pid)).then_some(())).await;
        keeper.close(None).await;
    });
}

#[test]
fn what_cannot_be_run_is_refused() {
    on_one_core_and_on_two(async || {
        let (house, _runtime) = house().await;
        let mut client = house.client().await;
        let (a, process) = (key("a"), shell("true"));
        let error = client.exec(&key("nobody"), &process, false, None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error =
            client.exec(&a, &ProcessSpec::new(["/no/such"]), false, None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        house.keeper.pause(&a).await.unwrap();
        let error = client.exec(&a, &process, false, None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("paused"), "{error}");
        house.keeper.resume(&a).await.unwrap();
        let mut raw = client.raw();
        let stdin = wire::ExecRequest { message: Some(Said::Stdin(b"x".to_vec())) };
        for first in [Some(stdin), Some(wire::ExecRequest { message: None }), None] {
            let status = raw.exec(tokio_stream::iter(first)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        house.close().await;
    });
}

fn chunk(stream: LogStream, text: &str) -> LogChunk {
    LogChunk { at_unix_nanos: sandkeeper::runtime::unix_nanos(), stream, bytes: text.as_bytes().to_vec() }
}

async fn text(mut logs: Watching<wire::LogsResponse>) -> String {
    let mut text = String::new();
    while let Some(part) = logs.next().await.unwrap() {
        text.push_str(std::str::from_utf8(&part.data).unwrap());
    }
    text
}

#[test]
fn a_log_is_read_whole_or_from_its_last_lines() {
    on_one_core_and_on_two(async || {
        let (house, runtime) = house().await;
        let mut client = house.client().await;
        let a = key("a");
        for number in 0..20 {
            let stream = if number % 3 == 0 { LogStream::Stderr } else { LogStream::Stdout };
            runtime.log.lock().unwrap().push(chunk(stream, &format!("{number}a\n{number}b\n")));
        }
        runtime.log.lock().unwrap().push(chunk(LogStream::Stdout, "unfinished"));
        let whole = text(client.logs(&a, false, None).await.unwrap()).await;
        assert_eq!((whole.lines().count(), whole.lines().last()), (41, Some("unfinished")));
        for (lines, expected) in [
            (0, ""),
            (1, "unfinished"),
            (2, "19b\nunfinished"),
            (4, "18b\n19a\n19b\nunfinished"),
            (41, whole.as_str()),
            (40, &whole["0a\n".len()..]),
            (u64::MAX, whole.as_str()),
        ] {
            let tail = text(client.logs(&a, false, Some(lines)).await.unwrap()).await;
            assert_eq!(tail, expected, "the last {lines} lines");
        }
        let mut logs = client.logs(&a, false, None).await.unwrap();
        let first = logs.next().await.unwrap().unwrap();
        assert_eq!((first.stream.as_str(), first.at.is_some()), ("stderr", true));
        let error = client.logs(&key("nobody"), false, None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        house.close().await;
    });
}

#[test]
fn a_followed_log_goes_on_until_the_life_ends() {
    on_one_core_and_on_two(async || {
        let (house, runtime) = house().await;
        let mut client = house.client().await;
        let a = key("a");
        let write = |text: &str| runtime.log.lock().unwrap().push(chunk(LogStream::Stdout, text));
        write("before\n");
        let mut logs = client.logs(&a, true, Some(1)).await.unwrap();
        let mut heard = logs.next().await.unwrap().unwrap().data;
        for number in 0..20 {
            write(&format!("{number}\n"));
            heard.extend(logs.next().await.unwrap().unwrap().data);
        }
        write("last words\n");
        house.keeper.stop(&a, None).await.unwrap();
        while let Some(part) = logs.next().await.unwrap() {
            heard.extend(part.data);
        }
        let numbers: String = (0..20).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(heard).unwrap(), format!("before\n{numbers}last words\n"));
        let after = text(client.logs(&a, true, Some(1)).await.unwrap()).await;
        assert_eq!(after, "last words\n", "of a life that has ended, too");
        house.close().await;
    });
}
