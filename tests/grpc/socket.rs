//! The socket: who may speak to it, and whose it is.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use rustix::process::{Gid, Uid};
use sandkeeper::ErrorKind;
use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::spec::SandboxSpec;
use sandkeeper::surface::grpc::{About, Client, Settings, Socket, serve};
use sandkeeper::wire::generated::{self as wire, keeper_client::KeeperClient};
use sandkeeper::{Controller, Keeper};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::house::{House, key, on_one_core_and_on_two};

/// A channel to whoever listens there.
pub(crate) async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let dial = move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://test").connect_with_connector(tower::service_fn(dial)).await.unwrap()
}

/// A channel over a connection that there is already.
async fn channel_over(stream: UnixStream) -> Channel {
    stream.set_nonblocking(true).unwrap();
    let stream = Mutex::new(Some(stream));
    let dial = move |_: Uri| {
        let stream = stream.lock().unwrap().take().ok_or(std::io::ErrorKind::ConnectionRefused);
        async move {
            let stream = tokio::net::UnixStream::from_std(stream?)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    Endpoint::from_static("http://test").connect_with_connector(tower::service_fn(dial)).await.unwrap()
}

/// Connects as somebody else: only the thread that does so is somebody else, and it ends.
fn connect_as(user: u32, group: u32, path: PathBuf) -> std::io::Result<UnixStream> {
    let other = std::thread::spawn(move || {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        rustix::thread::set_thread_groups(&[]).expect("root may");
        rustix::thread::set_thread_res_gid(group, group, group).expect("root may");
        rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
        UnixStream::connect(path)
    });
    other.join().expect("no panic")
}

#[test]
fn strangers_are_refused_by_the_kernel_and_by_the_daemon() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    on_one_core_and_on_two(async || {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let path = directory.path().join("keeper.sock");
        let (group, stranger) = (4_321, 65_534);
        let socket = Socket::bind(&path, Some(group)).await.unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, group));
        let keeper = Keeper::builder().runtime("memory", MemoryRuntime::new() as Arc<_>).build().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = serve(socket, keeper.clone(), About::default(), Settings::default(), async {
            let _told_or_dropped = ended.await;
        });
        let served = tokio::spawn(serving);
        let refused = connect_as(stranger, stranger, path.clone()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let member = channel_over(connect_as(stranger, group, path.clone()).unwrap()).await;
        KeeperClient::new(member).sweep(wire::SweepRequest {}).await.expect("a member may");
        // Somebody has loosened the file's mode.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let channel = channel_over(connect_as(stranger, stranger, path.clone()).unwrap()).await;
        let status = KeeperClient::new(channel).sweep(wire::SweepRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("user 65534 may not"), "{status}");
        drop(end);
        served.await.unwrap();
        keeper.close(None).await;
    });
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    on_one_core_and_on_two(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a daemon that was killed leaves its socket");
        let socket = Socket::bind(&path, None).await.expect("it replaces the dead one");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let error = Socket::bind(&path, None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("another daemon listens there"), "{error}");
        UnixStream::connect(&path).expect("the live one is as it was");
        drop(socket);
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");

        std::fs::write(&path, "a file").unwrap();
        let error = Socket::bind(&path, None).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    });
}

#[test]
fn a_socket_is_removed_only_by_its_own_daemon() {
    on_one_core_and_on_two(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.sock");
        let first = Socket::bind(&path, None).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Socket::bind(&path, None).await.unwrap();
        drop(first);
        UnixStream::connect(&path).expect("the second's is there");
        drop(second);
        assert!(!path.exists());
    });
}

/// C16: a path that no socket can have is refused when the daemon starts; one that just fits is not.
#[test]
fn a_path_too_deep_for_a_socket_is_refused_at_once() {
    on_one_core_and_on_two(async || {
        let directory = tempfile::tempdir().unwrap();
        let room = 107 - directory.path().as_os_str().len() - "/".len() - "/k.sock".len();
        let deep = directory.path().join("d".repeat(room));
        std::fs::create_dir(&deep).unwrap();
        let fits = deep.join("k.sock");
        let socket = Socket::bind(&fits, None).await.expect("107 bytes fit");
        UnixStream::connect(&fits).expect("and can be reached");
        drop(socket);
        let error = Socket::bind(&deep.join("kk.sock"), None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("has 108 bytes; the limit is 107"), "{error}");
        let error = Socket::bind(&directory.path().join("no/k.sock"), None).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    });
}

/// Goal: more connections than there may be are told so, and do not disturb the others.
#[test]
fn past_the_bound_a_connection_is_told_so() {
    on_one_core_and_on_two(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.sock");
        let socket = Socket::bind(&path, None).await.unwrap();
        let keeper = Keeper::builder().runtime("memory", MemoryRuntime::new() as Arc<_>).build().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let settings = Settings { max_connections: 2, ..Settings::default() };
        let serving = serve(socket, keeper.clone(), About::default(), settings, async {
            let _told_or_dropped = ended.await;
        });
        let served = tokio::spawn(serving);
        let mut first = Client::connect(&path).await.unwrap();
        let mut second = Client::connect(&path).await.unwrap();
        for client in [&mut first, &mut second] {
            client.sweep().await.unwrap();
        }
        let mut third = Client::connect(&path).await.unwrap();
        let error = third.sweep().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        assert!(error.to_string().contains("2 connections"), "{error}");
        first.start(&key("a"), Some(&SandboxSpec::default())).await.unwrap();
        drop(first);
        let mut fourth = Client::connect(&path).await.unwrap();
        loop {
            match fourth.ping(&key("a")).await {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                    fourth = Client::connect(&path).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
            tokio::task::yield_now().await;
        }
        drop(end);
        served.await.unwrap();
        keeper.ping(&key("a")).unwrap();
        keeper.close(None).await;
    });
}

/// Goal: a client finds a daemon that was started anew, without being made anew itself.
#[test]
fn a_client_finds_the_next_daemon() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        let mut client = house.client().await;
        client.sweep().await.unwrap();
        let path = house.path.clone();
        let directory = path.parent().unwrap().to_owned();
        let keeper = house.end().await;
        std::fs::create_dir_all(&directory).unwrap();
        let socket = Socket::bind(&path, None).await.unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = serve(socket, keeper.clone(), About::default(), Settings::default(), async {
            let _told_or_dropped = ended.await;
        });
        let served = tokio::spawn(serving);
        loop {
            match client.sweep().await {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            tokio::task::yield_now().await;
        }
        drop(end);
        served.await.unwrap();
        std::fs::remove_dir(&directory).unwrap();
        keeper.close(None).await;
    });
}
