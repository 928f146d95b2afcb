# Linux's own virtio drivers over the legacy transport, or $TRANSPORT: ext4 filled and read back from a disk and found whole
# by the host; frames of a network with a peer in a namespace; a login on hvc0; random numbers; a disk plugged in later.
# MIB: how much goes to the disk; NET_MIB (as much): each way over the network; PATIENCE: seconds until all that is done. For
# the lib.sh of test/rig and test/soft. Where that gives the VM's API as $api_socket, what its metrics tell of disk and network
# is what the guest's kernel counted; where it names the VM as $api_vm, acrnvm changes both. $disk_options: more of them.
NET_MIB=${NET_MIB:-$MIB}
PATIENCE=${PATIENCE:-$((200 + 6 * MIB))}
host_modules ext4 veth
guest_script "$(dirname "${BASH_SOURCE[0]}")/inside/virtio.sh"
ip netns add "$peer"
ip netns exec "$peer" ip link set lo up

# The host's ends of everything the guest talks to.
serve_network() {
  wait_for "$PATIENCE" "STAGE disk" || return
  # The open tap goes on in the peer's namespace.
  ip link set "$tap" netns "$peer"
  # Only what is sent by this test goes there.
  ip netns exec "$peer" sysctl -qw "net.ipv6.conf.$tap.disable_ipv6=1" 2> /dev/null
  ip netns exec "$peer" sh -c "ip addr add 10.9.0.1/24 dev $tap; ip link set $tap up"
  # Nor does this end ask, long after, whether the guest is still there.
  ip netns exec "$peer" ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:42 dev "$tap" nud permanent
  # Both listen before the guest connects.
  ip netns exec "$peer" socat -u "OPEN:$scratch/data" TCP-LISTEN:5002 &
  ip netns exec "$peer" socat -u TCP-LISTEN:5001 "OPEN:$scratch/sent,creat,trunc"
  wait
}

serve_console() {
  wait_for "$PATIENCE" "STAGE console" || return
  [ -z "${api_socket:-}" ] || ask_metrics > "$scratch/metrics"
  local pty
  pty=$(sed -n 's/.*port login is pty \([^ ]*\).*/\1/p' "$guest_log" | tr -d '\r')
  exec 7<> "$pty"
  cat <&7 > "$scratch/hvc0.log" &
  local reader=$!
  for _ in 1 2 3 4 5 6 7 8; do
    wait_for 5 'login:' "$scratch/hvc0.log" > /dev/null && break
    printf '\r' >&7
  done
  printf 'root\r' >&7
  wait_for 60 '/ #' "$scratch/hvc0.log"
  # shellcheck disable=SC2016
  printf 'echo forty-two is $((6 * 7)) > /dev/hvc0; touch /tmp/logged-in\r' >&7
  wait_for 60 'is 42' "$scratch/hvc0.log"
  wait_for 60 'OK a login on hvc0'
  kill $reader
  exec 7>&-
  # The guest opens the port, reads, then answers. What comes before it opens it, Linux drops: say it until it has answered.
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    echo "to the guest"
    wait_for 4 'OK port1' > /dev/null && break
  done | { cat; sleep 1; } |
    socat -t 20 - "UNIX-CONNECT:$scratch/port1" > "$scratch/port1.log"
}

acrnvm() { node "$soft_repo/dist/acrnvm.js" "$@"; }

# Not by acrnvm: where the host is emulated, too, another node takes its half minute to start.
ask_metrics() {
  printf 'GET /v1/metrics HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n' |
    socat -t 60 - "UNIX-CONNECT:$api_socket,shut-none" | sed '1,/^\r*$/d'
}

# counted METRIC VALUE: as at the moment when the guest counted; else what it is here is shown.
counted() {
  # shellcheck disable=SC2016
  check "$1 is $2" sh -c 'grep -F "$1 " "$3"; grep -qxF "$1 $2" "$3"' sh "$1" "$2" "$scratch/metrics"
}

# What the guest counted, and what acrnvm told of it.
compare_counts() {
  local reads read_bytes writes write_bytes discards flushes rx_frames rx_bytes tx_frames tx_bytes
  read -r _ _ reads read_bytes writes write_bytes discards flushes < <(grep -a '^COUNT disk' "$guest_log" | tr -d '\r')
  read -r _ _ rx_frames rx_bytes tx_frames tx_bytes < <(grep -a '^COUNT net' "$guest_log" | tr -d '\r')
  local disk='device="00:03.0"' net='device="00:04.0"'
  counted "acrn_disk_ops_total{$disk,op=\"read\"}" "$reads"
  counted "acrn_disk_bytes_total{$disk,op=\"read\"}" "$read_bytes"
  # Linux counts an empty flush as a write, too, of no bytes.
  local written
  written=$(sed -n "s/^acrn_disk_ops_total{$disk,op=\"write\"} //p" "$scratch/metrics")
  check "$written writes, of which Linux has $writes with its empty flushes" \
    test "$written" -le "$writes" -a $((written + flushes)) -ge "$writes"
  counted "acrn_disk_bytes_total{$disk,op=\"write\"}" "$write_bytes"
  counted "acrn_disk_ops_total{$disk,op=\"discard\"}" "$discards"
  counted "acrn_disk_ops_total{$disk,op=\"flush\"}" "$flushes"
  check "there were flushes and discards" test "$flushes" -gt 0 -a "$discards" -gt 0
  counted "acrn_disk_errors_total{$disk}" 0
  counted "acrn_net_frames_total{$net,direction=\"rx\"}" "$rx_frames"
  counted "acrn_net_bytes_total{$net,direction=\"rx\"}" "$rx_bytes"
  counted "acrn_net_frames_total{$net,direction=\"tx\"}" "$tx_frames"
  counted "acrn_net_bytes_total{$net,direction=\"tx\"}" "$tx_bytes"
  local moved
  for moved in 'acrn_console_bytes_total{console="com1",direction="out"}' 'acrn_io_requests_total{type="pio",op="read"}' \
    'acrn_io_requests_total{type="pio",op="write"}' 'acrn_io_requests_total{type="pci",op="read"}' \
    'acrn_io_requests_total{type="pci",op="write"}'; do
    check "$moved has moved" grep -qF "$moved " "$scratch/metrics"
    check "$moved is not 0" sh -c '! grep -qxF "$1 0" "$2"' sh "$moved" "$scratch/metrics"
  done
  if command -v promtool > /dev/null; then
    check "promtool check metrics" promtool check metrics < "$scratch/metrics"
  else
    echo "skipped: promtool (Debian's prometheus) is not here"
  fi
}

# The disk grows, the cable comes out and goes in.
change_devices() {
  wait_for 60 "STAGE control" || return
  acrnvm resize "$api_vm" 3 "$((MIB + 48))M"
  acrnvm link "$api_vm" 4 down
  wait_for 60 "OK link down"
  acrnvm link "$api_vm" 4 up
}

head -c ${NET_MIB}M /dev/urandom > "$scratch/data"
for transport in $(transports); do
  echo "-- $transport"
  rm -f "$scratch/disk.img" "$scratch/sent" "$scratch/hvc0.log" "$scratch/port1.log" "$guest_log"
  truncate -s $((MIB + 32))M "$scratch/disk.img"
  host_mke2fs "$scratch/disk.img"
  ip tuntap add dev "$tap" mode tap
  ip link set "$tap" up
  options=
  [ "$transport" = legacy ] || options=,transport=$transport
  WORDS="mib=$MIB net_mib=$NET_MIB${api_vm:+ api=1}" start_dm --cmd_monitor "$scratch/manager" \
    -s "3,virtio-blk,$scratch/disk.img,writeback,discard${disk_options:-}$options" \
    -s "4,virtio-net,tap=$tap,mac=02:00:00:00:00:42$options" \
    -s "5,virtio-console,@pty:login,socket:port1=$scratch/port1:server$options" \
    -s "6,virtio-rnd$options" -s "7,virtio-blk,nodisk$options"
  serve_network &
  network=$!
  serve_console &
  console=$!
  if wait_for "$PATIENCE" "STAGE swap"; then
    head -c 4M "$scratch/disk.img" > "$scratch/second.img"
    printf '{"command":"blkrescan","arguments":"7,%s,ro"}' "$scratch/second.img" | socat -t 5 - "UNIX-CONNECT:$scratch/manager" > "$scratch/manager.log"
    check "blkrescan" grep -q '"ack":.0' "$scratch/manager.log"
  fi
  [ -z "${api_vm:-}" ] || change_devices
  wait_dm 60
  check "the device model ends with 0" test $? = 0
  kill $network $console 2> /dev/null
  guest_results
  [ -z "${api_socket:-}" ] || compare_counts
  case $transport in modern) packed='1 1 1 1 1' ;; *) packed='0 0 0 0 0' ;; esac
  check "which rings the driver chose" grep -aq "^OK packed rings: $packed" "$guest_log"
  check "fsck on the host" e2fsck -fn "$scratch/disk.img"
  mkdir -p "$scratch/mnt"
  check "mount on the host" mount -o loop,ro "$scratch/disk.img" "$scratch/mnt"
  check "checksums on the host" sh -c "cd '$scratch/mnt' && md5sum -c sums"
  umount "$scratch/mnt"
  sum=$(md5sum < $scratch/sent)
  check "what the peer got" grep -aq "^OK sent, sum ${sum%% *}" "$guest_log"
  sum=$(md5sum < $scratch/data)
  check "what the peer sent" grep -aq "^OK received, sum ${sum%% *}" "$guest_log"
  check "output on hvc0" grep -aq 'forty-two is 42' "$scratch/hvc0.log"
  check "output of port1" grep -aq 'from the guest' "$scratch/port1.log"
  ip netns exec "$peer" ip link del "$tap" 2> /dev/null
done
finish
