#!/bin/sh
# PID 1 of the guest. Argument 1 is empty on the first pass, in the initial RAM file system, and "rooted" on the
# second, on a root of its own: pivot_root(2) refuses to leave the initial one, and the backend under test pivots.
export PATH=/bin
if [ "$1" != rooted ]; then
    mount -t tmpfs -o mode=755 root /mnt
    for entry in /*; do
        [ "$entry" = /mnt ] || cp -a "$entry" /mnt/
    done
    mkdir -p /mnt/mnt
    exec switch_root /mnt /init rooted
fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest
stty -F /dev/ttyS1 raw -echo

# The host process of an embedded keeper sits in a leaf, as under a service manager that delegates.
mkdir /sys/fs/cgroup/init
echo $$ >/sys/fs/cgroup/init/cgroup.procs

# Ends the guest even when whoever started it is gone.
{ sleep "$(cat /limit)"; echo "the guest's time is over"; poweroff -f; } &

while read -r variable; do
    export "$variable"
done </environment
/pure_v2 --guest $(cat /selection) >/dev/ttyS1
echo "the test executable ended with status $?"
sync
poweroff -f
