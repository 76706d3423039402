#!/bin/bash
# Relocation types of BPF objects have numbers from LLVM (kernel's Documentation/bpf/llvm_reloc.rst: 1 is
# R_BPF_64_64, 2 R_BPF_64_ABS64, 3 R_BPF_64_ABS32, 4 R_BPF_64_NODYLD32, 10 R_BPF_64_32). GNU readelf 2.40 names them
# after a numbering of its own: a 32-bit address in .debug_info, type 3, is shown as R_BPF_INSN_16.
# Shown with Debian 12's clang 14.0.6, llvm-readelf 14.0.6 and binutils 2.40.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q binutils=2.40-2 binutils-x86-64-linux-gnu=2.40-2 libbinutils=2.40-2 libctf0=2.40-2 libctf-nobfd0=2.40-2 \
  clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 libllvm14=1:14.0.6-12 \
  llvm-14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
export PATH="$dir/unpacked/usr/lib/llvm-14/bin:$PATH" LD_LIBRARY_PATH="$dir/unpacked/usr/lib/x86_64-linux-gnu:$dir/unpacked/usr/lib/llvm-14/lib"
echo 'int one(void *ctx) { return 1; }' >one.c
clang -target bpf -g -O2 -c one.c -o one.o
number=$(llvm-readelf -r one.o | awk '/\.rel\.debug_info/ {at = 1} at && /debug_abbrev/ {print $2, $3; exit}')
gnu=$("$dir/unpacked/usr/bin/x86_64-linux-gnu-readelf" -rW one.o | awk '/\.rel\.debug_info/ {at = 1} at && /debug_abbrev/ {print $2, $3; exit}')
printf 'llvm-readelf: %s\nGNU readelf:  %s\n' "$number" "$gnu"
case $number in *3\ R_BPF_64_ABS32) ;; *) echo "LLVM's name has changed"; exit 1 ;; esac
case $gnu in *3\ R_BPF_INSN_16) ;; *) echo "GNU's name has changed"; exit 1 ;; esac
