#!/bin/bash
# xhci.sh: Debian's xhci_hcd and usbhid on the embedded hypervisor, with the tablet of -s N,xhci,tablet. A viewer of the
# display moves it, and the guest's event device has to say where it is. With MSI, and with INTx (pci=nomsi).
MODULES="virtio_pci virtio_gpu xhci_pci usbhid hid_generic evdev"
. "$(dirname "$0")/lib.sh"
WIDTH=800 HEIGHT=600
socket=$scratch/vnc
viewer() { node --import tsx "$soft_repo/test/soft/viewer.ts" "$socket" "$@"; }

cat > "$scratch/guest.sh" <<'GUEST'
i=0; while ! grep -q "HID Tablet" /proc/bus/input/devices && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
grep -q "ACRN-DM HID Tablet" /proc/bus/input/devices && ok "the tablet is an input device" || bad "no tablet"
grep xhci /proc/interrupts
for d in /sys/bus/usb/devices/*/product; do echo "$(cat $d) at $(cat ${d%product}speed) Mbit/s"; done
event_of() { for d in /sys/class/input/event*; do ! grep -q "$1" $d/device/name || echo /dev/input/${d##*/}; done; }
# One at a time, as nothing here may be buffered.
events() {
  exec 3< $1
  # The kernel asks the tablet for reports from now on.
  echo LISTENING
  while true; do
    set -- $(dd bs=16 count=1 <&3 2> /dev/null | od -An -v -tu2)
    echo "POINTER $5 $6 $7"
  done
}
events $(event_of "HID Tablet") &
sleep 600
GUEST
guest_script "$scratch/guest.sh"

# moves WHAT: the viewer's pointer is the guest's.
moves() {
  check "$1: the guest listens" wait_for "${BOOT_S:-200}" LISTENING
  check "$1: the pointer moves" viewer point 400 300 1
  check "$1: x is right" wait_for 20 "POINTER 3 0 $(((400 * 32767 + 399) / 799))"
  check "$1: y is right" wait_for 20 "POINTER 3 1 $(((300 * 32767 + 299) / 599))"
  check "$1: the left button goes down" wait_for 20 "POINTER 1 272 1"
  check "$1: and up" wait_for 20 "POINTER 1 272 0"
  check "$1: the tablet is one of high speed" grep -aq "HID Tablet at 480 Mbit/s" "$guest_log"
  check "$1: nothing is bad" test "$(grep -ac '^BAD' "$guest_log")" = 0
  kill -TERM "$dm"
  sleep 1
  kill -TERM "$dm" 2> /dev/null
  wait_dm 30
}

devices=(--display "vnc=unix:$socket" -s 4,virtio-gpu,geometry=${WIDTH}x$HEIGHT+0+0 -s 8,xhci,tablet)
start_dm "${devices[@]}"
moves MSI
check "MSI: its interrupts are messages" grep -aq "MSI.*xhci" "$guest_log"

WORDS=pci=nomsi start_dm "${devices[@]}"
moves INTx
check "INTx: its interrupts come through the IOAPIC" grep -aq "IO-APIC.*fasteoi.*xhci" "$guest_log"
check "INTx: and each is somebody's" test "$(grep -ac 'nobody cared' "$guest_log")" = 0
finish
