#!/bin/bash
# libvirt's own driver for Cloud Hypervisor, unmodified, runs a Debian guest here: virsh define, start, list, dominfo, console,
# suspend, resume, reboot, shutdown, destroy.
#   LIBVIRT_CH=DIR   where ../shared/tools/libvirt-ch/build.sh has built it (default /var/tmp/libvirt-ch)
MODULES="button evdev virtio_pci virtio_blk virtio_console"
. "$(dirname "$0")/lib.sh"

libvirt=${LIBVIRT_CH:-/var/tmp/libvirt-ch}
if [ ! -x "$libvirt/virsh" ] || [ "$(id -u)" != 0 ]; then
  echo "skipped: no libvirt with its Cloud Hypervisor driver in $libvirt, or not root"
  exit 0
fi
if [ -S /var/local/run/libvirt/virtchd-sock ] && timeout 10 "$libvirt/virsh" -c ch:///system version > /dev/null 2>&1; then
  echo "skipped: a virtchd runs already"
  exit 0
fi

domain=soft$$
virsh() { timeout 60 "$libvirt/virsh" -q -c ch:///system "$@"; }
state() { virsh domstate "$domain" | head -1; }
api() { curl -s --max-time 20 --unix-socket "/var/local/run/libvirt/ch/$domain-socket" "http://vm$1"; }

# The guest talks on hvc0, and powers off by its button.
cat > "$scratch/guest.sh" << 'GUEST'
for e in /dev/input/event*; do
  [ -e $e ] && (dd if=$e of=/dev/null bs=16 count=1 2> /dev/null && poweroff -f) &
done
exec < /dev/hvc0 > /dev/hvc0 2>&1
stty -echo
echo "guest is up"
while :; do read -r line && eval "$line" || sleep 1; done
GUEST
guest_script "$scratch/guest.sh"
head -c 8M /dev/urandom > "$scratch/disk.img"
cat > "$scratch/domain.xml" << XML
<domain type='kvm'><name>$domain</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type><kernel>$debian/vmlinuz</kernel><initrd>$scratch/initrd</initrd>
<cmdline>panic=-1 quiet mitigations=off noisapnp cryptomgr.notests run=sh@/test</cmdline></os>
<devices><disk type='file' device='disk'><source file='$scratch/disk.img'/><target dev='vda' bus='virtio'/></disk>
<console type='pty'><target type='virtio' port='0'/></console></devices></domain>
XML

mkdir -p "$scratch/bin" /var/local/{run,lib,log,cache}/libvirt
ln -s "$soft_repo/dist/acrn-dm.js" "$scratch/bin/cloud-hypervisor"
PATH=$scratch/bin:$PATH "$libvirt/virtchd" -t 600 > "$scratch/virtchd.log" 2>&1 &
for ((i = 0; i < 100; i++)); do
  virsh version > /dev/null 2>&1 && break
  sleep 0.2
done

# at_console WORDS ANSWER: types a line at `virsh console` again and again, until the answer is there.
at_console() {
  timeout 240 python3 - "$libvirt/virsh" "$domain" "$1" "$2" << 'PYTHON'
import os, pty, select, sys, time
virsh, domain, words, answer = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(virsh, [virsh, '-c', 'ch:///system', 'console', domain])
seen, typed_at, end = b'', 0, time.time() + 220
while answer.encode() not in seen and time.time() < end:
    if select.select([terminal], [], [], 0.5)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    # Before it is connected it would take what is typed for its own.
    if b'Escape character' in seen and time.time() - typed_at > 5:
        os.write(terminal, words.encode() + b'\r')
        typed_at = time.time()
os.write(terminal, b'\x1d')
os.waitpid(pid, 0)
if answer.encode() not in seen:
    sys.exit(f'the console showed {seen[-400:]!r}')
PYTHON
}
# within SECONDS COMMAND: until it is true.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.5
  done
}
is_state() { [ "$(state)" = "$1" ]; }
has_event() { api '/v1/events?since=0&wait=0' | grep -q "$1"; }

check "virsh define" virsh define "$scratch/domain.xml"
check "virsh start" virsh start "$domain"
check "virsh list shows it" sh -c "timeout 60 '$libvirt/virsh' -c ch:///system list | grep -q '$domain *running'"
check "virsh dominfo knows its memory" sh -c "timeout 60 '$libvirt/virsh' -c ch:///system dominfo $domain | grep -q 262144"
check "virsh console reaches its shell" at_console 'echo sum-$((40+2))' 'sum-42'
check "it is Debian, with the disk" at_console 'echo disk-$(cat /sys/block/vda/size)' 'disk-16384'
check "virsh suspend" virsh suspend "$domain"
check "it is paused, by libvirt and by itself" sh -c "[ '$(state)' = paused ] && curl -s --unix-socket /var/local/run/libvirt/ch/$domain-socket http://vm/v1/vm | grep -q paused"
check "virsh resume" virsh resume "$domain"
check "it goes on" at_console 'echo sum-$((50+3))' 'sum-53'
check "virsh reboot" virsh reboot "$domain"
check "it comes up again" at_console 'echo sum-$((60+4))' 'sum-64'
check "virsh shutdown" virsh shutdown "$domain"
check "the guest powered itself off" within 60 has_event 'guest entered ACPI S5'
check "virsh destroy" virsh destroy "$domain"
check "nothing of it is left" within 30 sh -c "! pgrep -f '$scratch/bin/[c]loud-hypervisor' > /dev/null"
finish
