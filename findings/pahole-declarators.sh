#!/bin/bash
# Where C puts a name between the parts of its type, pahole 1.24 loses count, from BTF and DWARF alike: an array of
# two pointers to functions, `void (*hooks[2])(int)`, is printed as `void (*hooks)(int)[2]`, which is a function that
# returns an array and no C, and a pointer to an array of four, `int (*row)[4]`, as `int * row`, which is another type.
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
cat >table.c <<'C'
struct table { void (*hooks[2])(int); int (*row)[4]; };
struct table seen;
C
clang -target bpf -g -O2 -c table.c -o table.o
pahole --version
for source in btf dwarf; do
  echo "from $source:" && pahole -F "$source" table.o | tee said
  grep -Eq '^\s+void +\(\*hooks\)\(int\)\[2\];' said || { echo "the array is printed in another way now"; exit 1; }
  grep -Eq '^\s+int \* +row;' said || { echo "the pointer is printed in another way now"; exit 1; }
done
