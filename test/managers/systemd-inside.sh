# systemd-inside.sh: what systemd.sh runs in its Debian, as a service of systemd.
passes=0
failures=0
check() {
  local what=$1
  shift
  if "$@" > /rig/check.log 2>&1; then
    echo "ok      $what"
    passes=$((passes + 1))
  else
    echo "FAILED  $what: $*"
    sed 's/^/   /' /rig/check.log | tail -5
    failures=$((failures + 1))
  fi
}
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.5
  done
}
took() {
  local from=${EPOCHREALTIME/./} status
  "$@"
  status=$?
  took_ms=$(((${EPOCHREALTIME/./} - from) / 1000))
  return $status
}
show() { systemctl show -P "$2" "acrn-vm@$1"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
# journal VM TEXT
journal() { journalctl -q -u "acrn-vm@$1" --no-pager -o cat | grep -q "$2"; }
fails() { ! "$@"; }

# TCG is ten times slower than a machine: its own time limits would hit there.
for limit in WatchdogSec=60 TimeoutStartSec=300; do
  mkdir -p /etc/systemd/system/acrn-vm@.service.d
  { echo '[Service]'; echo "$limit"; } > "/etc/systemd/system/acrn-vm@.service.d/${limit%%=*}.conf"
done
systemctl daemon-reload
echo "-- $(systemctl --version | head -1)"
check "the unit is in order" eval '[ -z "$(systemd-analyze verify /etc/systemd/system/acrn-vm@.service 2>&1)" ]'
# "overall exposure level", from 0 to 10; without any of the unit's limits it is 9.6.
exposure=$(systemd-analyze security --no-pager acrn-vm@idle 2>/dev/null | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
echo "        exposure ${exposure:-unknown}"
check "the unit keeps what a VM does not need from it" eval 'awk "BEGIN { exit !(${exposure:-10} <= 8) }"'

echo "-- start"
check "systemctl start comes back once the guest runs" took systemctl start acrn-vm@idle
echo "        after $took_ms ms"
check "the guest runs" within 30 grep -q 'idle: sleeping' /rig/idle.console
check "active" is idle ActiveState active
check "systemctl status says so" eval 'systemctl status acrn-vm@idle --no-pager | grep -q "Status:.*idle: running"'
check "the API is there" eval 'acrnvm info idle | grep -q running'

echo "-- crash"
pid=$(show idle MainPID)
kill -KILL "$pid"
check "kill -9: it is started again" within 120 eval '[ "$(show idle MainPID)" != "'"$pid"'" ] && is idle ActiveState active'
check "once" is idle NRestarts 1
check "its sockets are those of the new process" eval 'acrnvm info idle | grep -q running'

echo "-- a stop"
check "systemctl stop" took systemctl stop acrn-vm@idle
echo "        after $took_ms ms"
check "within TimeoutStopSec" test "$took_ms" -lt 30000
check "it is inactive, not failed" is idle ActiveState inactive
check "with success" within 30 journal idle 'Deactivated successfully'

echo "-- what another start would find wrong again"
systemctl start acrn-vm@broken > /rig/broken.log 2>&1
check "a broken file is a failed service" is broken ActiveState failed
check "with the status that says why" eval '[[ "$(show broken ExecMainStatus)" =~ ^(64|65|66|77|78)$ ]]'
check "the journal has its line and column" within 60 journal broken 'broken.yaml:[0-9]*:[0-9]*: '
sleep 8
check "it is not started again" is broken NRestarts 0
rm /rig/disk.img
systemctl start acrn-vm@disk > /rig/disk.log 2>&1
check "neither is one whose disk is missing" eval 'sleep 8; is disk ActiveState failed && is disk NRestarts 0'
echo "        status $(show disk ExecMainStatus)"

echo "-- a guest that takes its time to shut down"
systemctl start acrn-vm@slow
within 60 grep -q 'button: waiting' /rig/slow.console
check "it is asked" eval 'systemctl stop --no-block acrn-vm@slow && within 60 grep -q "button: pressed" /rig/slow.console'
check "deactivating meanwhile" is slow ActiveState deactivating
check "and the status says so" eval '[[ "$(show slow StatusText)" = *"shutting down"* ]]'
sleep 32
check "it has more time than TimeoutStopSec, as it asked for" is slow ActiveState deactivating
check "until it is through" within 280 is slow ActiveState inactive
check "it powered itself off" grep -q Goodbye /rig/slow.console
# An instance that is over is forgotten, with its result: the journal has it.
check "with success" within 30 journal slow 'Deactivated successfully'
check "nobody killed it" fails journal slow 'Killing\|timed out\|Failed with'

echo "-- a guest that does not listen"
systemctl start acrn-vm@deaf
within 60 grep -q 'idle: sleeping' /rig/deaf.console
check "is stopped at once" took systemctl stop acrn-vm@deaf
check "within TimeoutStopSec" test "$took_ms" -lt 30000
check "with success" within 30 journal deaf 'Deactivated successfully'

echo "-- one thread stands still"
: > /rig/disk.img
truncate -s 1M /rig/disk.img
sed -i 's/60/12/' /etc/systemd/system/acrn-vm@.service.d/WatchdogSec.conf
systemctl daemon-reload
systemctl reset-failed
systemctl start acrn-vm@idle
within 30 is idle ActiveState active
sleep 15
check "a VM that is well is left alone by a watchdog of 12 s" is idle NRestarts 0
pid=$(show idle MainPID)
# SIGSTOP stops every thread of a process, whichever it is sent to.
kill -STOP "$pid"
check "SIGSTOP: the watchdog ends it, and it is started again" within 200 eval '[ "$(show idle MainPID)" != "'"$pid"'" ] && is idle ActiveState active'
check "the journal says that it was the watchdog" journal idle 'Watchdog timeout'
systemctl stop acrn-vm@idle
check "nothing is left" eval '! pgrep -f acrn-dm.js'
[ "$failures" = 0 ] || journalctl -q --no-pager -o short-monotonic -u 'acrn-vm@*' | tail -60
echo "systemd: $passes passed, $failures failed"
