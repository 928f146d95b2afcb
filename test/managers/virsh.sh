#!/bin/bash
# What users of virsh do beyond test/soft/libvirt.sh, with the demo guest: a VM that crashes or is killed, autostart, a second
# console, destroy of a paused one, shutdown of a guest that listens, networks, two VMs at once, the daemon started again.
#   LIBVIRT_CH=DIR   where ../shared/tools/libvirt-ch/build.sh has built it (default /var/tmp/libvirt-ch)
libvirt=${LIBVIRT_CH:-/var/tmp/libvirt-ch}
if [ ! -x "$libvirt/virsh" ]; then echo "skipped: no libvirt with its Cloud Hypervisor driver in $libvirt"; exit 0; fi
. "$(dirname "$0")/lib.sh"

mount -t tmpfs libvirt /var/local
mkdir -p /run/lock
mkdir -p /var/local/{run,lib,log,cache}/libvirt
ln -s "$repo/dist/acrn-dm.js" /run/bin/cloud-hypervisor
virsh() { timeout 60 "$libvirt/virsh" -q -c ch:///system "$@"; }
start_daemon() {
  "$libvirt/virtchd" -t 600 > "$scratch/virtchd.log" 2>&1 &
  daemon=$!
  within 30 virsh version
}
domain() {
  cat << XML
<domain type='kvm'><name>$1</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type><kernel>$demo</kernel><cmdline>$2</cmdline></os>
<on_crash>destroy</on_crash>
<devices>$3<console type='pty'><target type='virtio' port='0'/></console></devices></domain>
XML
}
define() { domain "$@" > "$1.xml" && virsh define "$1.xml"; }
domstate() { virsh domstate "$1" | head -1; }
in_state() { [ "$(domstate "$1")" = "$2" ]; }
# The demo guest has no driver for the console that libvirt 9.0 can give it: whether virsh comes to it and leaves it again.
console() {
  timeout 60 python3 - "$libvirt/virsh" "$1" << 'PYTHON'
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], '-c', 'ch:///system', 'console', sys.argv[2]])
seen, end = b'', time.time() + 40
while b'Escape character' not in seen and time.time() < end:
    if select.select([terminal], [], [], 0.5)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
time.sleep(1)
os.write(terminal, b'\x1d')
if os.waitpid(pid, 0)[1] != 0 or b'Escape character' not in seen:
    sys.exit(f'it showed {seen[-400:]!r}')
PYTHON
}

check "the daemon runs" start_daemon
check "define" define echo demo=echo
check "start" virsh start echo
check "start again is refused" said 'already active' virsh start echo
check "console" console echo
check "console a second time" console echo
check "dominfo" said 'running' virsh dominfo echo
check "dumpxml has the pseudo terminal" eval 'virsh dumpxml echo | grep -q "/dev/pts/"'
check "vcpuinfo, or a reason" eval 'virsh vcpuinfo echo 2>&1 | grep -qE "VCPU|error"'
check "domblkstat, or a reason" eval 'virsh domblkstat echo vda 2>&1 | grep -qiE "error|rd"'
check "the domain answers afterwards" in_state echo running
check "suspend" virsh suspend echo
check "paused" in_state echo paused
check "destroy of a paused one" virsh destroy echo
# libvirt 9.0 forgets a domain that is destroyed.
check "no process is left" within 10 no_dm
check "define and start once more" eval 'define echo demo=echo && virsh start echo'
check "its console" console echo
check "two VMs at once" eval 'define button demo=button && virsh start button && in_state echo running && in_state button running'
check "shutdown of a guest that listens" eval 'sleep 2; virsh shutdown button'
check "shut off" within 30 in_state button 'shut off'
check "the other runs on" console echo
check "autostart, or a reason" eval 'virsh autostart echo 2>&1 | tee /dev/stderr | grep -qE "marked|not supported|error" || virsh autostart echo'

echo "-- killed"
pid=$(pgrep -f "bin/cloud-hypervisor" | tail -1)
check "there is a process" test -n "$pid"
kill -9 "$pid"
check "virsh answers about a killed VM" virsh dominfo echo
# libvirt 9.0 does not see that its process is gone, until somebody asks something of it.
check "destroy" eval 'virsh destroy echo; ! in_state echo running'
check "it starts again" eval 'define echo demo=echo; virsh start echo'
check "its console is there" console echo
virsh destroy echo

echo "-- a crash"
check "define" define crash demo=reboot,triple
check "start" virsh start crash
check "the guest is gone by itself" within 40 eval '[ "$(curl -s --unix-socket /var/local/run/libvirt/ch/crash-socket http://vm/api/v1/vm.info | grep -c Shutdown)" = 1 ]'
check "virsh answers" virsh dominfo crash
check "destroy" virsh destroy crash

echo "-- networks"
ip tuntap add dev vtap0 mode tap
check "ethernet with a tap" define eth demo=idle "<interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='vtap0' managed='no'/><model type='virtio'/></interface>"
check "starts" virsh start eth
check "or not, but is told of" eval 'virsh domstate eth'
virsh destroy eth > /dev/null 2>&1
check "user: refused with a reason, by libvirt or here" eval 'define user demo=idle "<interface type=\"user\"><model type=\"virtio\"/></interface>" && ! virsh start user > user.out 2>&1; cat user.out >&2; grep -q error user.out'
check "the daemon is well" virsh list --all

echo "-- a kernel that is not there"
check "define" eval 'domain gone demo=idle | sed "s|<kernel>.*</kernel>|<kernel>/nowhere</kernel>|" > gone.xml && virsh define gone.xml'
check "start says why" eval '! virsh start gone > gone.out 2>&1; cat gone.out >&2; grep -q error gone.out'
check "undefine" eval 'for d in echo button crash eth user gone; do virsh destroy $d; virsh undefine $d; done; [ -z "$(virsh list --all --name | tr -d "\n")" ]'
check "no process is left" within 10 eval '! pgrep -f "bin/cloud-hypervisor"'
kill "$daemon"
finish
