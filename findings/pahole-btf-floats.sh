#!/bin/bash
# BTF has one kind for floating point, BTF_KIND_FLOAT, of which the name says what it is: "double" (kernel's
# Documentation/bpf/btf.rst). pahole 1.24 puts a word of its own in front when it prints types from BTF: `single
# double`, which is no C, so that what `pahole --compile` writes does not compile. From DWARF it says `double`.
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
cat >sample.c <<'C'
struct sample { float load; double mean; };
struct sample seen;
C
clang -target bpf -g -O2 -c sample.c -o sample.o
pahole --version
echo "from DWARF:" && pahole -F dwarf sample.o | tee dwarf
echo "from BTF:" && pahole -F btf --compile sample.o | tee btf.h
grep -Eq '^\s+double +mean;' dwarf || { echo "it says something else of DWARF now"; exit 1; }
grep -Eq '^\s+single double +mean;' btf.h || { echo "it says something else of BTF now"; exit 1; }
if clang -fsyntax-only -x c btf.h 2>said; then
  echo "it compiles now"
  exit 1
fi
grep -m 1 error: said
