#!/bin/bash
# ../guest/virtio-ends.sh on the embedded hypervisor.
MODULES="virtio_pci virtio_blk ext4 crc32c_generic"
. "$(dirname "$0")/lib.sh"
. "$soft_repo/test/guest/virtio-ends.sh"
