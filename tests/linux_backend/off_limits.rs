//! No sandbox with the user of the backend among its own is shown the state directory.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use sandkeeper::ErrorKind;
use sandkeeper::model::ExitReason;
use sandkeeper::runtime::Runtime;
use sandkeeper::runtime::linux::LinuxConfig;
use sandkeeper::spec::{Mount, RootFs, SandboxSpec, Users};

use crate::support::*;

/// A place outside of /tmp, where a sandbox with the host's root has a file system of its own.
fn bed_below(place: &Path) -> Bed {
    let state_dir = Some(place.join("state"));
    Bed::with(LinuxConfig { state_dir, zygotes: 1, ready_networks: 0, ..LinuxConfig::default() })
}

fn showing(source: &Path, users: Users) -> SandboxSpec {
    let mount = Mount { source: source.to_owned(), target: "/mnt".into(), writable: true };
    let mut spec = SandboxSpec { mounts: vec![mount], ..shell("exec sleep 1000") };
    spec.isolation.users = users;
    spec
}

/// Goal: whoever is the owner of the state directory inside is not shown it by a mount or as a root, by whatever path. Method:
/// the directory, what it is in, and what is in it; links; another mount of it; then the same with users of its own, and
/// something harmless.
#[test]
fn a_mount_that_shows_the_state_directory_is_refused() {
    block_on(async {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = place.path();
        let bed = bed_below(place);
        let state = place.join("state");
        let (link, other) = (place.join("link"), bed.directory.join("other"));
        symlink(state.join("zygotes"), &link).unwrap();
        std::fs::create_dir(&other).unwrap();
        mount_bind(state.join("zygotes"), &other).unwrap();
        let mut socket = std::fs::read_dir(state.join("zygotes")).unwrap();
        let socket = socket.next().unwrap().unwrap().path();
        let shows = [
            &state,
            place,
            Path::new("/var/tmp"),
            Path::new("/"),
            &state.join("zygotes"),
            &socket,
            &state.join("linux.lock"),
            &link,
            &place.join("state/../state/./zygotes"),
            &other,
        ];
        for source in shows {
            for users in [Users::Host, Users::Mapped { host_start: 0, count: 65_536 }] {
                let mut root = showing(source, users);
                root.root = RootFs::Directory { path: source.to_owned(), writable: false };
                root.mounts.clear();
                for spec in [showing(source, users), root] {
                    let instance = bed.instance("x", spec);
                    bed.runtime.create(&instance).await.unwrap();
                    let error = bed.runtime.start(&instance).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
                    for part in [format!("{source:?}"), format!("the state directory {}", state.display())] {
                        assert!(error.to_string().contains(&part), "{error} does not name {part}");
                    }
                    bed.delete(&instance).await;
                }
            }
        }
        // The group that may pass through to a socket there.
        std::os::unix::fs::chown(&state, None, Some(70_000)).unwrap();
        let instance = bed.instance("x", showing(&state, Users::Mapped { host_start: 69_000, count: 2_000 }));
        bed.runtime.create(&instance).await.unwrap();
        assert_eq!(bed.runtime.start(&instance).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        bed.delete(&instance).await;
        // Their users are nobody there. And below a directory of another name there is nothing of ours.
        let harmless = [(state.as_path(), Users::Allocated), (Path::new("/var/lib"), Users::Host)];
        for (source, users) in harmless {
            let instance = bed.instance("x", showing(source, users));
            bed.run(&instance).await;
            bed.delete(&instance).await;
        }
        unmount(&other, UnmountFlags::DETACH).unwrap();
        bed.close().await;
    });
}

/// Unmounts it, whatever becomes of the test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn bind(from: &Path, at: &Path) -> Self {
        mount_bind(from, at).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

async fn refused(bed: &Bed, spec: SandboxSpec) -> String {
    let instance = bed.instance("x", spec);
    bed.runtime.create(&instance).await.unwrap();
    let error = bed.runtime.start(&instance).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    bed.delete(&instance).await;
    error.to_string()
}

/// Goal: what is mounted below a source comes along, and is looked at. Method: what holds the state directory, itself, and what is in
/// it, each mounted deep below something harmless.
#[test]
fn a_mount_below_a_source_that_shows_the_state_directory_is_refused() {
    block_on(async {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let bed = bed_below(place.path());
        let state = place.path().join("state");
        let (source, deep) = (bed.directory.join("source"), bed.directory.join("source/a/deep"));
        std::fs::create_dir_all(&deep).unwrap();
        for shown in [place.path(), &state, &state.join("zygotes")] {
            let mounted = Mounted::bind(shown, &deep);
            let mut root = showing(&source, Users::Host);
            root.root = RootFs::Directory { path: source.clone(), writable: false };
            root.mounts.clear();
            for spec in [showing(&source, Users::Host), root] {
                let error = refused(&bed, spec).await;
                for part in [&source, &deep, &state] {
                    assert!(error.contains(&part.display().to_string()), "{error} does not name {part:?}");
                }
            }
            drop(mounted);
        }
        // A neighbour of it, mounted in the same way.
        let neighbour = place.path().join("state-of-others");
        std::fs::create_dir(&neighbour).unwrap();
        let mounted = Mounted::bind(&neighbour, &deep);
        let instance = bed.instance("x", showing(&source, Users::Host));
        bed.run(&instance).await;
        bed.delete(&instance).await;
        drop(mounted);
        bed.close().await;
    });
}

/// Goal: whatever else takes commands can be named. Method: a socket outside of the state directory, by itself, in what holds it, by
/// another mount, and in the host's root; its neighbours are free.
#[test]
fn what_the_configuration_names_is_off_limits_too() {
    block_on(async {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let (sockets, free) = (place.path().join("sockets"), place.path().join("sockets/free"));
        std::fs::create_dir_all(&free).unwrap();
        let socket = sockets.join("commands.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let state_dir = Some(place.path().join("state"));
        let off_limits = vec![place.path().join("state/../sockets/commands.sock")];
        let bed = Bed::with(LinuxConfig {
            state_dir,
            off_limits,
            zygotes: 1,
            ready_networks: 0,
            ..LinuxConfig::default()
        });
        let alias = bed.directory.join("alias");
        std::fs::write(&alias, "").unwrap();
        let mounted = Mounted::bind(&socket, &alias);
        for source in [&socket, &sockets, &alias, &bed.directory] {
            let error = refused(&bed, showing(source, Users::Host)).await;
            assert!(error.contains(&format!("off limits, {}", socket.display())), "{error}");
        }
        drop(mounted);
        let instance = bed.instance("x", showing(&free, Users::Host));
        bed.run(&instance).await;
        bed.delete(&instance).await;
        let mut spec = shell(&format!("[ -e {0} ] && ! [ -S {0} ]", socket.display()));
        spec.isolation.users = Users::Host;
        let instance = bed.instance("x", spec);
        bed.run(&instance).await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(0));
        bed.delete(&instance).await;
        bed.close().await;
    });
}

/// Goal: the host's root has nothing of the state directory. Method: look for its sockets there, as its owner.
#[test]
fn the_hosts_root_does_not_show_the_state_directory() {
    block_on(async {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let bed = bed_below(place.path());
        let state = place.path().join("state");
        let look = format!("ls -ld {0} || exit 9; [ -z \"$(ls -A {0})\" ]", state.display());
        let mut spec = shell(&look);
        spec.isolation.users = Users::Host;
        let instance = bed.instance("x", spec);
        bed.run(&instance).await;
        assert_eq!(bed.exit(&instance).await.reason, ExitReason::Exited(0));
        bed.delete(&instance).await;
        bed.close().await;
    });
}
