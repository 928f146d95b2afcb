#!/bin/bash
# A function of the host given to a guest on the machine's own KVM, by VFIO: a network card of QEMU's behind a root port and
# an IOMMU. MSI-X, packets, reboot, bus reset, INTx, what is said where it cannot be had, and that the card is well after.
# CPUS=0,1 gives the guest two vCPUs; STEPS="msix" runs some of the steps (reboot: with msix).
export HYPERVISOR=kvm CPUS=${CPUS:-0} STEPS=${STEPS:-refused msix reboot bus line} RIG_PASS="CPUS STEPS"
export RIG_TIMEOUT=${RIG_TIMEOUT:-900}
export RIG_APPEND="intel_iommu=on iommu=pt"
# After a reset of the bus behind it QEMU's root port says no more that its link is up, which Linux asks of ports faster than 5 GT/s:
# the reset would count as failed.
export RIG_QEMU="-device intel-iommu,intremap=off -device pcie-root-port,id=rp,bus=pcie.0,addr=0x10,chassis=1,x-speed=5 -netdev user,id=n -device e1000e,netdev=n,bus=rp"
. "$(dirname "$0")/lib.sh"

card=0000:01:00.0
at=/sys/bus/pci/devices/$card
host_modules vfio-pci vfio_iommu_type1
# This IOMMU remaps no interrupts.
unsafe=/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
group=$(basename "$(readlink $at/iommu_group)")
echo "card $(cat $at/vendor):$(cat $at/device) in IOMMU group $group, resets: $(cat $at/reset_method 2> /dev/null)"

bind() { echo vfio-pci > $at/driver_override; echo $card > /sys/bus/pci/drivers_probe; }
unbind() { echo > $at/driver_override; [ ! -e $at/driver ] || echo $card > $at/driver/unbind; }
# nobody_has_it: but for this shell.
nobody_has_it() {
  local process
  for process in /proc/[0-9]*; do
    [ "$process" = "/proc/$$" ] || ! ls -l "$process/fd" 2> /dev/null | grep -q "/dev/vfio/$group" || return 1
  done
}

type_at_console
guest_script
version=$(cat "$HSMRIG_BUILD/ready")
mkdir -p /run/card/lib
cp "$HSMRIG_BUILD/image/lib/modules/$version/kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko" /run/card/lib/
(cd /run/card && find lib | cpio -o -H newc --quiet | gzip -1) >> /run/initrd

# refused STATUS TEXT OPTION...: a start that ends so.
refused() {
  local status=$1 text=$2
  shift 2
  start_dm "$@"
  wait_dm 150
  check "$text: status $status" test $? = "$status"
  check "$text: said so" grep -q "$text" "$guest_log"
  check "$text: nothing is held" nobody_has_it
}

# card_works KIND [MODULE OPTION...]: its driver binds, packets come and go, and interrupts of this kind are counted.
card_works() {
  local kind=$1
  shift
  check "its driver binds" guest "insmod /lib/e1000e.ko $* && ls -d /sys/class/net/eth0" 90
  check "the link comes up" guest "ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; for i in 1 2 3 4 5 6 7 8 9 10; do grep -q 1 /sys/class/net/eth0/carrier && break; sleep 1; done; grep 1 /sys/class/net/eth0/carrier" 90
  check "packets come and go" guest 'ping -c 5 -W 10 10.0.2.2' 90
  check "by $kind" guest "grep eth0 /proc/interrupts; test \$(grep eth0 /proc/interrupts | grep -c '$kind') -gt 0 && \
test \$(awk '/eth0/ { for (i = 2; i < NF; i++) if (\$i ~ /^[0-9]+\$/) n += \$i } END { print n + 0 }' /proc/interrupts) -ge 5" 60
}

wanted() { [[ " $STEPS " == *" $1 "* ]]; }

if wanted refused; then
  echo "-- what cannot be had"
  unbind
  refused 69 "not to vfio-pci" -s 3,passthru,01/00/0
  bind
  check "the card is bound to vfio-pci" test "$(basename "$(readlink $at/driver)")" = vfio-pci
  echo 0 > $unsafe
  refused 1 "does not remap interrupts" -s 3,passthru,01/00/0
  exec 7<> "/dev/vfio/$group"
  refused 1 "in use by another process" -s 3,passthru,01/00/0 7<&-
  exec 7<&-
fi
echo 1 > $unsafe

if wanted msix; then
  echo "-- MSI-X"
  [ -e $at/driver ] || bind
  WORDS="stay" start_dm -s 3,passthru,01/00/0
  check "the guest is there" wait_for 300 GUEST-DONE
  sleep 1
  card_works MSI

  if wanted reboot; then
    echo "-- reboot"
    echo 'reboot -f' >&8
    check "the guest comes up again" life 2 300
    sleep 1
    card_works MSI
  fi
  echo 'poweroff -f' >&8
  wait_dm 60
  check "status 0" test $? = 0
  check "nothing is held" nobody_has_it
fi

if wanted bus && [ -w $at/reset_method ]; then
  echo "-- the bus is reset, where the function cannot be"
  [ -e $at/driver ] || bind
  echo > $at/reset_method
  DM="$DM --logger_setting console,level=5"
  WORDS="stay" start_dm -s 3,passthru,01/00/0,no_reset
  check "the guest is there" wait_for 300 GUEST-DONE
  check "with its bus" grep -q "reset with its bus" "$guest_log"
  sleep 1
  card_works MSI
  kill -KILL "$dm"
  wait_dm 20
  check "nothing is held" nobody_has_it
  echo default > $at/reset_method
fi

if wanted line; then
  echo "-- managed, and its line"
  unbind
  WORDS="stay" start_dm -s 3,passthru,01/00/0,keep_gsi,managed
  check "the guest is there" wait_for 300 GUEST-DONE
  sleep 1
  card_works IO-APIC IntMode=0
  kill -INT "$dm"
  wait_dm 60
  check "status 0" test $? = 0
  check "it was given back" test ! -e $at/driver
fi
[ "$failures" = 0 ] || { tail -60 "$guest_log"; dmesg | tail -20; }
finish
