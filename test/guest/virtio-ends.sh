# What a disk keeps: data that was synced is there after a reboot in the middle of writing, and after kill -9 of the device
# model. CACHE: the disk's cache options, one after the other. For the lib.sh of test/rig and test/soft.
host_modules ext4
guest_script "$(dirname "${BASH_SOURCE[0]}")/inside/virtio-ends.sh"
image=$scratch/disk.img
mkdir -p "$scratch/mnt"
for transport in $(transports); do
  for cache in ${CACHE:-writeback}; do
    echo "-- $transport, $cache"
    rm -f "$image"
    truncate -s 64M "$image"
    host_mke2fs "$image"
    start_dm -s "3,virtio-blk,$image,$cache,transport=$transport"
    wait_for 250 SYNCED
    kill -KILL "$dm"
    wait "$dm" 2> /dev/null
    guest_results SYNCED
    # The journal is replayed, as at the next start of the guest.
    e2fsck -fy "$image" > "$scratch/fsck.log" 2>&1
    check "fsck is done with it" test $? -le 1
    check "and then finds nothing more" e2fsck -fn "$image"
    check "mount on the host" mount -o loop "$image" "$scratch/mnt"
    for dir in first second; do
      check "synced: $dir" sh -c "cd '$scratch/mnt/$dir' && md5sum -c sums && [ \$(wc -l < sums) = 8 ]"
    done
    umount "$scratch/mnt"
    dm_was_killed
  done
done
finish
