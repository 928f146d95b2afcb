#!/bin/bash
# acrnctl from ACRN's sources, unmodified, drives the demo guest on the embedded hypervisor: add, list, start, stop, reset,
# blkrescan, del; the names it takes for each other, what a killed VM leaves, scripts it can add.
. "$(dirname "$0")/lib.sh"

echo "-- add"
cp "$repo"/examples/launch/acrn-{kernel,linux}.sh .
: > initrd
# A CPU and a tap that change nothing here.
check "the example acrn-kernel.sh can be added" said 'VM1 added' acrnctl add acrn-kernel.sh "$demo" initrd VM1
check "the example acrn-linux.sh can be added" said 'POST_STD_VM1 added' env CPUS=999 TAP=lo acrnctl add acrn-linux.sh
check "both are stopped" eval 'is VM1 stopped && is POST_STD_VM1 stopped'
check "they are as they were" diff -r "$repo/examples/launch/acrn-kernel.sh" acrn-kernel.sh
check "del takes them away" eval 'acrnctl del VM1 && acrnctl del POST_STD_VM1 && acrnctl list | grep -q "no VMs"'
launch_script vm1.sh vm1 demo=echo '--shutdown-timeout 5' '-s 3,virtio-blk,nodisk'
launch_script vm10.sh vm10 demo=idle '--shutdown-timeout 5'
launch_script vm2.sh vm2 demo=idle '--shutdown-timeout 2'
check "a script as ACRN's configurator writes it can be added" said 'vm1 added' acrnctl add vm1.sh
check "a second one" said 'vm2 added' acrnctl add vm2.sh
check "a third one" said 'vm10 added' acrnctl add vm10.sh

echo "-- start"
acrnctl start vm1 > vm1.out 2> vm1.err &
check "a started VM is started" within 20 is vm1 started
runs vm1 || { cat vm1.out vm1.err; finish; }
check "within the second: it was not shown before it ran" grep -q '> ' vm1.out
check "start again is refused" said "can't start vm1(started)" acrnctl start vm1
check "and so is another acrn-dm of that name" eval 'bash vm1.sh > twice.log 2>&1; grep -q "runs already" twice.log && grep -qx "status 69" vm1.status'
check "del of a running VM is refused" said "can't delete vm1(started)" acrnctl del vm1
check "its process has acrn-dm in its command line, once" eval '[ "$(pgrep -f "acrn-dm" | grep -cx "$(pid_of vm1)")" = 1 ]'
check "a client of ours has not" eval 'acrnvm events -f vm1 > /dev/null 2>&1 & sleep 1; ! tr "\0" " " < /proc/$!/cmdline | grep acrn-dm; status=$?; kill $!; [ $status = 0 ]'
check "query answers 0" eval '[ "$(message vm1.monitor 6)" = 0 ]'
check "an answer takes less than a second with 4 silent clients" eval '
  python3 -c "
import glob, socket, time
path = glob.glob(\"/run/acrn/mngr/vm1.monitor.*\")[0]
held = []
for _ in range(4):
    held.append(socket.socket(socket.AF_UNIX)); held[-1].connect(path)
time.sleep(4)" & sleep 1; took is vm1 started && [ $took_ms -lt 1000 ]; status=$?; kill $!; [ $status = 0 ]'

echo "-- blkrescan"
head -c 1M /dev/zero > disk.img
check "refused for a file that is not there" said 'errno(-1)' acrnctl blkrescan vm1 3,/run/t/nothing.img
check "an empty slot takes its disk" eval '[ -z "$(acrnctl blkrescan vm1 3,/run/t/disk.img)" ]'
check "once" said 'errno(-1)' acrnctl blkrescan vm1 3,/run/t/disk.img
check "and not of a stopped VM" said 'should be in started' acrnctl blkrescan vm2 3,/run/t/disk.img

echo "-- stop"
was=$(pid_of vm1)
check "stop returns at once" eval 'took acrnctl stop vm1 && [ $took_ms -lt 1000 ]'
sleep 1.5
check "a guest that does not listen still runs" kill -0 "$was"
check "it is powered off when its time is over" within 10 is_gone vm1
check "and is stopped" within 2 is vm1 stopped
check "status 0" within 3 grep -qx 'status 0' vm1.status
check "no process of it is left" within 3 no_dm
check "stop of a stopped VM is refused" said 'already (stopped)' acrnctl stop vm1
launch_script vm3.sh vm3 demo=button,1
acrnctl add vm3.sh > add.out
acrnctl start vm3 > vm3.out 2>&1 &
within 20 grep -q 'button: waiting' vm3.out
check "a guest that listens hears of stop" acrnctl stop vm3
check "and powers itself off" within 10 grep -aq 'guest entered ACPI S5' vm3.out
check "it is stopped" within 5 is vm3 stopped
acrnctl del vm3
acrnctl start vm1 > vm1.out 2>&1 &
within 20 is vm1 started
check "stop -f is answered before the VM ends" eval 'took acrnctl stop -f vm1 && [ $took_ms -lt 1000 ]'
check "and ends it at once" within 2 is_gone vm1
check "stopped" is vm1 stopped
rm -f vm1.status

echo "-- reset"
acrnctl start vm2 > vm2.out 2>&1 &
within 20 is vm2 started
was=$(pid_of vm2)
acrnctl reset vm2 > reset.out 2>&1 &
check "reset brings a new process" within 20 eval '[ -n "$(pid_of vm2)" ] && [ "$(pid_of vm2)" != "$was" ]'
check "started" within 5 is vm2 started
check "without a complaint" fails grep -qi 'fail\|error' reset.out
acrnctl stop -f vm2
check "gone" within 5 is_gone vm2

echo "-- names"
acrnctl start vm10 > vm10.out 2>&1 &
within 20 is vm10 started
acrnctl start vm1 > vm1.out 2>&1 &
within 20 is vm1 started
check "a name that begins with another's is warned of" grep -q 'acrnctl may take "vm1" and "vm10" for each other' vm1.out
acrnctl stop -f vm1 > /dev/null
within 5 is_gone vm1
acrnctl stop -f vm10 > /dev/null
within 5 is_gone vm10
launch_script dot.sh my.vm demo=idle
bash dot.sh > dot.out 2>&1 &
check "a dot in a name is warned of" within 20 grep -q 'does not see a VM with a dot' dot.out
pkill -f 'my[.]vm'
check "it ends by SIGTERM" within 30 is_gone my.vm

echo "-- a killed VM"
acrnctl start vm1 > vm1.out 2>&1 &
within 20 is vm1 started
kill -9 "$(pid_of vm1)"
within 3 no_dm
check "shows as started, which is acrnctl's way" is vm1 started
check "acrnvm prune takes away what it left" acrnvm prune
check "now it is stopped" is vm1 stopped
acrnctl start vm1 > vm1.out 2>&1 &
within 20 is vm1 started
kill -9 "$(pid_of vm1)"
within 3 no_dm
bash vm1.sh > vm1.out 2>&1 &
check "and so does its next start" within 20 eval '[ "$(ls /run/acrn/mngr | grep -c ^vm1.monitor)" = 1 ] && runs vm1'
acrnctl stop -f vm1 > /dev/null
within 5 is_gone vm1
check "del" eval 'acrnctl del vm1 && acrnctl del vm2 && acrnctl del vm10 && acrnctl list | grep -q "no VMs"'
check "nothing is left in /run/acrn" eval '[ -z "$(find /run/acrn -type s)" ]'
finish
