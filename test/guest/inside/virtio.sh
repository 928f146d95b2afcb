# In the guest: Linux's own virtio drivers at work. The host's part: ../virtio.sh.
word() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^$1=//p"; }
MIB=$(word mib)
stage() { read -r up _ < /proc/uptime; echo "STAGE $1 after $up s"; }
disk=/dev/vda
# The 35th character of each is VIRTIO_F_RING_PACKED.
ok "packed rings:" $(cut -c35 /sys/bus/virtio/devices/*/features)
mkdir -p /mnt /etc /tmp

stage disk
[ "$(cat /sys/block/vda/size)" = $(((MIB + 32) * 2048)) ] && ok "size" || bad "size $(cat /sys/block/vda/size)"
case $(cat /sys/block/vda/serial) in ACRN--*) ok "serial" ;; *) bad "serial" ;; esac
# Where there is none the host has made the file system.
if [ -x /sbin/mke2fs ]; then
  /sbin/mke2fs -q -t ext4 -b 4096 -I 256 -E lazy_itable_init=0,lazy_journal_init=1 $disk || bad "mke2fs"
fi
mount -t ext4 $disk /mnt || bad "mount"
cd /mnt
# Pieces of all sizes, each with its number: data that landed in another's place would show.
dd if=/dev/urandom of=/tmp/seed bs=64k count=16 2> /dev/null
piece=0 left=$((MIB * 1024))
while [ $left -gt 0 ]; do
  kib=$(($(od -An -N2 -tu2 /dev/urandom) % 1000 + 1))
  [ $kib -gt $left ] && kib=$left
  { echo "piece $piece"; cat /tmp/seed; } | head -c $((kib * 1024 - piece % 3)) > f$piece
  left=$((left - kib)) piece=$((piece + 1))
  [ $((piece % 8)) = 0 ] && sync
done
md5sum f* > /tmp/sums
cp /tmp/sums sums
cd / && umount /mnt || bad "umount"
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 -o ro $disk /mnt || bad "mount again"
cd /mnt
md5sum -c /tmp/sums > /tmp/checked 2>&1 && ok "$(grep -c OK /tmp/checked) files of $MIB MiB in all are the same after a new mount" ||
  bad "checksums: $(grep -v OK /tmp/checked | head -3)"
cd / && umount /mnt || bad "umount again"
# What is deleted is given back, where the disk takes it.
if [ "$(cat /sys/block/vda/queue/discard_max_bytes)" != 0 ]; then
  mount -t ext4 -o discard $disk /mnt && cp /tmp/seed /mnt/gone && sync && rm /mnt/gone && sync && umount /mnt || bad "discard"
fi
dd if=$disk of=/dev/null bs=52k count=40 skip=3 iflag=direct 2> /dev/null && ok "direct reads" || bad "direct reads"

stage random
[ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ] && ok "hwrng is ours" || bad "hwrng"
dd if=/dev/hwrng bs=64 count=64 2> /dev/null > /tmp/random
[ $(stat -c %s /tmp/random) = 4096 ] && [ $(od -An -v -tx1 -w16 /tmp/random | sort | uniq -d | wc -l) = 0 ] &&
  ok "4096 bytes of hwrng" || bad "hwrng gave $(stat -c %s /tmp/random) bytes"

stage network
[ "$(cat /sys/class/net/eth0/address)" = 02:00:00:00:00:42 ] && ok "address" || bad "address"
# Only what is sent by this test: router solicitations would go on for as long as the kernel runs.
echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set eth0 up && ip addr add 10.9.0.2/24 dev eth0
ping -c 3 -W 5 -s 1400 10.9.0.1 > /tmp/ping 2>&1 && ok "$(grep received /tmp/ping)" || bad "$(tail -2 /tmp/ping)"
net_mib=$(word net_mib)
data() { i=0; while [ $i -lt $net_mib ]; do echo "part $i"; cat /tmp/seed; i=$((i + 1)); done; }
sum=$(data | md5sum)
data | nc 10.9.0.1 5001 && ok "sent, sum ${sum%% *}" || bad "send"
sum=$(nc 10.9.0.1 5002 < /dev/null | md5sum)
ok "received, sum ${sum%% *}"

# What passed disk and network so far, as this kernel counts it; the last frames of the connections are over by then, and
# with the interface down none follow before the host has looked.
sleep 1
ip link set eth0 down
set -- $(grep -w vda /proc/diskstats)
echo "COUNT disk $4 $(($6 * 512)) $8 $((${10} * 512)) ${15} ${19}"
set -- $(sed -n 's/^ *eth0: *//p' /proc/net/dev)
echo "COUNT net $2 $1 ${10} $9"

stage console
echo "root::0:0:root:/:/bin/sh" > /etc/passwd
echo "guest-of-the-test" > /proc/sys/kernel/hostname
[ -c /dev/hvc0 ] && setsid getty 115200 hvc0 vt100 < /dev/null & sleep 1
i=0; while [ ! -e /tmp/logged-in ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
[ -e /tmp/logged-in ] && ok "a login on hvc0" || bad "nobody logged in on hvc0"
port=/dev/$(basename $(dirname $(grep -l '^port1' /sys/class/virtio-ports/*/name)))
read -r answer < $port && ok "port1 says: $answer" && echo "from the guest" > $port || bad "port1"

stage swap
[ "$(cat /sys/block/vdb/size)" = 0 ] && ok "an empty slot" || bad "the empty slot has a size"
i=0; while [ "$(cat /sys/block/vdb/size)" = 0 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
[ "$(md5sum < /dev/vdb | cut -c1-32)" = "$(dd if=/dev/vda bs=1M count=4 2> /dev/null | md5sum | cut -c1-32)" ] &&
  ok "the disk that was plugged in" || bad "the disk that was plugged in"
if grep -qw api=1 /proc/cmdline; then
  # until FILE VALUE WHAT
  until_is() {
    i=0; while [ "$(cat $1)" != "$2" ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
    [ "$(cat $1)" = "$2" ] && ok "$3" || bad "$3: $(cat $1)"
  }
  ip link set eth0 up
  stage control
  until_is /sys/block/vda/size $(((MIB + 48) * 2048)) "the disk has grown"
  dd if=$disk of=/dev/null bs=1M skip=$((MIB + 47)) count=1 2> /dev/null && ok "its new end can be read" || bad "its new end"
  until_is /sys/class/net/eth0/carrier 0 "link down"
  until_is /sys/class/net/eth0/carrier 1 "link up"
fi
stage end
