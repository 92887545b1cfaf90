# The first process after the root file system is in place: runs the command and says how it ended.
b=/podnet-vm/busybox
$b mount -t tmpfs tmpfs /tmp
$b mount -t tmpfs tmpfs /run
$b mkdir -p /dev/pts /dev/shm /lib/modules/@VERSION@
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs tmpfs /dev/shm
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
# The kernel asks for modules that are wanted.
$b ln -s $b /podnet-vm/modprobe
echo /podnet-vm/modprobe >/proc/sys/kernel/modprobe
$b mount -o bind @KERNEL@/lib/modules/@VERSION@ /lib/modules/@VERSION@
$b ip link set lo up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# As many files as systemd allows what it starts.
ulimit -n 524288
cd @DIRECTORY@
/bin/sh /podnet-vm/command.sh </dev/null
echo "@MARK@ $?"
$b sync
echo o >/proc/sysrq-trigger
$b sleep 60
