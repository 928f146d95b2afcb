#!/bin/bash
# kvm-unit-tests (https://gitlab.com/kvm-unit-tests/kvm-unit-tests) on the embedded hypervisor: the x86_64 build on KVM, the
# i386 build on the software CPU. All of x86/unittests.cfg but nested virtualization, the PMU and Hyper-V.
#
#   KUT_DIR=DIR test/rig/kut.sh                      soft, on this machine
#   KUT_DIR=DIR HYPERVISOR=kvm test/rig/kut.sh       KVM: in the rig (../shared/tools/hsmrig), or here if LOCAL=1
#   NAMES="tsc msr" …                                these only
#   SECONDS_EACH=120 …                               instead of what unittests.cfg says (90)
#   REFERENCE=1 …                                    what fails on KVM is run under QEMU on the same KVM, too; in the rig that
#                                                    needs another QEMU than 7.2 outside (ovmf.sh says why)
#
# KUT_DIR is a checkout; it is built in $KUT_BUILD (/var/tmp/acrn-dm-kut) with gcc, i386 with gcc-multilib.
# One line each: PASS, SKIP (the test says so), FAIL, known (FAIL, but in kut-known.txt beside this, with the reason), and left
# (not run, and why).
# Status: 0 if nothing but known ones failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
hypervisor=${HYPERVISOR:-soft}
build=${KUT_BUILD:-/var/tmp/acrn-dm-kut}
case $hypervisor in soft) arch=i386 ;; *) arch=x86_64 ;; esac

if is_outside; then
  if [ -z "${KUT_DIR:-}" ] || [ ! -e "$KUT_DIR/x86/unittests.cfg" ]; then
    echo "skipped: KUT_DIR names no kvm-unit-tests"
    exit 0
  fi
  if [ ! -e "$build/$arch/ready" ]; then
    rm -rf "${build:?}/$arch"
    mkdir -p "$build/$arch"
    cp -r "$KUT_DIR/." "$build/$arch"
    if ! (cd "$build/$arch" && ./configure --arch=$arch && make) > "$build/$arch.log" 2>&1; then
      tail -5 "$build/$arch.log"
      echo "skipped: kvm-unit-tests cannot be built for $arch here"
      exit 0
    fi
    touch "$build/$arch/ready"
  fi
  if [ "$hypervisor" = kvm ] && [ "${LOCAL:-}" != 1 ]; then
    need_rig
    export HYPERVISOR=kvm KUT_BUILD=$build NAMES=${NAMES:-} SECONDS_EACH=${SECONDS_EACH:-}
    export REFERENCE=${REFERENCE:-} RIG_TIMEOUT=${RIG_TIMEOUT:-600}
    enter_rig HYPERVISOR KUT_BUILD NAMES SECONDS_EACH REFERENCE
    exit
  fi
fi

known=$repo/test/rig/kut-known.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' TERM
mkdir -p /run/acrn
passed=0 failed=0 skipped=0 expected=0

# cpus N: local APIC ids for N vCPUs.
cpus() { seq -s, 0 $(($1 - 1)); }

# reference FILE VCPUS SECONDS WORDS: how QEMU fares with it.
reference() {
  timeout -s KILL "$3" qemu-system-x86_64 -nodefaults -accel kvm -cpu host -m 512 -display none -serial stdio -device pc-testdev \
    -device isa-debug-exit,iobase=0xf4,iosize=0x4 -smp "$2" -kernel "$build/$arch/x86/$1" -append "$4" \
    < /dev/null > "$scratch/reference" 2>&1
  case $? in
    1) grep -a '^FAIL' "$scratch/reference" | head -1 | tr -d '\r' | grep . || echo "passes" ;;
    77) echo "skips itself" ;;
    137) echo "$(grep -a '^FAIL' "$scratch/reference" | head -1 | tr -d '\r' | sed 's/$/; /')no end in $3 s" ;;
    *) { grep -a '^FAIL' "$scratch/reference" || tail -1 "$scratch/reference"; } | head -1 | tr -d '\r' | cut -c1-150 ;;
  esac
}

# run NAME FILE VCPUS SECONDS WORDS
run() {
  local name=$1 file=$2 count=$3 seconds=$4 words=$5 status line began=$SECONDS
  timeout -s KILL "$seconds" $DM --hypervisor "$hypervisor" -m 512M --cpu_affinity "$(cpus "$count")" \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio --testdev --fw_cfg -E "$build/$arch/x86/$file" -B "$file $words" "kut$$" \
    < /dev/null > "$scratch/log" 2>&1
  status=$?
  line=$(grep -a '^FAIL' "$scratch/log" | head -1 | tr -d '\r')
  case $status in
    1) [ -z "$line" ] && { echo "PASS    $name ($((SECONDS - began)) s)"; passed=$((passed + 1)); return; } ;;
    77) echo "SKIP    $name"; skipped=$((skipped + 1)); return ;;
  esac
  [ $status != 137 ] || line="${line:+$line; }no end in $seconds s"
  [ -n "$line" ] || line=$(tail -1 "$scratch/log" | tr -d '\r' | cut -c1-150)
  if grep -q "^$hypervisor $name " "$known"; then
    echo "known   $name: $(sed -n "s/^$hypervisor $name //p" "$known")"
    expected=$((expected + 1))
  else
    echo "FAIL    $name: status $status, $line"
    failed=$((failed + 1))
  fi
  [ -z "${OUT:-}" ] || cp "$scratch/log" "$OUT/kut-$name.log"
  if [ -n "${REFERENCE:-}" ] && [ "$hypervisor" = kvm ]; then echo "        QEMU: $(reference "$file" "$count" "$seconds" "$words")"; fi
}

# left_out WHY: this section is of no use here.
left_out() { echo "left    $name: $1"; }

# A section of unittests.cfg is over.
section() {
  [ -n "$name" ] || return
  case " ${NAMES:-$name} " in *" $name "*) ;; *) return ;; esac
  case " $groups " in *" vmx "* | *" svm "* | *" pmu "* | *" hyperv "* | *" nested "*) return ;; esac
  case $file in vmx.flat | svm*.flat | hyperv*.flat | pmu*.flat | "") return ;; esac
  case ${only:-$arch} in "$arch") ;; *) return ;; esac
  case " $groups " in *" nodefault "*) left_out "not by default, says the suite"; return ;; esac
  if [ "$file" = intel-iommu.flat ]; then left_out "it needs QEMU's IOMMU and its edu device"; return; fi
  local one
  for one in ${need//\"/}; do
    if [ "$(cat "${one%%=*}" 2> /dev/null)" != "${one#*=}" ]; then
      echo "SKIP    $name: the host has not $one"
      skipped=$((skipped + 1))
      return
    fi
  done
  if [ "$hypervisor" = soft ] && [ "$count" -gt 1 ]; then left_out "the software CPU is one, and this needs $count"; return; fi
  run "$name" "$file" "$count" "${SECONDS_EACH:-$seconds}" "$words"
}

name='' file='' count=1 only='' seconds=90 words='' groups='' need=''
while IFS= read -r line <&3; do
  case $line in
    \[*\]) section; name=${line#\[}; name=${name%\]}; file='' count=1 only='' seconds=90 words='' groups='' need='' ;;
    file\ =*) file=${line#*= } ;;
    smp\ =*) count=${line#*= } ;;
    arch\ =*) only=${line#*= } ;;
    timeout\ =*) seconds=${line#*= } ;;
    groups\ =*) groups=${line#*= } ;;
    check\ =*) need=${line#*= } ;;
    test_args\ =*) words=$(eval echo "${line#*= }") ;;
  esac
done 3< "$build/$arch/x86/unittests.cfg"
section
echo "kut.sh, $hypervisor: $passed passed, $failed failed, $expected known, $skipped skipped by themselves"
[ "$failed" = 0 ]
