//! The embedded Linux backend.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "feature \"linux\" is built and tested on x86_64 Linux only; leave it out with default-features = false"
);

mod channel;
#[cfg(test)]
mod escape_tests;
mod failure;
mod host_files;
mod plan;
#[cfg(test)]
mod process_tests;
mod protocol;
mod readiness;
#[cfg(test)]
mod rig;
mod seccomp;
mod zygote;
