#!/bin/bash
# `bpftool btf dump … format c` of bpftool 7.1 (libbpf 1.1) writes an enum of one byte as an ordinary one, of four:
# a struct that has 5 bytes in the object has 20 in the header that was made from it, and nothing says so. The
# size is in the BTF, as `btf dump` without `format c` shows.
# Shown with Debian 12's bpftool 7.1.0 and clang 14.0.6. Nothing is loaded.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q bpftool clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 \
  libllvm14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
export PATH="$dir/unpacked/usr/sbin:$dir/unpacked/usr/lib/llvm-14/bin:$PATH"
export LD_LIBRARY_PATH="$dir/unpacked/usr/lib/x86_64-linux-gnu:$dir/unpacked/usr/lib/llvm-14/lib"
cat >state.h <<'C'
enum __attribute__((packed)) step { NEW, OPEN, SHUT };
struct state { enum step now; unsigned char tries; enum step before[3]; };
C
printf '#include "state.h"\nstruct state seen;\n' >state.c
clang -target bpf -g -O2 -c state.c -o state.o
bpftool version | head -n 1
bpftool btf dump file state.o | grep -E "ENUM 'step'.*size=1|STRUCT 'state' size=5" | tee raw
[ "$(wc -l <raw)" = 2 ] || { echo "the BTF has other sizes now"; exit 1; }
bpftool btf dump file state.o format c | tee written.h
size() { # header, size that is expected
  printf '#include "%s"\n_Static_assert(sizeof(struct state) == %d, "size");\n' "$1" "$2" >check.c
  clang -target bpf -fsyntax-only check.c
}
size state.h 5
size written.h 20 || { echo "the struct that is written has another size now"; exit 1; }
echo "sizeof(struct state): 5 as declared, 20 as written by bpftool"
