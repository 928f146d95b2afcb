#!/bin/bash
# examples/systemd/acrn-vm@.service under a real systemd: a Debian root made by mmdebstrap, with node and this checkout's
# program in it, booted in QEMU with systemd as PID 1; the VMs there are demo guests on the embedded hypervisor. By hand: some
# ten minutes, the first time more. Nothing of it touches this machine's systemd.
#   SYSTEMD_ROOT=DIR   where the root is kept, /var/tmp/systemd-rig
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
cache=${SYSTEMD_ROOT:-/var/tmp/systemd-rig}

[ "$(id -u)" = 0 ] || { echo "skipped: needs root"; exit 0; }
for tool in mmdebstrap qemu-system-x86_64 mke2fs; do
  command -v $tool > /dev/null || { echo "skipped: no $tool"; exit 0; }
done
if [ ! -e "$cache/ready" ]; then
  mkdir -p "$cache"
  rm -rf "$cache/root"
  mmdebstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,udev,kmod,procps,linux-image-cloud-amd64,initramfs-tools,libstdc++6 \
    bookworm "$cache/root"
  touch "$cache/ready"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a "$cache/root" "$work/root"
root=$work/root
cp -L "$(command -v node)" "$root/usr/bin/node"
package=$root/usr/lib/node_modules/acrn-dm
mkdir -p "$package/node_modules" "$root"/{etc/acrn/vm,rig}
cp -r "$repo"/{package.json,dist,examples} "$package"
for name in koffi @koromix eventemitter3 valibot v86 yaml; do
  [ ! -d "$repo/node_modules/$name" ] || cp -r "$repo/node_modules/$name" "$package/node_modules"
done
ln -s ../lib/node_modules/acrn-dm/dist/acrn-dm.js "$root/usr/bin/acrn-dm"
ln -s ../lib/node_modules/acrn-dm/dist/acrnvm.js "$root/usr/bin/acrnvm"
cp "$repo/examples/systemd/acrn-vm@.service" "$root/etc/systemd/system/"

# vm NAME BOOTARGS OPTION...: a configuration file.
vm() {
  local name=$1 words=$2
  shift 2
  node "$repo/dist/acrn-dm.js" config convert --yaml -- --hypervisor soft -m 128M -s 0:0,hostbridge -s 1:0,lpc -l "com1,file:/rig/$name.console" \
    "$@" -k /usr/lib/node_modules/acrn-dm/examples/guest/demo.bzimage -B "$words" "$name" > "$root/etc/acrn/vm/$name.yaml"
}
vm idle demo=idle
vm slow demo=button,45 --shutdown-timeout 300
vm deaf demo=idle --shutdown-timeout 60
vm disk demo=idle -s 3,virtio-blk,/rig/disk.img
head -c 1M /dev/zero > "$root/rig/disk.img"
echo 'this is: [no' > "$root/etc/acrn/vm/broken.yaml"
cp "$repo/test/managers/systemd-inside.sh" "$root/rig/inside.sh"
cat > "$root/etc/systemd/system/rig.service" << 'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /rig/inside.sh
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../rig.service "$root/etc/systemd/system/multi-user.target.wants/rig.service"
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd"
rm -rf "$root"/boot/* "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/usr/share/{doc,locale,man}
mke2fs -q -t ext4 -d "$root" "$work/disk.img" "$(($(du -sm "$root" | cut -f1) * 5 / 4 + 200))M"
rm -rf "$root"

log=${LOG:-$work/log}
timeout -k 10 "${T:-1500}" qemu-system-x86_64 -machine q35 -cpu max -accel "${ACCEL:-tcg}" -smp 2 -m 2048 -display none -monitor none \
  -no-reboot -net none -kernel "$work/vmlinuz" -initrd "$work/initrd" \
  -append "root=/dev/vda rw console=ttyS0 quiet mitigations=off systemd.mask=serial-getty@ttyS0.service" -serial "file:$log" \
  -drive "file=$work/disk.img,format=raw,if=virtio,cache=unsafe" < /dev/null
tr -d '\r' < "$log" | grep -aE '^(ok|FAILED|--|  |systemd)' || true
if ! grep -aq '^systemd: [0-9]* passed, 0 failed' "$log"; then
  tail -20 "$log"
  exit 1
fi
