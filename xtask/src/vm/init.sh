#!/bin/busybox sh
# The first process of the virtual machine: puts the root file system together and goes there.
set -e
/bin/busybox mkdir -p /proc /sys /dev /lower /over /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
# This machine's files, under an overlay in memory.
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /lower
/bin/busybox mount -t tmpfs tmpfs /over
/bin/busybox mkdir /over/upper /over/work
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work overlay /new
/bin/busybox mkdir /new/podnet-vm
/bin/busybox cp /run.sh /command.sh /bin/busybox /new/podnet-vm
for move in proc sys dev; do /bin/busybox mount --move "/$move" "/new/$move"; done
exec /bin/busybox switch_root /new /podnet-vm/busybox sh /podnet-vm/run.sh
