#!/bin/bash
# acrnd from ACRN's sources, unmodified: starts every VM it knows, with no terminal and no standard input; its timers, over a
# restart; what it asks of the life-cycle service; the end of all VMs at its SIGTERM.
. "$(dirname "$0")/lib.sh"

for vm in one two; do
  launch_script $vm.sh $vm demo=idle '--shutdown-timeout 3'
  acrnctl add $vm.sh > add.out
done
check "two VMs are known" eval 'is one stopped && is two stopped'

# start_acrnd: in the background, $acrnd.
start_acrnd() {
  acrnd -d 0 > acrnd.out 2>&1 &
  acrnd=$!
  within 10 eval 'ls /run/acrn/mngr | grep -q "^acrnd\\."'
}
# stop_acrnd: by SIGTERM, until it is gone; $took_ms. What a deadlocked child of it keeps is C's fault (see the manual).
stop_acrnd() {
  kill -TERM "$acrnd"
  wait "$acrnd"
}
all_stopped() { is one stopped && is two stopped; }

echo "-- every VM is started"
check "acrnd runs" start_acrnd
check "both VMs are started" within 40 eval 'is one started && is two started'
check "their standard input is /dev/null" eval '[ "$(readlink /proc/"$(pid_of one)"/fd/0)" = /dev/null ]'
check "without a terminal" eval '[ "$(cut -d" " -f7 < /proc/"$(pid_of one)"/stat)" = 0 ]'
check "acrnd knows its VMs by their sockets: it starts none twice" eval 'bash one.sh > twice.out 2>&1; grep -q "runs already" twice.out'

echo "-- SIGTERM"
check "acrnd leaves once its VMs are stopped" took stop_acrnd
check "within its 20 s" test "$took_ms" -lt 20000
check "both are stopped" all_stopped
check "no process is left" within 5 no_dm
echo "        it took $took_ms ms, with guests that do not listen and 3 s for each"

echo "-- a timer"
start_acrnd
within 40 eval 'is one started && is two started'
acrnctl stop -f one > /dev/null
check "one is stopped" within 5 is one stopped
# struct req_acrnd_timer: char name[16], time_t t: seconds from now.
timer() { message acrnd 9 "$(printf '%-32s' "$(printf %s "$1" | od -An -tx1 | tr -d ' \n')" | tr ' ' 0)$(printf '%02x00000000000000' "$2")"; }
check "it is taken" eval '[ "$(timer one 8)" = 0 ]'
check "not of a VM there is none of" eval '[ "$(timer none 3)" = -1 ]'
sleep 1
check "it is not early" is one stopped
check "it starts the VM" within 20 is one started
check "its child acrnd gets a state it knows" fails grep -q 'unknow vm state' acrnd.out

echo "-- timers over a restart, woken by the RTC"
acrnctl stop -f one > /dev/null
within 5 is one stopped
check "a timer for later" eval '[ "$(timer one 30)" = 0 ]'
check "SIGTERM" stop_acrnd
check "the other is stopped, too" within 5 all_stopped
check "the timer is in its list" grep -q '^one' /usr/share/acrn/conf/timer_list
# The machine has woken for it: what tells so is a device and the life-cycle service.
mkdir "$scratch/dev"
mount -t tmpfs dev "$scratch/dev"
cp -a /dev/{null,zero,full,random,urandom,tty,fd,stdin,stdout,stderr} "$scratch/dev"
mkdir "$scratch/dev/pts" "$scratch/dev/shm"
: > "$scratch/dev/cbc-early-signals"
mount --rbind /dev/pts "$scratch/dev/pts"
mount -t tmpfs shm "$scratch/dev/shm"
ln -s pts/ptmx "$scratch/dev/ptmx"
mount --rbind "$scratch/dev" /dev
python3 "$repo/test/managers/lcs.py" 0x200 > lcs.out &
check "a life-cycle service is there" within 10 eval 'ls /run/acrn/mngr | grep -q ^service-vm-lcs'
start_acrnd
check "acrnd asks why the machine woke" within 5 grep -q '^16 ' lcs.out
check "no VM is started before its time" all_stopped
check "the one with a timer is at its time" within 40 is one started
check "the other is not" is two stopped

echo "-- the life-cycle service wants all to end"
check "it is heard" eval '[ "$(message acrnd 12 "000000000a000000")" = 0 ]'
acrnctl stop one > /dev/null
check "acrnd says that all are down" within 15 grep -q '^19 0' lcs.out
within 10 all_stopped
check "SIGTERM without VMs ends acrnd" took stop_acrnd
check "at once" test "$took_ms" -lt 4000
check "no process is left" within 5 no_dm
finish
