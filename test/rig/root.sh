#!/bin/bash
# Debian's kernel with its root on virtio-blk: from there it counts its starts, reboots, finds the count, and powers off; the disk
# is in order on the host. CPUS=0,1,2,3: four vCPUs; HYPERVISOR=acrn: on the real HSM driver.
export HYPERVISOR=${HYPERVISOR:-kvm} CPUS=${CPUS:-0} RIG_PASS="CPUS"
. "$(dirname "$0")/lib.sh"

count=$(echo "$CPUS" | tr ',' '\n' | wc -l)
busybox=$(command -v busybox)
mkdir -p /run/root/{bin,dev,proc,sys,sbin} /run/start
cp "$busybox" /run/root/bin/busybox
cat > /run/root/sbin/init << 'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
exec < /dev/console > /dev/console 2>&1
starts=$(($(cat /starts) + 1))
echo "$starts" > /starts
sync
echo "start $starts with $(grep -c ^processor /proc/cpuinfo) CPUs, root is $(grep ' / ' /proc/mounts | tail -1)"
[ "$starts" = 1 ] && reboot -f
mount -o remount,ro /
poweroff -f
END
echo 0 > /run/root/starts
chmod +x /run/root/sbin/init
truncate -s 64M /run/disk.img
mke2fs -q -t ext4 -d /run/root /run/disk.img

guest_script
cat > /run/start/init << 'END'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox --install -s /bin
export PATH=/bin
exec < /dev/console > /dev/console 2>&1
while read -r module; do insmod "/lib/$module" 2> /dev/null; done < /lib/order
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt || echo "no root"
mount -o move /dev /mnt/dev
exec switch_root /mnt /sbin/init
END
chmod +x /run/start/init
(cd /run/start && echo init | cpio -o -H newc --quiet | gzip -1) >> /run/initrd

start_dm -s 3,virtio-blk,/run/disk.img
check "it comes up from its disk" wait_for 120 'start 1 with .* root is /dev/vda / ext4 rw'
check "and again after a reboot, with what it wrote" wait_for 120 'start 2 with .* root is /dev/vda / ext4 rw'
check "with $count CPUs" test "$(grep -ac "^start [12] with $count CPUs" "$guest_log")" = 2
wait_dm 60
check "status 0" test $? = 0
check "it powered off" grep -aq 'poweroff: guest entered ACPI S5' "$guest_log"
check "its disk is in order" e2fsck -fn /run/disk.img
[ "$failures" = 0 ] || tail -30 "$guest_log"
finish
