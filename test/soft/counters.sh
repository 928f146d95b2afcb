#!/bin/bash
# What `acrnvm metrics` tells of a Debian i386, held against what others count: its own kernel, the tap's, and strace,
# which sees each system call on the disk's image. Every figure is moved, those of failures too: disks on a full file
# system, a tap that is down, frames that find no room (test/control/api/metrics-moved.test.ts has them all). MIB: how
# much goes to and from the disk, and each way over the network.
MODULES="virtio_pci virtio_blk virtio_net virtio_console ahci sd_mod"
MIB=${MIB:-16}
. "$(dirname "$0")/lib.sh"
for tool in strace socat python3; do
  command -v $tool > /dev/null || { echo "skipped: no $tool"; exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: needs root"; exit 0; }

vm=soft$$
acrnvm() { node "$soft_repo/dist/acrnvm.js" "$@"; }
# look [SOCKET]: at the figures now; of every one, whether it was ever above 0. The parts of a histogram are one.
look() {
  acrnvm metrics "${1:-$vm}" > "$scratch/metrics" || return
  sed -E '/^#/d; s/(device|console)="[^"]*",?//; s/le="[^"]*"//; s/,\}/}/; s/\{\}//; s/_(bucket|sum|count) / /' "$scratch/metrics" |
    tee -a "$scratch/known" | grep -v ' 0$' >> "$scratch/moved"
}
# value METRIC: as of the last look.
value() { sed -n "s/^$1 //p" "$scratch/metrics"; }
counted() { check "$1 is ${2:-told by nobody}" test "$(value "$1")" = "$2"; }
moved() { check "$1 is above 0" test "$(value "$1")" -gt 0; }
# state NAME: whether the VM is in it.
state() { look && [ "$(value "acrn_vm_state{state=\"$1\"}")" = 1 ]; }
# answer NAME: the words behind NAME in a line of the guest's.
answer() { sed -n "s/^$1 //p" "$guest_log" | tr -d '\r' | tail -1; }
of_tap() { ip netns exec "$peer" cat "/sys/class/net/$tap/statistics/$1"; }
in_peer() { ip netns exec "$peer" "$@"; }

guest_script
echo "-- a VM that is made by the API"
node "$soft_repo/dist/acrn-dm.js" --api-socket "$scratch/api.sock" > "$scratch/api.log" 2>&1 &
served=$!
# ch METHOD NAME [BODY]: what the API answers, to a client that stays until then.
ch() {
  local body=${3:-}
  printf '%s /api/v1/%s HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "$1" "$2" "${#body}" "$body" |
    socat -t 60 - "UNIX-CONNECT:$scratch/api.sock,shut-none"
}
is_done() { ch "$@" | head -1 | grep -q ' 204 '; }
# state_of NAME: of that VM.
state_of() { look "$scratch/api.sock" && [ "$(value "acrn_vm_state{state=\"$1\"}")" = 1 ]; }
check "the process is there" eval 'for i in {1..100}; do [ ! -S "$scratch/api.sock" ] || break; sleep 0.2; done; [ -S "$scratch/api.sock" ]'
look "$scratch/api.sock"
check "without a VM it is in no state" eval '! grep -q "^acrn_vm_state.* 1$" "$scratch/metrics"'
check "vm.create" is_done PUT vm.create "{\"payload\": {\"kernel\": \"$debian/vmlinuz\", \"initramfs\": \"$scratch/base.gz\",
  \"cmdline\": \"console=ttyS0 panic=-1 quiet mitigations=off\"}, \"memory\": {\"size\": 268435456},
  \"serial\": {\"mode\": \"File\", \"file\": \"$scratch/serial\"}, \"acrn\": {\"name\": \"made$$\"}}"
check "created" state_of created
check "vm.boot" is_done PUT vm.boot
check "running" state_of running
dm=$served check "and Debian is there" wait_for 200 GUEST-UP "$scratch/serial"
check "vm.delete" is_done PUT vm.delete
check "then none again" eval 'look "$scratch/api.sock"; ! grep -q "^acrn_vm_state.* 1$" "$scratch/metrics"'
kill "$served"
wait "$served"

truncate -s $((MIB + 8))M "$scratch/disk.img"
mkdir "$scratch/mnt"
mount -t tmpfs -o size=2m full "$scratch/mnt"
truncate -s 64M "$scratch/mnt/blk.img" "$scratch/mnt/ahci.img"
ip netns add "$peer"
in_peer ip link set lo up
ip tuntap add dev "$tap" mode tap
ip link set "$tap" up
type_at_console
program=${DM:-node "$soft_repo/dist/acrn-dm.js"}
DM="strace -f -qq --seccomp-bpf -o $scratch/calls -P $scratch/disk.img
  -e trace=read,write,pread64,pwrite64,readv,writev,preadv,pwritev,preadv2,pwritev2,fsync,fdatasync,fallocate,io_uring_enter $program"
WORDS="keep no_console_suspend ipv6.disable=1" start_dm --on-poweroff stay \
  -s "3,virtio-blk,$scratch/disk.img,writeback,discard,aio=threads,transport=modern" \
  -s "4,virtio-net,tap=$tap,mac=02:00:00:00:00:42,transport=modern" -s 5,virtio-console,@pty:login \
  -s "6,virtio-blk,$scratch/mnt/blk.img" -s "7,ahci,hd:$scratch/mnt/ahci.img"
check "the guest is there" life 1 200
check "and says how it is" state running

echo "-- console"
# What has been typed so far is what `guest` writes, and what it reads is what the console shows.
typed=$(look; value 'acrn_console_bytes_total{console="com1",direction="in"}')
line=': a line of 64 bytes, of which the guest makes nothing at all ...'
for _ in 1 2 3 4 5 6 7 8; do printf '%s\n' "${line:0:63}" >&8; sleep 0.2; done
check "the guest has read them" guest true
look
# `guest` types its command and an echo of a number.
counted 'acrn_console_bytes_total{console="com1",direction="in"}' $((typed + 8 * 64 + $(printf 'true; echo "[$?]-%s"\n' $asked | wc -c)))
moved 'acrn_console_bytes_total{console="com1",direction="out"}'
pty=$(sed -n 's/.*port login is pty \([^ ]*\).*/\1/p' "$guest_log" | tr -d '\r')
exec 7<> "$pty"
check "the guest reads hvc0" guest '(stty raw -echo; head -c 100 | md5sum; head -c 5000 /dev/zero) < /dev/hvc0 > /dev/hvc0 2>&1 & sleep 1'
head -c 100 /dev/zero >&7
timeout 90 head -c 5036 <&7 > "$scratch/hvc0.log"
exec 7>&-
look
counted 'acrn_console_bytes_total{console="virtio-console-at-00:05.0-port-0",direction="in"}' 100
counted 'acrn_console_bytes_total{console="virtio-console-at-00:05.0-port-0",direction="out"}' 5036

echo "-- disk"
check "$MIB MiB to the disk" guest "dd if=/dev/urandom of=/tmp/seed bs=1M count=1; for i in \$(seq 1 $MIB); do cat /tmp/seed; done | dd of=/dev/vda bs=64k iflag=fullblock conv=fsync" $((60 + 10 * MIB))
check "and back" guest "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=$MIB" $((60 + 10 * MIB))
guest "set -- \$(grep -w vda /proc/diskstats); echo COUNT-disk \$4 \$((\$6 * 512)) \$8 \$((\${10} * 512)) \${15} \${19}"
look
read -r reads read_bytes writes write_bytes discards flushes < <(answer COUNT-disk)
disk='device="00:03.0"'
counted "acrn_disk_ops_total{$disk,op=\"read\"}" "$reads"
counted "acrn_disk_bytes_total{$disk,op=\"read\"}" "$read_bytes"
counted "acrn_disk_bytes_total{$disk,op=\"write\"}" "$write_bytes"
counted "acrn_disk_ops_total{$disk,op=\"flush\"}" "$flushes"
counted "acrn_disk_ops_total{$disk,op=\"discard\"}" "$discards"
counted "acrn_disk_errors_total{$disk}" 0
check "at least $MIB MiB each way" test "$read_bytes" -ge $((MIB << 20)) -a "$write_bytes" -ge $((MIB << 20))
# The image, as strace saw it: bytes that calls gave back.
calls() {
  # shellcheck disable=SC2016
  awk -v names="$1" 'match($0, /(^[0-9]+ +|<\.\.\. )[a-z0-9_]+/) {
    name = substr($0, RSTART, RLENGTH); sub(/.*[ ]/, "", name)
    if ((" " names " ") ~ (" " name " ") && $NF ~ /^[0-9]+$/ && $(NF - 1) == "=") { sum += $NF; count++ }
  } END { print count + 0, sum + 0 }' "$scratch/calls"
}
read -r _ seen < <(calls "read pread64 readv preadv preadv2")
check "strace: $seen bytes were read" test "$seen" = "$(value "acrn_disk_bytes_total{$disk,op=\"read\"}")"
read -r _ seen < <(calls "write pwrite64 writev pwritev pwritev2")
check "strace: $seen bytes were written" test "$seen" = "$(value "acrn_disk_bytes_total{$disk,op=\"write\"}")"
read -r seen _ < <(calls "fsync fdatasync")
check "strace: $seen syncs for $flushes flushes" test "$seen" -gt 0 -a "$seen" -le "$((flushes + 2))"

echo "-- disks that fail"
guest 'f=0; for i in $(seq 0 39); do dd if=/tmp/seed of=/dev/vdb bs=64k count=1 seek=$i oflag=direct || f=$((f + 1)); done 2> /dev/null; echo COUNT-failed $f' 120
failed=$(answer COUNT-failed)
check "some writes fail on a full file system: ${failed:-none}" test "${failed:-0}" -gt 0
look
counted 'acrn_disk_errors_total{device="00:06.0"}' "$failed"
guest 'dd if=/tmp/seed of=/dev/sda bs=64k count=1 oflag=direct 2> /dev/null; echo COUNT-ata $? $(dmesg | grep -c "failed command: WRITE")' 120
read -r status failed < <(answer COUNT-ata)
check "so they do on the AHCI disk" test "$status" = 1
look
counted 'acrn_disk_errors_total{device="00:07.0@0"}' "$failed"
moved 'acrn_disk_ops_total{device="00:07.0@0",op="read"}'

echo "-- network"
ip link set "$tap" netns "$peer"
in_peer sysctl -qw "net.ipv6.conf.$tap.disable_ipv6=1" 2> /dev/null
in_peer ip addr add 10.9.0.1/24 dev "$tap"
in_peer ip link set "$tap" up
net='device="00:04.0"'
# settled: the guest has taken what was sent to it.
settled() {
  guest 'a=$(cat /sys/class/net/eth0/statistics/rx_packets); sleep 2; test $a = $(cat /sys/class/net/eth0/statistics/rx_packets)'
}
# compare_net: with the tap, whose words are the other way round, and with the guest.
compare_net() {
  sleep 1
  guest 'set -- $(sed -n "s/^ *eth0: *//p" /proc/net/dev); echo COUNT-net $2 $1 ${10} $9'
  look
  local rx_frames rx_bytes tx_frames tx_bytes rx tx dropped tx_dropped
  read -r rx_frames rx_bytes tx_frames tx_bytes < <(answer COUNT-net)
  rx=$(value "acrn_net_frames_total{$net,direction=\"rx\"}") dropped=$(value "acrn_net_drops_total{$net,direction=\"rx\"}")
  tx=$(value "acrn_net_frames_total{$net,direction=\"tx\"}") tx_dropped=$(value "acrn_net_drops_total{$net,direction=\"tx\"}")
  check "rx: $rx frames are what the guest got" test "$rx" = "$rx_frames"
  check "rx: bytes, too" test "$(value "acrn_net_bytes_total{$net,direction=\"rx\"}")" = "$rx_bytes"
  check "tx: $tx frames and $tx_dropped that were lost are what the guest sent" test $((tx + tx_dropped)) = "$tx_frames"
  [ "$tx_dropped" != 0 ] ||
    check "tx: bytes, too" test "$(value "acrn_net_bytes_total{$net,direction=\"tx\"}")" = "$tx_bytes"
  check "rx: with $dropped that were lost they are what the tap gave" test $((rx + dropped)) = "$(of_tap tx_packets)"
  check "tx: what the tap took" test "$tx" = "$(of_tap rx_packets)"
}
in_peer ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:42 dev "$tap" nud permanent
address=$(in_peer cat "/sys/class/net/$tap/address")
guest "ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ip neigh replace 10.9.0.1 lladdr $address dev eth0 nud permanent || arp -s 10.9.0.1 $address"
head -c ${MIB}M /dev/urandom > "$scratch/data"
in_peer socat -u "OPEN:$scratch/data" TCP-LISTEN:5002 &
in_peer socat -u TCP-LISTEN:5001 "OPEN:$scratch/sent,creat,trunc" &
sleep 1
check "$MIB MiB to the peer" guest "for i in \$(seq 1 $MIB); do cat /tmp/seed; done | nc 10.9.0.1 5001" $((60 + 10 * MIB))
check "and back" guest "nc 10.9.0.1 5002 < /dev/null | md5sum | grep -q $(md5sum < "$scratch/data" | cut -c1-32)" $((60 + 10 * MIB))
compare_net

echo "-- frames that are lost"
in_peer ip link set "$tap" down
guest 'for i in 1 2 3 4 5; do ping -c 1 -W 1 10.9.0.1; done > /dev/null; true' 60
look
moved "acrn_net_drops_total{$net,direction=\"tx\"}"
in_peer ip link set "$tap" mtu 65000 up
in_peer ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:42 dev "$tap" nud permanent
# More than the driver has buffers for, at once.
in_peer python3 - << 'PYTHON'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE
for _ in range(400):
    s.sendto(bytes(60000), ('10.9.0.2', 9))
PYTHON
sleep 3
check "the guest has taken all that reached it" eventually 60 settled
compare_net
moved "acrn_net_drops_total{$net,direction=\"rx\"}"

echo "-- lag of the device thread"
lag() { value "acrn_device_thread_lag_seconds_$1"; }
look
count=$(lag count) late=$(($(lag 'bucket{le="+Inf"}') - $(lag 'bucket{le="1"}')))
from=$SECONDS
sleep 3
look
check "it is looked at four times a second: $(lag count) after $count" \
  test "$(lag count)" -gt "$count" -a "$(lag count)" -le $((count + 4 * (SECONDS - from) + 5))
check "all looks are in the last bucket" test "$(lag 'bucket{le="+Inf"}')" = "$(lag count)"
before=$(lag sum)
# strace is what was started.
program_pid=$(pgrep -P "$dm" | head -1)
kill -STOP "$program_pid"
sleep 3
kill -CONT "$program_pid"
sleep 1
look
check "three seconds of standing still are one look that was late" \
  test $(($(lag 'bucket{le="+Inf"}') - $(lag 'bucket{le="1"}'))) -gt "$late"
check "they are in the sum: $before, $(lag sum)" awk "BEGIN { exit !($(lag sum) >= $before + 2) }"

echo "-- the rest"
for type in pio mmio pci; do
  for op in read write; do moved "acrn_io_requests_total{type=\"$type\",op=\"$op\"}"; done
done
counted 'acrn_io_requests_total{type="unknown",op="unknown"}' 0
counted acrn_guest_memory_bytes $((256 << 20))
moved acrn_events_total
check "resident memory, as the kernel has it" test "$(value process_resident_memory_bytes)" -gt $((128 << 20))
check "CPU time" test "$(value process_cpu_seconds_total | cut -d. -f1)" -gt 1
check "the time it is up" test "$(value acrn_vm_uptime_seconds | cut -d. -f1)" -gt 10
if command -v promtool > /dev/null; then
  check "promtool check metrics" promtool check metrics < "$scratch/metrics"
else
  echo "skipped: promtool (Debian's prometheus) is not here"
fi
acrnvm pause "$vm"
check "paused" state paused
acrnvm resume "$vm"
check "running" state running
echo 'echo mem > /sys/power/state; echo woken' >&8
check "suspended" eventually 30 state suspended
acrnvm wake "$vm"
check "and awake" wait_for 60 '^woken'
echo 'poweroff -f' >&8
check "ended, and the process is there" eventually 30 state ended
stop_says() { ! acrnvm stop "$vm" > "$scratch/stop" 2>&1 && grep -q "$1" "$scratch/stop"; }
check "acrnvm stop says what is left" stop_says 'only the process'
acrnvm stop -f "$vm"
wait_dm 60
check "status 0" test $? = 0
# No guest here makes requests of other kinds, and this one has no tool to discard (../guest/virtio.sh's has).
never='acrn_io_requests_total{type="unknown",op="unknown"}
acrn_disk_ops_total{op="discard"}'
sed -i 's/ [^ ]*$//' "$scratch/known" "$scratch/moved"
comm -23 <(sort -u "$scratch/known") <(sort -u "$scratch/moved") | grep -vxF "$never" > "$scratch/still"
check "every figure that was told was above 0 at some time" eval 'cat "$scratch/still"; [ ! -s "$scratch/still" ]'
[ "$failures" = 0 ] || { tail -30 "$guest_log"; cat "$scratch/metrics"; }
finish
