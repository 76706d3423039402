#!/bin/bash
# Where a bit-field lies in a struct: clang 14 says DW_AT_bit_offset, from the most significant bit of a storage
# unit that DW_AT_data_member_location and DW_AT_byte_size name, although its BPF objects are DWARF 5, which has
# dropped that attribute. clang 22 says DW_AT_data_bit_offset, from the start of the struct, and no location. A reader
# of struct layouts that knows one of the two misplaces the fields of the other's objects.
# Shown with Debian 12's clang 14.0.6 and clang 22.1.8.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat >bits.c <<'C'
struct flow { unsigned char proto; unsigned long long hash : 40, age : 24; };
struct flow seen;
C
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install pyelftools==0.32 2>/dev/null
look() { # version of clang
  apt-get download -q "clang-$1" "libclang-cpp$1" "libllvm$1" "libclang-common-$1-dev" >/dev/null
  for deb in *.deb; do dpkg -x "$deb" "unpacked$1"; done
  rm -- *.deb
  local lib="$dir/unpacked$1/usr/lib"
  LD_LIBRARY_PATH="$lib/x86_64-linux-gnu:$lib/llvm-$1/lib" "$lib/llvm-$1/bin/clang" --version | head -n 1
  LD_LIBRARY_PATH="$lib/x86_64-linux-gnu:$lib/llvm-$1/lib" "$lib/llvm-$1/bin/clang" -target bpf -g -O2 -c bits.c -o "bits$1.o"
  venv/bin/python - "bits$1.o" <<'PY'
import sys

from elftools.elf.elffile import ELFFile

dwarf = ELFFile(open(sys.argv[1], "rb")).get_dwarf_info()
for unit in dwarf.iter_CUs():
    for die in unit.iter_DIEs():
        name = die.attributes.get("DW_AT_name")
        if die.tag == "DW_TAG_member" and name and name.value == b"age":
            said = {k[6:]: a.value for k, a in die.attributes.items() if "bit_off" in k or "location" in k}
            print("  DWARF", unit["version"], "age:", said)
PY
}
old=$(look 14)
new=$(look 22)
printf '%s\n' "$old" "$new"
grep -q "'bit_offset': 40" <<<"$old" || { echo "clang 14 says something else now"; exit 1; }
grep -q "'data_bit_offset': 64" <<<"$new" || { echo "clang 22 says something else now"; exit 1; }
