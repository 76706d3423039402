#!/bin/bash
# BTF keeps a union's size and no alignment. Where the compiler was told to align one (a cache line for each processor's
# part, room for other members to come), its size is larger than its members, and bpftool writes the members alone:
# padding goes between the members of a struct, and in a union there is no place for it. The next member of the struct
# moves to where the padding was, without a word; a program compiled with this header reads another field.
# Shown with Debian 12's bpftool 7.1.0 and clang 14.0.6.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q bpftool clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 \
  libllvm14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
lib="$dir/unpacked/usr/lib"
clang() { LD_LIBRARY_PATH="$lib/x86_64-linux-gnu:$lib/llvm-14/lib" "$lib/llvm-14/bin/clang" -target bpf -g -O2 -w -c "$@"; }
bpftool() { "$dir/unpacked/usr/sbin/bpftool" "$@"; }
cat >own.c <<'C'
struct slot {
	char kind;
	union {
		int count;
	} __attribute__((aligned(16))) value;
	int after;
};
struct slot seen;
C
clang own.c -o own.o
bpftool version | sed -n '1s|.*/||p'
bpftool btf dump file own.o format c >dumped.h
sed -n '/^struct slot/,/^};/p' dumped.h
printf '#include "dumped.h"\nstruct slot seen;\n' >again.c
clang again.c -o again.o
offset() { bpftool btf dump file "$1" | sed -n "s/.*'after' .*bits_offset=\([0-9]*\).*/\1/p"; }
was=$(offset own.o) is=$(offset again.o)
echo "after lies at bit $was, and at bit $is by the header that bpftool writes"
if [ "$was" != 256 ] || [ "$is" = 256 ]; then
  echo "no longer so"
  exit 1
fi
