#!/bin/bash
# mkinitramfs.sh DIR [MODULE...]: packs busybox, ./init and the named kernel modules (with what they depend on) of what
# fetch.sh put into DIR to DIR/initramfs.gz, or $INITRAMFS. busybox and init are all a boot to a shell needs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
die() {
  echo "mkinitramfs.sh: $1" >&2
  exit "${2:-69}"
}
[ $# -gt 0 ] || die "usage: mkinitramfs.sh DIR [MODULE...]" 64
[ -e "$1/busybox" ] && [ -e "$1/modules" ] || die "$1 has no busybox and modules: fetch.sh $1 brings them" 66
for tool in cpio gzip; do command -v $tool > /dev/null || die "there is no $tool (package $tool)"; done
dir=$(cd "$1" && pwd)
shift
initramfs=${INITRAMFS:-$dir/initramfs.gz}
[ -w "$(dirname "$initramfs")" ] || die "$initramfs cannot be written: INITRAMFS= names another place" 73
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,lib,dev}
cp "$dir/busybox" "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"

version=$(ls "$dir/modules")
# Prints a module's file after those it depends on (modules.dep lists them last to first); nothing where it is built in.
with_dependencies() {
  local line
  line=$(grep -E "/$(echo "$1" | sed 's/[-_]/[-_]/g')\.ko[^:]*:" "$dir/modules/$version/modules.dep" | head -1 || true)
  [ -n "$line" ] || return 0
  echo "$line" | tr -d ':' | tr ' ' '\n' | tac
}
[ -e "$dir/modules/$version/modules.dep" ] || [ $# = 0 ] || {
  mkdir -p "$dir/tree/lib" && ln -sfn "$dir/modules" "$dir/tree/lib/modules" && /sbin/depmod -b "$dir/tree" "$version"
}
for module in "$@"; do with_dependencies "$module"; done | awk '!seen[$0]++' | while read -r file; do
  cp "$dir/modules/$version/$file" "$root/lib/"
  echo "${file##*/}" >> "$root/lib/order"
done

(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0 | gzip -9n) > "$initramfs"
ls -l "$initramfs"
