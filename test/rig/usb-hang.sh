#!/bin/bash
# A USB device of the host that hangs, by Linux's own USB core and libusb (test/hw/usb/hanging-device.test.ts), also while
# it ends a transfer, and another device of the host that goes on meanwhile. It needs no guest: the devices are programs,
# by USB/IP. Three minutes.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
! is_outside || need_rig
bundle_suite test/hw/usb/hanging-device.test.ts hanging-device || exit 1
if is_outside; then
  export RIG_TIMEOUT=${RIG_TIMEOUT:-240}
  enter_rig RIG_TIMEOUT
  exit
fi
modprobe -d "$HSMRIG_BUILD/image" -S "$(cat "$HSMRIG_BUILD/ready")" --show-depends vhci_hcd |
  awk '$1 == "insmod" { print $2 }' | while read -r module; do insmod "$module" 2> /dev/null; done
for _ in $(seq 50); do [ -e /sys/devices/platform/vhci_hcd.0/attach ] && break; sleep 0.2; done
timeout -s KILL $((RIG_TIMEOUT - 20)) node "$bundle"
