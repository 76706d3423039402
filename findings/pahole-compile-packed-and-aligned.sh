#!/bin/bash
# A struct that is packed and then aligned, `__attribute__((packed, aligned(4)))`, has 12 bytes with a u64 and a u8.
# pahole 1.24 reads that from its BTF (its comment says «size: 12»), and the struct that it writes with `--compile`
# beside that comment has no attribute: compiled, it has 16 bytes, and what follows it in another struct is elsewhere.
# Shown with Debian 12's pahole 1.24-4.1 and clang 14.0.6.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q pahole=1.24-4.1 clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 \
  libllvm14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
export PATH="$dir/unpacked/usr/bin:$dir/unpacked/usr/lib/llvm-14/bin:$PATH"
export LD_LIBRARY_PATH="$dir/unpacked/usr/lib/x86_64-linux-gnu:$dir/unpacked/usr/lib:$dir/unpacked/usr/lib/llvm-14/lib"
cat >flow.h <<'C'
struct flow { unsigned long long bytes; unsigned char proto; } __attribute__((packed, aligned(4)));
C
printf '#include "flow.h"\nstruct flow seen;\n' >flow.c
clang -target bpf -g -O2 -c flow.c -o flow.o
pahole --version
pahole -F btf --compile flow.o | tee written.h
grep -q 'size: 12,' written.h || { echo "it reads another size now"; exit 1; }
size() { # header, size that is expected
  printf '#include "%s"\n_Static_assert(sizeof(struct flow) == %d, "size");\n' "$1" "$2" >check.c
  clang -target bpf -fsyntax-only check.c
}
size flow.h 12
size written.h 16 || { echo "the struct that is written has another size now"; exit 1; }
echo "sizeof(struct flow): 12 as declared, 16 as written by pahole"
