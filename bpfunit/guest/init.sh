#!/bin/busybox sh
# First process of a guest, in its initramfs. Mounts the host's files copy-on-write, then runs one
# command on a virtio port and speaks for the guest on another. Knows no udev, no systemd.
#
# Kernel command line: bpfunit.dir=DIR, a directory of the host with
#   env       shell assignments: environment, and BPFUNIT_CWD, BPFUNIT_COMMAND, BPFUNIT_MODULES
# Ports: 1 is the command's standard input and output, 2 is for reports, a line each:
#   up            the command starts
#   beat          the guest is alive, every two seconds
#   exit N        the command ended with status N
#   anything else comes from whoever writes to /run/bpfunit/report
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1

fail() {
  echo "bpfunit-init: $*"
  echo "bpfunit-init: $*" >/dev/kmsg
  /bin/busybox sleep 0.2
  /bin/busybox reboot -f
}

while read -r module; do
  /bin/busybox insmod "/modules/$module" || echo "bpfunit-init: insmod $module failed"
done </modules/order

read -r cmdline </proc/cmdline
for word in $cmdline; do
  case $word in bpfunit.dir=*) dir=${word#*=} ;; esac
done

lower=ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any
/bin/busybox mount -t 9p -o $lower host /host || fail "cannot mount the host's files over 9p"
/bin/busybox mount -t tmpfs -o mode=755 changes /changes
/bin/busybox mkdir /changes/upper /changes/work
[ ! -d /bytecode ] || /bin/busybox cp -r /bytecode/. /changes/upper
/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work,index=off,metacopy=off root /root ||
  fail "cannot lay an overlay over the host's files"
cd /root
[ -r ".$dir/env" ] || fail "cannot read $dir/env on the host"
/bin/busybox mount -t tmpfs -o mode=755 run run
/bin/busybox mkdir run/bpfunit run/lock
/bin/busybox cp /bin/busybox /stage2.sh ".$dir/env" run/bpfunit
/bin/busybox mount --move /dev dev
/bin/busybox mount --move /proc proc
/bin/busybox mount --move . /
exec /bin/busybox chroot . /run/bpfunit/busybox sh /run/bpfunit/stage2.sh
