# In the guest, at its first and at its second start: a disk and the ends of a VM. The host's part: ../virtio-ends.sh.
disk=/dev/vda
mkdir -p /mnt /tmp
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
# Where there is none the host has made the file system.
mount -t ext4 $disk /mnt 2> /dev/null || {
  /sbin/mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=1 $disk || bad "mke2fs"
  mount -t ext4 $disk /mnt || bad "mount"
}
if [ -e /mnt/first ]; then
  ok "second boot: mounted"
  (cd /mnt/first && md5sum -c sums > /tmp/checked 2>&1) && ok "what was synced before the reboot is there" || bad "lost: $(grep -v OK /tmp/checked)"
  fill second
  scribble &
  sleep 1
  echo SYNCED
  sleep 1000
else
  fill first
  ok "first boot: written"
  scribble &
  sleep 2
  reboot -f
fi
