# Second half of the guest's first process, in the host's tree. See init.sh.
bb=/run/bpfunit/busybox
cd /
. /run/bpfunit/env
$bb mount -t sysfs sys /sys
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
$bb mount -t tmpfs -o mode=1777 shm /dev/shm
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb mount -t bpf bpf /sys/fs/bpf
$bb mount -t debugfs debug /sys/kernel/debug
$bb mount -t tracefs trace /sys/kernel/tracing
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
  $bb ln -sfn "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
$bb ip link set lo up
echo bpfunit >/proc/sys/kernel/hostname
if [ -n "$BPFUNIT_MODULES" ] && [ ! -e "/lib/modules/${BPFUNIT_MODULES##*/}" ]; then
  $bb mkdir -p /lib/modules
  $bb ln -s "$BPFUNIT_MODULES" "/lib/modules/${BPFUNIT_MODULES##*/}"
fi
ulimit -l unlimited
ulimit -n 1048576 2>/dev/null

$bb mkfifo /run/bpfunit/report
# The kernel adds ports one by one, after the device; the number in front is the device's.
until [ -c /dev/vport*p1 ] && [ -c /dev/vport*p2 ]; do $bb usleep 20000; done
stream=$(echo /dev/vport*p1)
exec 3>$(echo /dev/vport*p2) 4<>/run/bpfunit/report
echo up >&3
(
  exec 3>&-
  cd "$BPFUNIT_CWD" || echo "bpfunit-init: cannot enter $BPFUNIT_CWD"
  exec 5<>$stream
  (
    exec 4>&-
    eval "exec $BPFUNIT_COMMAND" <&5 >&5 5>&-
  )
  echo "exit $?" >&4
) &

# A line from the report pipe goes out as it is; two seconds without one are a sign of life.
line=
until [ "${line%% *}" = exit ]; do
  if read -r -t 2 line <&4; then echo "$line" >&3; else line=; echo beat >&3; fi
done
$bb reboot -f
