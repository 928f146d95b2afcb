#!/bin/bash
# Linux's own virtio drivers over the legacy transport, or $TRANSPORT: ext4 made, filled and read back from a disk and found whole by the
# host; frames of a network with a peer in a namespace; a login on hvc0; random numbers; a disk plugged in later.
# MIB: how much goes to the disk and over the network (64 where there is time).
export MIB=${MIB:-12} RIG_PASS="MIB"
. "$(dirname "$0")/lib.sh"

guest_script <<'EOF'
MIB=$(cat /proc/cmdline | tr ' ' '\n' | sed -n 's/^mib=//p')
stage() { read -r up _ < /proc/uptime; echo "STAGE $1 after $up s"; }
disk=/dev/vda

stage disk
[ "$(cat /sys/block/vda/size)" = $(((MIB + 32) * 2048)) ] && ok "size" || bad "size $(cat /sys/block/vda/size)"
case $(cat /sys/block/vda/serial) in ACRN--*) ok "serial" ;; *) bad "serial" ;; esac
/sbin/mke2fs -q -t ext4 -b 4096 -I 256 -E lazy_itable_init=0,lazy_journal_init=1 $disk || bad "mke2fs"
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
dd if=$disk of=/dev/null bs=52k count=40 skip=3 iflag=direct 2> /dev/null && ok "direct reads" || bad "direct reads"

stage random
[ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ] && ok "hwrng is ours" || bad "hwrng"
dd if=/dev/hwrng bs=64 count=64 2> /dev/null > /tmp/random
[ $(stat -c %s /tmp/random) = 4096 ] && [ $(od -An -v -tx1 -w16 /tmp/random | sort | uniq -d | wc -l) = 0 ] &&
  ok "4096 bytes of hwrng" || bad "hwrng gave $(stat -c %s /tmp/random) bytes"

stage network
[ "$(cat /sys/class/net/eth0/address)" = 02:00:00:00:00:42 ] && ok "address" || bad "address"
ip link set eth0 up && ip addr add 10.9.0.2/24 dev eth0
ping -c 3 -W 5 -s 1400 10.9.0.1 > /tmp/ping 2>&1 && ok "$(grep received /tmp/ping)" || bad "$(tail -2 /tmp/ping)"
data() { i=0; while [ $i -lt $MIB ]; do echo "part $i"; cat /tmp/seed; i=$((i + 1)); done; }
sum=$(data | md5sum)
data | nc 10.9.0.1 5001 && ok "sent, sum ${sum%% *}" || bad "send"
sum=$(nc 10.9.0.1 5002 < /dev/null | md5sum)
ok "received, sum ${sum%% *}"

stage console
echo "root::0:0:root:/:/bin/sh" > /etc/passwd
echo "guest-of-the-rig" > /proc/sys/kernel/hostname
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
stage end
EOF

rig_modprobe ext4 veth
ip netns add peer
ip netns exec peer ip link set lo up

# The host's ends of everything the guest talks to.
serve_network() {
  wait_for 200 "STAGE disk" || return
  # The open tap goes on in the peer's namespace.
  ip link set tap0 netns peer
  ip netns exec peer sh -c 'ip addr add 10.9.0.1/24 dev tap0; ip link set tap0 up'
  ip netns exec peer socat -u TCP-LISTEN:5001 OPEN:/run/sent,creat,trunc
  ip netns exec peer socat -u OPEN:/run/data TCP-LISTEN:5002
}

serve_console() {
  wait_for 200 "STAGE console" || return
  local pty
  pty=$(sed -n 's/.*port login is pty \([^ ]*\).*/\1/p' "$guest_log" | tr -d '\r')
  exec 7<> "$pty"
  cat <&7 > /run/hvc0.log &
  local reader=$!
  local i
  for i in 1 2 3 4 5 6 7 8; do
    sleep 2
    grep -aq 'login:' /run/hvc0.log && break
    printf '\r' >&7
  done
  printf 'root\r' >&7
  sleep 3
  # shellcheck disable=SC2016
  printf 'echo forty-two is $((6 * 7)) > /dev/hvc0; touch /tmp/logged-in\r' >&7
  for ((i = 0; i < 20; i++)); do grep -aq 'is 42' /run/hvc0.log && break; sleep 1; done
  kill $reader
  exec 7>&-
  { echo "to the guest"; sleep 15; } | socat -t 20 - UNIX-CONNECT:/run/port1 > /run/port1.log
}

head -c ${MIB}M /dev/urandom > /run/data
for transport in $(transports); do
  echo "-- $transport"
  rm -f /run/disk.img /run/sent /run/hvc0.log /run/port1.log "$guest_log"
  truncate -s $((MIB + 32))M /run/disk.img
  ip tuntap add dev tap0 mode tap
  ip link set tap0 up
  options=,transport=$transport
  WORDS="mib=$MIB" start_dm --cmd_monitor /run/manager \
    -s "3,virtio-blk,/run/disk.img,writeback$options" \
    -s "4,virtio-net,tap=tap0,mac=02:00:00:00:00:42$options" \
    -s "5,virtio-console,@pty:login,socket:port1=/run/port1:server$options" \
    -s "6,virtio-rnd$options" -s "7,virtio-blk,nodisk$options"
  serve_network &
  network=$!
  serve_console &
  console=$!
  if wait_for 260 "STAGE swap"; then
    head -c 4M /run/disk.img > /run/second.img
    printf '{"command":"blkrescan","arguments":"7,/run/second.img,ro"}' | socat -t 5 - UNIX-CONNECT:/run/manager > /run/manager.log
    check "blkrescan" grep -q '"ack":.0' /run/manager.log
  fi
  wait_dm 60
  check "the device model ends with 0" test $? = 0
  kill $network $console 2> /dev/null
  guest_results
  check "fsck on the host" e2fsck -fn /run/disk.img
  mkdir -p /run/mnt
  check "mount on the host" mount -o loop,ro /run/disk.img /run/mnt
  check "checksums on the host" sh -c 'cd /run/mnt && md5sum -c sums'
  umount /run/mnt
  sum=$(md5sum < /run/sent)
  check "what the peer got" grep -aq "^OK sent, sum ${sum%% *}" "$guest_log"
  sum=$(md5sum < /run/data)
  check "what the peer sent" grep -aq "^OK received, sum ${sum%% *}" "$guest_log"
  check "output on hvc0" grep -aq 'forty-two is 42' /run/hvc0.log
  check "output of port1" grep -aq 'from the guest' /run/port1.log
  ip netns exec peer ip link del tap0 2> /dev/null
done
finish
