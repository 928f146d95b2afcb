# lib.sh: for the scripts beside it, each a test of ACRN's own managers, built from its sources, with our device model on the
# embedded hypervisor. Everything runs in namespaces of its own: no file, process or port of this machine is touched.
#
#   ACRN_SRC=DIR test/managers/acrnctl.sh     builds them at the first time (build.sh), runs
#   MANAGERS=DIR …                            where they are built, .cache/managers
#   DM="node DIR/acrn-dm.js" …                another device model than dist/acrn-dm.js
#   KEEP=DIR …                                keeps the files of the run there
#
# A script sources this first. Status: 0 passed or skipped (and said so), 1 failed.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
managers=${MANAGERS:-$repo/.cache/managers}

if [ -z "${MANAGERS_INSIDE:-}" ]; then
  if [ "$(id -u)" != 0 ]; then echo "skipped: needs root"; exit 0; fi
  if [ ! -d "$repo/node_modules/v86" ]; then echo "skipped: the optional package v86 is not installed"; exit 0; fi
  "$repo/test/managers/build.sh" "$managers" > /tmp/managers-build.$$ 2>&1
  status=$?
  if [ $status = 77 ]; then echo "skipped: $(tail -1 "/tmp/managers-build.$$")"; rm -f /tmp/managers-build.$$; exit 0; fi
  if [ $status != 0 ]; then tail -20 /tmp/managers-build.$$; rm -f /tmp/managers-build.$$; exit 1; fi
  rm -f /tmp/managers-build.$$
  if ! unshare -m -p -n --fork --mount-proc true 2> /dev/null; then echo "skipped: no namespaces here"; exit 0; fi
  scratch=${KEEP:-$(mktemp -d)}
  mkdir -p "$scratch"
  MANAGERS_INSIDE=$scratch unshare -m -p -n --fork --mount-proc --kill-child bash "$0" "$@" &
  inside=$!
  # Whoever ends this script ends what is inside.
  trap 'kill -KILL $inside; exit 143' TERM INT
  wait $inside
  status=$?
  [ -n "${KEEP:-}" ] || rm -rf "$scratch"
  exit $status
fi

scratch=$MANAGERS_INSIDE
# What the managers and the device model write to. acrnctl has buffers of 128 bytes: short paths.
mount -t tmpfs managers /run
mkdir -p "$scratch/etc" /run/bin /run/t
cp -a /etc/. "$scratch/etc"
mount --bind "$scratch/etc" /etc
for place in /usr/share /var/lib /var/log; do mount -t tmpfs managers $place; done
ip link set lo up
cp "$managers"/{acrnctl,acrnd,life_mngr} /run/bin
printf '#!/bin/sh\nexec %s "$@"\n' "${DM:-node "$repo/dist/acrn-dm.js"}" > /run/bin/acrn-dm
# To the example scripts it means a program's path.
unset DM
printf '#!/bin/sh\nexec node "%s" "$@"\n' "$repo/dist/acrnvm.js" > /run/bin/acrnvm
# life_mngr ends the machine by this name.
printf '#!/bin/sh\necho "$0" >> /run/t/poweroff\n' > /run/bin/poweroff
cp /run/bin/poweroff /run/bin/reboot
chmod +x /run/bin/*
export PATH=/run/bin:$PATH
unset XDG_RUNTIME_DIR ACRN_RUN_DIR
cd /run/t || exit 1
demo=$repo/examples/guest/demo.bzimage
exec < /dev/null

failures=0
passes=0
# check WHAT COMMAND...: one thing that has to be so.
check() {
  local what=$1
  shift
  if "$@" > "$scratch/check.log" 2>&1; then
    echo "ok      $what"
    passes=$((passes + 1))
  else
    echo "FAILED  $what: $*"
    tail -5 "$scratch/check.log"
    failures=$((failures + 1))
  fi
}
# within SECONDS COMMAND...: until it is so.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}
fails() { ! "$@"; }
# said TEXT COMMAND...: what it prints has TEXT in it.
said() {
  local text=$1
  shift
  "$@" 2>&1 | tee /dev/stderr | grep -q -- "$text"
}
# The state acrnctl shows of a VM, or nothing.
state() { timeout 10 acrnctl list | awk -v vm="$1" '$1 == vm { print $2 }'; }
is() { [ "$(state "$1")" = "$2" ]; }
# The process of a VM, by the socket that acrnctl finds it by.
pid_of() { ls /run/acrn/mngr 2> /dev/null | sed -n "s/^$1\.monitor\.\([0-9]*\)\.socket$/\1/p"; }
runs() { [ -n "$(pid_of "$1")" ] && kill -0 "$(pid_of "$1")"; }
is_gone() { [ -z "$(pid_of "$1")" ]; }
no_dm() { [ "$(pgrep -u root -f acrn-dm | wc -l)" = 0 ]; }
# took COMMAND...: its time, $took_ms.
took() {
  local from=${EPOCHREALTIME/./} status
  "$@"
  status=$?
  took_ms=$(((${EPOCHREALTIME/./} - from) / 1000))
  return $status
}
# message SOCKET-PREFIX ID [HEX-DATA]: one 280-byte message; prints the number that the answer begins with.
message() {
  python3 - "$@" << 'PYTHON'
import glob, socket, struct, sys, time
prefix, number = sys.argv[1], int(sys.argv[2])
data = bytes.fromhex(sys.argv[3]) if len(sys.argv) > 3 else b''
s = socket.socket(socket.AF_UNIX)
s.settimeout(3)
s.connect(glob.glob(f'/run/acrn/mngr/{prefix}.*socket')[0])
# As C leaves them: the padding and the rest of the union are whatever was there.
s.send(struct.pack('<QIIQ', 0x67736d206d6d76, number, 0xdeadbeef, int(time.time())) + data + b'\xa5' * (256 - len(data)))
answer = s.recv(4096)
print(struct.unpack_from('<i', answer, 24)[0])
PYTHON
}

# launch_script FILE NAME BOOTARGS OPTION...: in the form of ACRN's own.
launch_script() {
  local file=$1 name=$2 bootargs=$3 option
  shift 3
  {
    echo '#!/bin/bash'
    echo "# launch script of $name"
    echo 'dm_params=('
    printf '    %s\n' '--hypervisor soft' '-m 128M' '-s 0:0,hostbridge' '-s 1:0,lpc' '-l com1,stdio'
    for option in "$@"; do echo "    $option"; done
    printf '    %s\n' "-k $demo" "-B '$bootargs'" "${name}"
    echo ')'
    echo 'echo "Launch device model with parameters: ${dm_params[*]}"'
    echo 'acrn-dm "${dm_params[@]}"'
    echo "echo \"status \$?\" > /run/t/$name.status"
  } > "$file"
}

finish() {
  # For KEEP, and for a look when something failed.
  [ "$failures" = 0 ] || tail -n 20 ./*.out ./*/log/* 2> /dev/null
  cp -r /run/t "$scratch/run" 2> /dev/null
  echo "${0##*/}: $passes passed, $failures failed"
  [ "$failures" = 0 ]
  exit
}
