#!/bin/busybox sh
# First process of a guest, in its initramfs. Mounts the host's files copy-on-write, then runs one
# command on a virtio port and speaks for the guest on another. Knows no udev, no systemd.
#
# Kernel command line: bpfunit.dir=DIR, a directory of the host with
#   env       shell assignments: environment, and BPFUNIT_CWD, BPFUNIT_COMMAND, BPFUNIT_MODULES
#   foreign   in a guest of another architecture alone: commands that put its Python in the place of the host's;
#             its user space, a second export, lies over the host's files
# or: bpfunit.snapshot, a guest to take a snapshot of. Then a Python from the initramfs gets warm
# first (/warm.sh, warm.py), and DIR comes over port 2 once the snapshot was restored.
#
# Each pattern of a port's name matches one: a guest has one such device. `cd` is to what was just mounted.
# shellcheck shell=dash disable=SC2046,SC2144,SC2164
# Ports: 1 is the command's standard input and output, 2 is for reports, a line each:
#   clock S       seconds since the boot, for the host to see whether the clock runs at its rate
#   ready S       the same a second later; the snapshot can be taken. Answered by "again" for the two
#                 once more, and in a restored guest by "DIR TIME SEED"
#   up            the command starts
#   beat          the guest is alive, every two seconds
#   exit N        the command ended with status N
#   anything else comes from whoever writes to /run/bpfunit/report
# Descriptors: 3 port 2, 4 the pipe behind /run/bpfunit/report, 5 the pipe to the warm Python.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs -o mode=755 run /run
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

# What has nothing to do with the host's files is moved over them, and is in a snapshot.
/bin/busybox mkdir -p /sys /dev/pts /dev/shm /run/bpfunit /run/lock
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
/bin/busybox mount -t tmpfs -o mode=1777 shm /dev/shm
/bin/busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
/bin/busybox mount -t bpf bpf /sys/fs/bpf
/bin/busybox mount -t debugfs debug /sys/kernel/debug
/bin/busybox mount -t tracefs trace /sys/kernel/tracing
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
  /bin/busybox ln -sfn "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
/bin/busybox ip link set lo up
echo bpfunit >/proc/sys/kernel/hostname

/bin/busybox cp /bin/busybox /stage2.sh /run/bpfunit
/bin/busybox mkfifo /run/bpfunit/report /run/bpfunit/silence
/bin/busybox mount -t tmpfs -o mode=755 changes /changes
/bin/busybox mkdir /changes/upper /changes/work
[ ! -d /bytecode ] || /bin/busybox cp -r /bytecode/. /changes/upper
ulimit -l unlimited
ulimit -n 1048576 2>/dev/null
# The kernel adds ports one by one, after the device; the number in front is the device's.
until [ -c /dev/vport*p1 ] && [ -c /dev/vport*p2 ]; do /bin/busybox usleep 20000; done
exec 3<>$(echo /dev/vport*p2) 4<>/run/bpfunit/report

warm='' arch=''
read -r cmdline </proc/cmdline
for word in $cmdline; do
  case $word in
    bpfunit.dir=*) dir=${word#*=} ;;
    bpfunit.snapshot) warm=1 ;;
    bpfunit.arch) arch=1 ;;
  esac
done
if [ -n "$warm" ]; then
  /bin/busybox mount -t proc proc /warm/proc
  /bin/busybox mount -t devtmpfs dev /warm/dev
  /bin/busybox mkfifo /run/bpfunit/go
  exec 5<>/run/bpfunit/go
  (
    /bin/busybox sh /warm.sh 3>&-
    echo "exit $?" >&4
  ) &
  read -r line <&4
  [ "$line" = warm ] || fail "the warm Python: $line"
  /bin/busybox umount -l /warm/proc
  /bin/busybox umount -l /warm/dev
  /bin/busybox rm -rf /warm /bytecode
  dir=again
  while [ "$dir" = again ]; do
    read -r seconds rest </proc/uptime
    echo "clock $seconds" >&3
    /bin/busybox sleep 1
    read -r seconds rest </proc/uptime
    echo "ready $seconds" >&3
    read -r dir rest <&3
  done
  echo "$dir $rest" >&5
fi

lower=ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any
/bin/busybox mount -t 9p -o $lower host /host || fail "cannot mount the host's files over 9p"
files=/host
if [ -n "$arch" ]; then
  /bin/busybox mount -t 9p -o $lower arch /arch || fail "cannot mount the user space of this architecture over 9p"
  files=/arch:/host
fi
/bin/busybox mount -t overlay -o lowerdir=$files,upperdir=/changes/upper,workdir=/changes/work,index=off,metacopy=off root /root ||
  fail "cannot lay an overlay over the host's files"
cd /root
[ -r ".$dir/env" ] || fail "cannot read $dir/env on the host"
/bin/busybox cp ".$dir/env" /run/bpfunit
# shellcheck source=/dev/null
[ -z "$arch" ] || . ".$dir/foreign"
/bin/busybox mount --move /run run
/bin/busybox mount --move /dev dev
/bin/busybox mount --move /sys sys
/bin/busybox mount --move /proc proc
/bin/busybox mount --move . /
export BPFUNIT_WARM=$warm
exec /bin/busybox chroot . /run/bpfunit/busybox sh /run/bpfunit/stage2.sh
