//! Builds the freestanding init that the Linux backend embeds: the program that a zygote runs.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What the init is made from.
const SOURCES: [&str; 4] = [
    "src/runtime/linux/init",
    "src/runtime/linux/protocol.rs",
    "src/runtime/linux/flag.rs",
    "src/runtime/linux/log_format.rs",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let wanted = env::var_os("CARGO_FEATURE_LINUX").is_some();
    let possible =
        variable("CARGO_CFG_TARGET_ARCH") == "x86_64" && variable("CARGO_CFG_TARGET_OS") == "linux";
    // Elsewhere the library refuses to compile, and says why; a second error from here would only hide it.
    if wanted && possible {
        build_init();
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}

/// Calls the compiler directly: neither the profile nor RUSTFLAGS of the host program may reach the init,
/// which has no standard library, no unwinding and no relocations.
fn build_init() {
    let output = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "init", "--crate-type", "bin"]);
    rustc.args(["--target", &variable("TARGET")]);
    for option in [
        "opt-level=z",
        "panic=abort",
        "relocation-model=static",
        "target-feature=+crt-static",
        // Without it the first bounds check pulls in core's unwind tables, and with them a personality nobody
        // has.
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "force-unwind-tables=no",
        "link-self-contained=no",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none,-z,norelro,-z,noseparate-code,--gc-sections,--no-eh-frame-hdr",
    ] {
        rustc.args(["-C", option]);
    }
    if variable("TARGET") == "x86_64-unknown-linux-gnu" {
        // The linker of the C compiler, which every machine that builds Rust has; the toolchain's own is an
        // optional part.
        rustc.args(["-C", "linker-features=-lld"]);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    rustc.arg("-o").arg(&output).arg("src/runtime/linux/init/main.rs");
    let status = rustc.status().unwrap_or_else(|error| panic!("cannot run {rustc:?}: {error}"));
    assert!(
        status.success(),
        "cannot build the sandboxes' init ({status}); a C linker (cc) is needed, or leave out feature \"linux\""
    );
}
