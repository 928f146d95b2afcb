#!/bin/bash
# ../doorbells/run.sh on the rig's own KVM: two VMs in two processes ring each other, a third joins and leaves, a fourth is
# killed. CPUS, GROUP, BLOCKS, BLOCK_BYTES, VISITS and LIMIT_S are explained there; each visit starts a VM, which takes some seconds here.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
if is_outside; then
  need_rig
  GUESTS=$(mktemp -d)
  trap 'rm -rf "$GUESTS"' EXIT
  export GUESTS ENGINE=kvm RIG_TIMEOUT=${RIG_TIMEOUT:-300}
  export BLOCKS=${BLOCKS:-5000} BLOCK_BYTES=${BLOCK_BYTES:-4096} VISITS=${VISITS:-3} LIMIT_S=${LIMIT_S:-240} CPUS=${CPUS:-} GROUP=${GROUP:-}
  BUILD_ONLY=1 "$repo/test/doorbells/run.sh"
  [ -e "$GUESTS/flooder" ] || exit 0
  enter_rig CPUS GROUP ENGINE GUESTS BLOCKS BLOCK_BYTES VISITS LIMIT_S
  exit
fi
mkdir -p /run/acrn
# Outside it can be looked at while it goes on.
export KEEP=${OUT:-/run}/bells
mkdir -p "$KEEP"
# For users who are in no group of this machine's.
[ -z "${GROUP:-}" ] || chmod 666 /dev/kvm
"$repo/test/doorbells/run.sh"
