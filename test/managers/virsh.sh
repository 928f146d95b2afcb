#!/bin/bash
# What users of virsh do beyond test/soft/libvirt.sh, with the demo guest: start twice, a console twice, what the driver cannot
# tell, destroy of a paused VM.
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
# Here it ends: libvirt 9.0 forgets a domain that was destroyed, since its virCHDomainRemoveInactive takes the persistent ones
# away and not the others; its daemon dies of starting it once more. Nothing that is answered there changes that.
check "no process is left" within 10 no_dm
kill "$daemon"
finish
