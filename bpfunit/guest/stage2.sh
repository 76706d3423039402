# Second half of the guest's first process, in the host's tree. See init.sh. Its variables begin with
# _bpfunit_, since the worker's may have any other name.
# BusyBox has `read -t`, and the pattern of a port matches one; see there.
# shellcheck shell=dash disable=SC2046,SC3045
_bpfunit_bb=/run/bpfunit/busybox
cd /
_bpfunit_warm=$BPFUNIT_WARM
unset BPFUNIT_WARM
. /run/bpfunit/env
if [ -n "$BPFUNIT_MODULES" ] && [ ! -e "/lib/modules/${BPFUNIT_MODULES##*/}" ]; then
  $_bpfunit_bb mkdir -p /lib/modules
  $_bpfunit_bb ln -s "$BPFUNIT_MODULES" "/lib/modules/${BPFUNIT_MODULES##*/}"
fi

echo up >&3
if [ -n "$_bpfunit_warm" ]; then
  echo rooted >&5
  exec 5>&-
else
  (
    exec 3>&-
    cd "$BPFUNIT_CWD" || echo "bpfunit-init: cannot enter $BPFUNIT_CWD"
    exec 5<>$(echo /dev/vport*p1)
    (
      exec 4>&-
      eval "exec $BPFUNIT_COMMAND" <&5 >&5 5>&-
    )
    echo "exit $?" >&4
  ) &
fi

# Lines from the report pipe go out as they are. The beat comes through it too: a read with a time
# limit of its own would now and then break off in the middle of a line, and lose it. Reading from a
# pipe that nobody writes to is a sleep without a process.
(
  exec 3>&- 6<>/run/bpfunit/silence
  echo -1000 >/proc/self/oom_score_adj
  while :; do
    read -r -t 2 _bpfunit_line <&6
    echo beat
  done >&4
) &
_bpfunit_line=
until [ "${_bpfunit_line%% *}" = exit ]; do
  read -r _bpfunit_line <&4
  echo "$_bpfunit_line" >&3
done
$_bpfunit_bb reboot -f
