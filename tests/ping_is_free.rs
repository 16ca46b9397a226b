//! A ping allocates nothing and makes no system call: both are counted, not believed.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandkeeper::runtime::memory::MemoryRuntime;
use sandkeeper::{Controller, Keeper, SandboxHandle, SandboxKey, SandboxSpec};

const PINGS: u64 = 100_000;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the ones needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

async fn running() -> (Keeper, Vec<SandboxKey>, Vec<SandboxHandle>) {
    let keeper = Keeper::builder().runtime("memory", MemoryRuntime::new() as Arc<_>).build().unwrap();
    let keys: Vec<_> =
        (0..100).map(|number| SandboxKey::new("default", &format!("p{number}")).unwrap()).collect();
    let mut handles = Vec::new();
    for key in &keys {
        keeper.run(key, SandboxSpec::default()).await.unwrap();
        handles.push(keeper.handle(key).unwrap());
    }
    (keeper, keys, handles)
}

fn ping_all(keeper: &Keeper, keys: &[SandboxKey], handles: &[SandboxHandle]) -> u64 {
    let mut alive = 0;
    while alive < PINGS {
        alive += keys.iter().filter(|key| keeper.ping(key).is_ok()).count() as u64;
        alive += handles.iter().filter(|handle| handle.ping().is_ok()).count() as u64;
        alive += u64::from(keeper.ping(&keys[0]).is_ok());
    }
    alive
}

#[tokio::test]
async fn a_ping_allocates_nothing() {
    let (keeper, keys, handles) = running().await;
    let before = ALLOCATIONS.with(Cell::get);
    assert!(ping_all(&keeper, &keys, &handles) >= PINGS);
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    drop(Box::new(7_u64));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 1, "the count counts");
}

/// Names the process in which a system call would be fatal.
const STRICT: &str = "SANDKEEPER_TEST_STRICT";

/// Goal: no system call. Method: this test again in another process, where a thread gives up every system call but read,
/// write and exit (`SECCOMP_MODE_STRICT`: any other is the end of the process) and then pings.
#[test]
fn a_ping_makes_no_system_call() {
    if let Ok(mode) = std::env::var(STRICT) {
        return ping_without_system_calls(mode == "cheat");
    }
    let run = |mode: &str| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_ping_makes_no_system_call", "--nocapture"])
            .env(STRICT, mode)
            .status()
            .unwrap()
    };
    assert!(run("ping").success(), "a ping made a system call");
    assert!(!run("cheat").success(), "a system call is noticed");
}

#[expect(clippy::disallowed_methods, reason = "no worker of a runtime waits here")]
fn ping_without_system_calls(cheat: bool) {
    static ALIVE: AtomicU64 = AtomicU64::new(0);
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let (keeper, keys, handles) = tokio.block_on(running());
    std::thread::spawn(move || {
        // SAFETY: gives up rights of this thread alone; it keeps nothing that would need them, and ends by `exit` below.
        unsafe { assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 1), 0) };
        let alive = ping_all(&keeper, &keys, &handles);
        if cheat {
            // SAFETY: a call without arguments; it does not return here.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        ALIVE.store(alive, Ordering::Release);
        std::mem::forget((keeper, keys, handles));
        // SAFETY: ends this thread, which holds nothing any more.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let late = Instant::now() + Duration::from_secs(5);
    while ALIVE.load(Ordering::Acquire) == 0 {
        if Instant::now() >= late {
            // The kernel ends a thread that makes another call, and says nothing.
            std::process::exit(1);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(ALIVE.load(Ordering::Acquire) >= PINGS);
    std::process::exit(0);
}
