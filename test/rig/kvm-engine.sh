#!/bin/bash
# test/hypervisor/kvm/real-kvm.test.ts on the rig's KVM.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
! is_outside || need_rig
bundle_suite test/hypervisor/kvm/real-kvm.test.ts real-kvm || exit 1
if is_outside; then
  export RIG_TIMEOUT=${RIG_TIMEOUT:-240}
  enter_rig RIG_TIMEOUT
  exit
fi
mkdir -p /run/acrn
echo 200 > /proc/sys/vm/nr_hugepages
exec timeout -s KILL $((RIG_TIMEOUT - 20)) node "$bundle"
