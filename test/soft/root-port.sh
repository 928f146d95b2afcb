#!/bin/bash
# Two root ports of the embedded hypervisor with a device below each, as Linux sees them: buses, windows, interrupts,
# PTM; the same again after a warm reset, and after the guest numbered its buses itself.
MODULES="virtio_pci virtio_blk virtio_rng"
. "$(dirname "$0")/lib.sh"

head -c 1M /dev/urandom > "$scratch/disk"
sum=$(md5sum < "$scratch/disk")
cat > "$scratch/guest.sh" << EOF
sum="$sum"
EOF
cat >> "$scratch/guest.sh" << 'EOF'
pci=/sys/bus/pci/devices
says() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: $2, not $3"; fi; }
field() { awk "NR == $2 { print \$$3 }" "$pci/$1/resource"; }
# inside WHAT PORT WINDOW FUNCTION BAR: the numbers are lines of the two resource files.
inside() {
  if [ $(($(field $4 $5 1))) -ge $(($(field $2 $3 1))) ] && [ $(($(field $4 $5 2))) -le $(($(field $2 $3 2))) ] &&
    [ $(($(field $4 $5 1))) -gt 0 ]; then ok "$1"; else bad "$1: $(cat "$pci/$2/resource" "$pci/$4/resource")"; fi
}
port=0000:00:06.0 other=0000:00:07.0
bus=$(printf %02x $(hexdump -s 25 -n 1 -e '1/1 "%u"' "$pci/$port/config"))
disk=0000:$bus:00.0
says "the disk is below its port" "$(readlink -f $pci/$disk)" "/sys/devices/pci0000:00/$port/$disk"
rng=$(basename "$(ls -d /sys/devices/pci0000:00/$other/0000:*)")
says "the port has its driver" "$(basename "$(readlink $pci/$port/driver)")" pcieport
says "PTM: capability, root, enabled" "$(hexdump -s 256 -n 12 -e '3/4 "%08x "' $pci/$port/config)" "0001001f 00000406 00000003"
says "a port without PTM has none" "$(hexdump -s 256 -n 4 -e '1/4 "%08x"' $pci/$other/config)" 00000000
says "the kernel found the PTM root" "$(dmesg | grep -c "$port: PTM enabled (root)")" 1
inside "the disk's ports are in the window of its port" $port 14 $disk 1
inside "the disk's memory is in the window of its port" $port 15 $disk 2
inside "the other device's memory is in the other window" $other 15 $rng 5
says "what is read from the disk" "$(md5sum < /dev/vda)" "$sum"
says "random bytes come" "$(head -c 16 /dev/hwrng | wc -c)" 16
says "interrupts of the disk" "$(awk '/virtio.-req.0/ { print ($2 > 0) }' /proc/interrupts)" 1
EOF
guest_script "$scratch/guest.sh"

devices=(-s 6,root-port,ptm -s "1:0:0,virtio-blk,$scratch/disk" -s 7,root-port -s 2:0:0,virtio-rnd,transport=modern)
type_at_console
WORDS=keep start_dm "${devices[@]}"
check "the first life" life 1 200
# A system reset: the VM and what the hypervisor has of it stay.
printf 'printf "\\006" | dd of=/dev/port bs=1 seek=%d\n' 0xcf9 >&8
check "a warm reset" life 2 200
check "it was a system reset" grep -aq 'system reset: ' "$guest_log"
echo 'poweroff -f' >&8
wait_dm 60
check "power off" test $? = 0
guest_results

WORDS="pci=assign-busses" start_dm "${devices[@]}"
wait_dm 200
check "a guest that numbers the buses itself" test $? = 0
guest_results
finish
