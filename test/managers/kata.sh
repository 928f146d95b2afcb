#!/bin/bash
# The command line, sockets and signals of Kata Containers' driver for ACRN (its release 3.8, the last that has it), literally:
# consoles that listen before the guest runs and take one client after the other, eight empty disks that acrnctl fills, SIGINT.
. "$(dirname "$0")/lib.sh"

id=sandbox-0123456
vc=/run/vc/vm/$id
mkdir -p "$vc"
head -c 4M /dev/zero > image.raw
for slot in 5 12; do head -c 1M /dev/zero > layer-$slot.img; done
params="tsc=reliable no_timer_check nohpet console=tty0 console=ttyS0 console=hvc0 console=hvc1 iommu=off i915.enable_gvt=1 i915.domain_plane_owners=0x011111110000 root=/dev/vda1 rw rootwait rootfstype=ext4 quiet systemd.show_status=false panic=1 maxcpus=1 demo=button"
check "the kernel words are as many as Kata's" test ${#params} -gt 255
# kata NAME: as a child with its input closed.
kata() {
  local argv=(-A -m 256M -s 0:0,hostbridge -s 1:0,lpc -lcom1,stdio -s "3,virtio-console,@socket:console0=$vc/console.sock"
    -s 4,virtio-blk,/run/t/image.raw)
  local slot
  for slot in 5 6 7 8 9 10 11 12; do argv+=(-s "$slot,virtio-blk,nodisk"); done
  argv+=(-s "13,virtio-console,socket:agent.channel.0=$vc/kata.sock" -s 14,virtio-net,tap0_kata,mac=02:00:ca:fe:00:04)
  acrn-dm --hypervisor soft "${argv[@]}" -k "$demo" -B "$params" "$1" <&- > dm.out 2> dm.err &
  dm=$!
}
# talk SOCKET: connects, stays for a moment.
talk() { timeout 30 python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(0.3)' "$1"; }

kata $id
check "both sockets listen" within 30 eval '[ -S $vc/console.sock ] && [ -S $vc/kata.sock ]'
check "the guest runs" within 30 grep -q 'button: waiting' dm.out
check "its console takes a client" talk $vc/console.sock
check "and another one after it" talk $vc/console.sock
check "so does the agent's channel" eval 'talk $vc/kata.sock && talk $vc/kata.sock'
check "acrnctl sees it" within 5 is $id started
for slot in 5 12; do
  check "the empty disk in slot $slot is filled" eval 'acrnctl blkrescan $id '$slot,/run/t/layer-$slot.img' | tee /dev/stderr | fails grep .'
done
check "once" said 'errno(-1)' acrnctl blkrescan $id 5,/run/t/layer-5.img
kill -INT "$dm"
check "SIGINT ends it" took wait "$dm"
check "within 15 s" test "$took_ms" -lt 15000
check "nothing of it is left" eval '! ls $vc/*.sock 2> /dev/null && is_gone $id'

long=sandbox-$(printf '%064d' 7)
kata "$long"
wait "$dm"
status=$?
check "a name of 72 bytes is refused as by C, with status 64" test $status = 64
check "in one line that says how long it may be" grep -q '15' dm.err
finish
