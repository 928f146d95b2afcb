#!/bin/bash
# As virtio.sh, over the modern transport.
TRANSPORT=modern exec "$(dirname "$0")/virtio.sh"
