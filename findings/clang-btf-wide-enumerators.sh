#!/bin/bash
# An enumerator beyond 32 bits: clang 14 cuts it in the BTF of a BPF object, without a warning, so that 1 << 40 is 0
# there; the DWARF of the same object has the value. clang 22 writes BTF_KIND_ENUM64, which has all of it.
# Shown with Debian 12's clang 14.0.6 and clang 22.1.8.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat >wide.c <<'C'
enum limit { FEW = 3, MANY = 1ULL << 40 };
enum limit chosen = MANY;
C
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install pyelftools==0.32 2>/dev/null
look() { # version of clang
  apt-get download -q "clang-$1" "libclang-cpp$1" "libllvm$1" "libclang-common-$1-dev" >/dev/null
  for deb in *.deb; do dpkg -x "$deb" "unpacked$1"; done
  rm -- *.deb
  local lib="$dir/unpacked$1/usr/lib"
  export LD_LIBRARY_PATH="$lib/x86_64-linux-gnu:$lib/llvm-$1/lib"
  "$lib/llvm-$1/bin/clang" --version | head -n 1
  "$lib/llvm-$1/bin/clang" -Wall -Wextra -Werror -target bpf -g -O2 -c wide.c -o "wide$1.o"
  unset LD_LIBRARY_PATH
  venv/bin/python - "wide$1.o" <<'PY'
import struct
import sys

from elftools.elf.elffile import ELFFile

elf = ELFFile(open(sys.argv[1], "rb"))
for unit in elf.get_dwarf_info().iter_CUs():
    for die in unit.iter_DIEs():
        if die.tag == "DW_TAG_enumerator" and die.attributes["DW_AT_name"].value == b"MANY":
            print("  DWARF: MANY =", die.attributes["DW_AT_const_value"].value)

# kernel's Documentation/bpf/btf.rst: a header, then types; behind struct btf_type come an enum's values
raw = elf.get_section_by_name(".BTF").data()
header, types, _, strings = struct.unpack_from("<4I", raw, 4)
ENUM, ENUM64 = 6, 19
at = header + types
while at < header + strings:
    _, info, _ = struct.unpack_from("<3I", raw, at)
    kind, count = info >> 24 & 31, info & 0xFFFF
    at += 12
    for _ in range(count if kind in (ENUM, ENUM64) else 0):
        name, value = struct.unpack_from("<Ii" if kind == ENUM else "<Iq", raw, at)
        if raw[header + strings + name :].startswith(b"MANY\0"):
            print(f"  BTF: kind {kind}, MANY =", value)
        at += 8 if kind == ENUM else 12
    if kind == 1:  # an integer's encoding
        at += 4
    elif kind == 14:  # a variable's linkage
        at += 4
    elif kind == 15:  # a section's variables
        at += 12 * count
PY
}
old=$(look 14)
new=$(look 22)
printf '%s\n' "$old" "$new"
[ "$(grep -c 'DWARF: MANY = 1099511627776' <<<"$old$new")" = 2 ] || { echo "DWARF says something else now"; exit 1; }
grep -q 'BTF: kind 6, MANY = 0' <<<"$old" || { echo "clang 14 says something else now"; exit 1; }
grep -q 'BTF: kind 19, MANY = 1099511627776' <<<"$new" || { echo "clang 22 says something else now"; exit 1; }
