#!/bin/sh
# In the guest, from its root on an AHCI disk: disks and a CD drive by Linux's own driver. The host's part: ../../soft/ahci.sh.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
ok() { echo "OK $*"; }
bad() { echo "BAD $*"; }
says() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: $2, not $3"; fi; }
MIB=$(tr ' ' '\n' < /proc/cmdline | sed -n 's/^mib=//p')
stage() { read -r up _ < /proc/uptime; echo "STAGE $1 after $up s"; }

disk=$(cat /root) second=$(cat /second)

stage disk
says "the root is a disk of ahci" "$(readlink -f /sys/block/$disk | grep -c 0000:00:07.0/ata)" 1
says "model" "$(cat /sys/block/$disk/device/model)" "ACRN-DM SATA DIS"
says "queue depth" "$(cat /sys/block/$disk/device/queue_depth)" 32
says "errors of the link" "$(dmesg | grep -cE 'ata[0-9.]+: (exception|failed command|hard resetting|SError)')" 0
says "sectors of 4 KiB" "$(cat /sys/block/$second/queue/logical_block_size)" 4096
# Pieces of all sizes, each with its number: data that landed in another's place would show.
mkdir -p /data && cd /data || bad "mkdir"
dd if=/dev/urandom of=/tmp/seed bs=64k count=16 2> /dev/null
piece=0 left=$((MIB * 1024))
while [ $left -gt 0 ]; do
  kib=$(($(od -An -N2 -tu2 /dev/urandom) % 1000 + 1))
  [ $kib -gt $left ] && kib=$left
  { echo "piece $piece"; cat /tmp/seed; } | head -c $((kib * 1024 - piece % 3)) > f$piece
  left=$((left - kib)) piece=$((piece + 1))
  [ $((piece % 16)) = 0 ] && sync
done
md5sum f* > SUMS
sync
cd /
echo 3 > /proc/sys/vm/drop_caches
(cd /data && md5sum -c SUMS) > /tmp/checked 2>&1 && ok "$(grep -c OK /tmp/checked) files of $MIB MiB in all are the same when read back" ||
  bad "checksums: $(grep -v OK /tmp/checked | head -3)"
dd if=/dev/$disk of=/dev/null bs=52k count=40 skip=3 iflag=direct 2> /dev/null && ok "direct reads" || bad "direct reads"
end=$(($(cat /sys/block/$second/size) / 2048 - 1))
head -c 1048576 /dev/zero | tr '\0' 'Z' | dd of=/dev/$second bs=1M seek=$end conv=fsync 2> /dev/null && ok "the end of a disk" || bad "the end of a disk"
dd if=/dev/zero of=/dev/$second bs=1M seek=16 count=1 conv=fsync 2> /dev/null && bad "writing behind the end" || ok "nothing behind it"
[ "$(cat /sys/block/$disk/queue/discard_max_bytes)" -gt 0 ] && ok "TRIM is offered" || bad "TRIM"
mkdir -p /trim && dd if=/dev/urandom of=/trim/file bs=1M count=4 2> /dev/null && sync && rm /trim/file && sync
fstrim -v / > /tmp/trimmed 2>&1 && ok "fstrim: $(cat /tmp/trimmed)" || bad "fstrim: $(cat /tmp/trimmed)"

stage disc
says "a CD drive" "$(cat /sys/block/sr0/device/model)" "ACRN-DM DVD-ROM "
mount -t iso9660 -o ro /dev/sr0 /cd || bad "mount the disc"
(cd /cd && md5sum -c SUMS) > /tmp/checked 2>&1 && ok "$(grep -c OK /tmp/checked) files of a disc are the same" || bad "the disc: $(cat /tmp/checked)"
says "its name" "$(cat /cd/name)" first
umount /cd || bad "umount the disc"

stage eject
# Until the host has taken it out.
i=0
while [ $i -lt 100 ] && dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2> /dev/null; do sleep 0.3; i=$((i + 1)); done
mount -t iso9660 -o ro /dev/sr0 /cd 2> /tmp/why && bad "an empty drive has a disc" || ok "an empty drive: $(tail -1 /tmp/why)"
stage insert
i=0
while [ $i -lt 100 ] && ! mount -t iso9660 -o ro /dev/sr0 /cd 2> /dev/null; do sleep 0.3; i=$((i + 1)); done
says "the other disc" "$(cat /cd/name)" other
(cd /cd && md5sum -c SUMS) > /tmp/checked 2>&1 && ok "its files are the same" || bad "the other disc: $(cat /tmp/checked)"
umount /cd || bad "umount the other disc"
says "errors of the disks" "$(dmesg | grep -cE 'ata1.*(exception|failed command|hard resetting)')" 0
sync
