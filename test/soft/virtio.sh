#!/bin/bash
# ../guest/virtio.sh on the embedded hypervisor. MIB: 64 takes a few minutes, the guest's own work (checksums, TCP) nearly
# all of them.
MODULES="virtio_pci virtio_blk virtio_net virtio_console virtio_rng ext4 crc32c_generic"
MIB=${MIB:-12}
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2034 # both for the script below
api_vm=soft$$ api_socket=${ACRN_RUN_DIR:-/run/acrn}/vm/soft$$/api.sock
. "$soft_repo/test/guest/virtio.sh"
