#!/bin/bash
# bpftool 7.1 (libbpf 1.1) on a little-endian machine prints the types of an object that clang built for big
# endian (`btf dump`), and refuses to link the same object with `gen object`: the library converts byte order
# when it reads types, its linker does not. So objects for s390x are to be linked on s390x, or by a newer bpftool.
# Shown with Debian 12's bpftool 7.1.0 and clang 14.0.6. Nothing is loaded.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q bpftool clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 \
  libllvm14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
export LD_LIBRARY_PATH="$dir/unpacked/usr/lib/x86_64-linux-gnu:$dir/unpacked/usr/lib/llvm-14/lib"
cat >one.c <<'C'
struct state { int count; } state;
int one(void *ctx) { return state.count; }
C
"$dir/unpacked/usr/lib/llvm-14/bin/clang" -target bpfeb -g -O2 -c one.c -o one.o
bpftool="$dir/unpacked/usr/sbin/bpftool"
"$bpftool" version | head -n 1
"$bpftool" btf dump file one.o | grep "STRUCT 'state'" || { echo "it no longer reads the types"; exit 1; }
if "$bpftool" gen object linked.o one.o 2>said; then
  echo "it links a big-endian object now"
  exit 1
fi
cat said
grep -q "byte order" said
