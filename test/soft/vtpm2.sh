#!/bin/bash
# --vtpm2 with Debian's swtpm: the driver that is built into Debian's kernel (tpm_crb) draws random numbers and extends a
# PCR; swtpm is killed and started anew under it; the guest reboots; another VM on the same state has what was stored.
MODULES=
. "$(dirname "$0")/lib.sh"

if ! command -v swtpm > /dev/null; then
  echo "skipped: there is no swtpm (Debian's package of that name)"
  exit 0
fi

start_swtpm() {
  rm -f "$scratch/swtpm.sock"
  mkdir -p "$scratch/tpm"
  swtpm socket --tpm2 --tpmstate dir="$scratch/tpm" --ctrl type=unixio,path="$scratch/swtpm.sock" > "$scratch/swtpm.log" 2>&1 &
  swtpm=$!
  for ((i = 0; i < 100; i++)); do
    [ -S "$scratch/swtpm.sock" ] && return
    sleep 0.1
  done
  return 1
}

swtpm_ended() {
  for ((i = 0; i < 50; i++)); do
    kill -0 "$swtpm" 2> /dev/null || return 0
    sleep 0.1
  done
  return 1
}

# What is written to /bin/tpm of the guest sends one command, given in hexadecimal, and prints the response.
cat > "$scratch/guest.sh" <<'GUEST'
cat > /bin/tpm <<'TPM'
#!/bin/sh
exec 5<> /dev/tpm0 || exit
printf "$(echo "$1" | sed 's/../\\x&/g')" >&5
dd bs=4096 count=1 <&5 2> /dev/null | od -An -v -tx1 | tr -d ' \n'
TPM
chmod +x /bin/tpm
GUEST
guest_script "$scratch/guest.sh"

random=80010000000c0000017b0010
startup=80010000000c000001440000
ones=$(printf '11%.0s' {1..32})
# A password that is empty: TPM_RS_PW, no nonce, no attributes, no authorization.
password=00000009400000090000000000
extend=800200000041000001820000000b${password}00000001000b$ones
# Index 0x1500001, read and written by its owner, 8 bytes.
define=80020000002d0000012a40000001${password}0000000e01500001000b0206000600000008
write=80020000002b000001374000000101500001${password}0008c0ffee00c0ffee000000
read=8002000000230000014e4000000101500001${password}00080000
pcr=/sys/class/tpm/tpm0/pcr-sha256/11
extended=$({ head -c 32 /dev/zero; printf "$(echo "$ones" | sed 's/../\\x&/g')"; } | sha256sum | cut -c 1-64 | tr a-f A-F)
zeros=$(printf '0%.0s' {1..64})

# answers COMMAND PATTERN: of the hexadecimal digits that come back.
answers() { guest "r=\$(tpm $1); echo \"<\$r>\"; case \$r in $2) true ;; *) false ;; esac"; }

start_swtpm
type_at_console
WORDS=keep start_dm --vtpm2 "sock_path=$scratch/swtpm.sock"
check "the guest is there" life 1 300
check "its kernel has found a TPM 2.0" guest 'test "$(cat /sys/class/tpm/tpm0/tpm_version_major)" = 2'
check "tpm_crb drives it" guest 'case $(readlink /sys/class/tpm/tpm0/device/driver) in */tpm_crb) true ;; *) false ;; esac'
check "random numbers by the kernel" guest 'echo tpm-rng-0 > /sys/class/misc/hw_random/rng_current && test "$(head -c 64 /dev/hwrng | wc -c)" = 64'
check "random numbers by a command, never the same" guest "a=\$(tpm $random) && test \${#a} = 56 && test \$a != \$(tpm $random)"
check "a PCR is empty" guest "test \$(cat $pcr) = $zeros"
check "it is extended" answers "$extend" "8002????????00000000*"
check "by what SHA-256 gives" guest "test \$(cat $pcr) = $extended"
check "an index is defined" answers "$define" "8002????????00000000*"
check "and written" answers "$write" "8002????????00000000*"

echo "-- swtpm is killed"
kill -KILL "$swtpm"
check "commands answer TPM_RC_FAILURE" answers "$random" 80010000000a00000101
sleep 3
check "and go on to do so" answers "$random" 80010000000a00000101
check "one line says so" test "$(grep -ac 'is gone' "$guest_log")" = 1
start_swtpm
check "it is found again" wait_for 20 'is back; its TPM'
check "its TPM wants to be started" answers "$random" 80010000000a00000100
check "which the guest does" answers "$startup" 80010000000a00000000
check "what was stored is there" answers "$read" "*c0ffee00c0ffee00*"
check "the PCR is empty" guest "test \$(cat $pcr) = $zeros"
check "it is extended again" answers "$extend" "8002????????00000000*"

echo "-- the guest reboots"
echo 'reboot -f' >&8
check "the guest is there" life 2 300
check "the PCR is empty" guest "test \$(cat $pcr) = $zeros"
check "what was stored is there" answers "$read" "*c0ffee00c0ffee00*"
echo 'poweroff -f' >&8
wait_dm 60
check "status 0" test $? = 0
check "swtpm has ended with the VM" swtpm_ended

echo "-- another VM"
[ "$failures" = 0 ] || tail -60 "$guest_log"
start_swtpm
WORDS=keep start_dm --vtpm2 "sock_path=$scratch/swtpm.sock"
check "the guest is there" life 1 300
check "what was stored is there" answers "$read" "*c0ffee00c0ffee00*"
echo 'poweroff -f' >&8
wait_dm 60
check "status 0" test $? = 0
[ "$failures" = 0 ] || tail -60 "$guest_log"
finish
