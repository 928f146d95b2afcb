#!/bin/bash
# Linux's own AHCI driver on the embedded hypervisor: root on a disk (`ahci,hd:`), MIB mebibytes written, read back after a
# new mount and found whole by the host; a disc made with xorriso read from `cd:`, taken out and changed while the guest
# runs; TRIM, a second disk with sectors of 4 KiB.
MODULES="ahci sd_mod sr_mod isofs ext4 crc32c_generic"
# On a machine with other work give it SLOW=4, for as many times as long.
MIB=${MIB:-64}
. "$(dirname "$0")/lib.sh"
for tool in xorriso mke2fs e2fsck; do
  command -v "$tool" > /dev/null || { echo "skipped: no $tool"; exit 0; }
done

# The root: busybox and the test as its first program.
root=$scratch/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,mnt,cd}
cp "$debian/busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$soft_repo/test/guest/inside/ahci.sh" "$root/sbin/test"
chmod 755 "$root/sbin/test"
truncate -s $((2 * MIB + 48))M "$scratch/disk.img"
mke2fs -q -t ext4 -b 4096 -I 256 -d "$root" "$scratch/disk.img"
truncate -s 16M "$scratch/second.img"

# disc NAME MIB: an ISO 9660 image with files and their sums.
disc() {
  local dir=$scratch/$1
  mkdir -p "$dir/deep/er"
  echo "$1" > "$dir/name"
  head -c "$2M" /dev/urandom > "$dir/deep/er/data.bin"
  head -c 100001 /dev/urandom > "$dir/odd.bin"
  (cd "$dir" && md5sum name odd.bin deep/er/data.bin > SUMS)
  xorriso -as mkisofs -quiet -R -J -V "$1" -o "$scratch/$1.iso" "$dir"
}
disc first $(((MIB + 7) / 8))
disc other 1

# The initramfs only gets the root going.
cat > "$scratch/guest.sh" << 'EOF'
mkdir -p /mnt
# The kernel looks at the ports beside its start.
i=0
while [ $i -lt 300 ] && ! { [ -e /dev/sda ] && [ -e /dev/sdb ] && [ -e /dev/sr0 ]; }; do sleep 0.2; i=$((i + 1)); done
# ... and at several at once: names are not in the order of ports.
for disk in sda sdb; do case $(readlink -f /sys/block/$disk) in */ata1/*) echo $disk > /tmp/root ;; *) echo $disk > /tmp/second ;; esac; done
mount -t ext4 /dev/$(cat /tmp/root) /mnt || bad "the root"
cp /tmp/root /tmp/second /mnt/
for dir in proc sys dev; do mount -o bind /$dir /mnt/$dir; done
chroot /mnt /sbin/test
umount /mnt/proc /mnt/sys /mnt/dev
umount /mnt && ok "the root is unmounted" || bad "the root is busy"
EOF
guest_script "$scratch/guest.sh"

monitor() { printf '{"command":"%s","arguments":"%s"}' "$1" "$2" | socat -t 10 - "UNIX-CONNECT:$scratch/manager" > "$scratch/manager.log"; }
answered() { monitor "$@" && grep -q '"ack":.0' "$scratch/manager.log"; }

WORDS="mib=$MIB" start_dm --cmd_monitor "$scratch/manager" \
  -s "7,ahci,hd:$scratch/disk.img,discard,writeback,cd:$scratch/first.iso,hd:$scratch/second.img,sectorsize=4096"
# What is written is read back, and a second disk and two discs are read: a guest of an interpreter takes seconds a MiB.
wait=$((300 + 20 * MIB))
check "the guest has read the first disc" wait_for $wait "STAGE eject"
check "a disc cannot be put over another" test "$(monitor insert "7@1,$scratch/other.iso"; grep -c '"ack":.-1' "$scratch/manager.log")" = 1
check "eject" answered eject 7@1
check "the guest sees an empty drive" wait_for 120 "STAGE insert"
check "insert" answered insert "7@1,$scratch/other.iso"
check "a disk is not a drive" test "$(monitor eject 7@0; grep -c '"ack":.-1' "$scratch/manager.log")" = 1
wait_dm $((200 + 4 * MIB))
check "the device model ends with 0" test $? = 0
guest_results
check "fsck on the host" e2fsck -fn "$scratch/disk.img"
mkdir -p "$scratch/mnt"
check "mount on the host" mount -o loop,ro "$scratch/disk.img" "$scratch/mnt"
check "what the guest wrote is there" sh -c "cd '$scratch/mnt/data' && md5sum -c --quiet SUMS"
umount "$scratch/mnt"
sum=$(head -c 1M /dev/zero | tr '\0' 'Z' | md5sum)
check "the second disk has what was written to its end" test "$(tail -c 1M "$scratch/second.img" | md5sum)" = "$sum"
finish
