#!/bin/bash
# build.sh [DIR]: acrnctl, acrnd and life_mngr from ACRN's own sources, unmodified, into DIR (default .cache/managers). Once.
#   ACRN_SRC=DIR   a work tree or a git directory of acrn-hypervisor
# Status 77: there are no sources, and nothing is built yet.
set -euo pipefail
out=${1:-$(cd "$(dirname "$0")/../.." && pwd)/.cache/managers}

[ ! -x "$out/life_mngr" ] || exit 0
parts="misc/services/acrn_manager misc/services/life_mngr devicemodel/include hypervisor/include paths.make"
rm -rf "$out/src" && mkdir -p "$out/src"
# shellcheck disable=SC2086
if [ -z "${ACRN_SRC:-}" ]; then
  echo "ACRN_SRC names no sources of acrn-hypervisor" >&2
  exit 77
elif [ -d "$ACRN_SRC/misc/services/acrn_manager" ]; then
  tar -C "$ACRN_SRC" -c $parts | tar -C "$out/src" -x
else
  git --git-dir="$([ -d "$ACRN_SRC/.git" ] && echo "$ACRN_SRC/.git" || echo "$ACRN_SRC")" archive HEAD $parts | tar -C "$out/src" -x
fi
make -s -C "$out/src/misc/services/acrn_manager" OUT_DIR="$out" RELEASE=n
make -s -C "$out/src/misc/services/life_mngr" OUT_DIR="$out" all-linux
echo "$out: acrnctl, acrnd, life_mngr"
