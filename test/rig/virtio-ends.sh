#!/bin/bash
# What a disk keeps: data that was synced is there after a reboot in the middle of writing, and after kill -9 of the
# device model.
export RIG_APPEND="fake_acrn.strict=0" # a device model that is killed cannot pause its VM
. "$(dirname "$0")/lib.sh"

guest_script <<'EOF'
disk=/dev/vda
fill() { # DIR: files and their checksums, on disk when this returns
  mkdir /mnt/$1 && cd /mnt/$1 || bad "mkdir $1"
  for i in 1 2 3 4 5 6 7 8; do head -c $((i * 100000)) /dev/urandom > f$i; done
  md5sum f* > sums
  cd / && sync
}
scribble() { # goes on writing: the end comes in between
  while :; do
    dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync 2> /dev/null
    dd if=/dev/urandom of=/mnt/scribble2 bs=4k count=50 2> /dev/null
  done
}
if mount -t ext4 $disk /mnt 2> /dev/null; then
  ok "second boot: mounted"
  (cd /mnt/first && md5sum -c sums > /tmp/checked 2>&1) && ok "what was synced before the reboot is there" || bad "lost: $(grep -v OK /tmp/checked)"
  fill second
  scribble &
  sleep 1
  echo SYNCED
  sleep 1000
else
  /sbin/mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=1 $disk || bad "mke2fs"
  mount -t ext4 $disk /mnt || bad "mount"
  fill first
  ok "first boot: written"
  scribble &
  sleep 2
  reboot -f
fi
EOF

rig_modprobe ext4
for transport in $(transports); do
  for cache in ${CACHE:-writeback}; do
    echo "-- $transport, $cache"
    rm -f /run/disk.img
    truncate -s 64M /run/disk.img
    start_dm -s "3,virtio-blk,/run/disk.img,$cache,transport=$transport"
    wait_for 250 SYNCED
    kill -KILL "$dm"
    wait "$dm"
    guest_results SYNCED
    # The journal is replayed, as at the next start of the guest.
    e2fsck -fy /run/disk.img > /run/fsck.log 2>&1
    check "fsck is done with it" test $? -le 1
    check "and then finds nothing more" e2fsck -fn /run/disk.img
    mkdir -p /run/mnt
    check "mount on the host" mount -o loop /run/disk.img /run/mnt
    for dir in first second; do
      check "synced: $dir" sh -c "cd /run/mnt/$dir && md5sum -c sums && [ \$(wc -l < sums) = 8 ]"
    done
    umount /run/mnt
    # The runner lets go of a VM whose device model is gone.
    kill "$runner" 2> /dev/null
    unset runner
  done
done
finish
