#!/bin/sh
# machine.sh ROOT WORK COMMAND...: the first process of a machine's namespaces (see machine.py). Lays the file system
# and becomes COMMAND inside it. WORK has upper, work, root, bin, tests and images.
set -eu
lower=$1 work=$2
shift 2
mount --make-rprivate /
mount -t overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/work" engines "$work/root"
cd "$work/root"
mkdir -p work old usr/local/bin
mount -t proc proc proc
mount -t sysfs sysfs sys
# The same hierarchies as the host's; the cgroup namespace makes ours the root of each.
mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
while IFS=: read -r _ controllers _; do
	case $controllers in
	"") dir=unified type=cgroup2 options=rw ;;
	name=*) dir=${controllers#name=} type=cgroup options=none,$controllers ;;
	*) dir=$controllers type=cgroup options=$controllers ;;
	esac
	mkdir "sys/fs/cgroup/$dir"
	mount -t "$type" -o "$options" cgroup "sys/fs/cgroup/$dir"
done </proc/self/cgroup
mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty fuse net/tun; do
	[ -e "/dev/$node" ] || continue
	mkdir -p "dev/$(dirname $node)"
	touch "dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,gid=5,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs shm dev/shm
mount -t mqueue mqueue dev/mqueue
mount -t tmpfs -o mode=755 run run
# The engines' stores must not lie on an overlay: theirs would be one too many.
cp -a var/lib "$work/lib"
mount --bind "$work/lib" var/lib
mkdir -p "$work/tmp"
mount --bind "$work/tmp" tmp
mount --bind "$work/bin" usr/local/bin
mount --bind "$work" work
pivot_root . old
cd /
umount -l old
mount --make-rshared /
ip link set lo up
hostname engines
exec tini -- "$@"
