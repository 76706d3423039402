#!/bin/bash
# lief 1.0.0 reads the relocations of an object for big-endian BPF rightly, and writes them in the machine's byte
# order: parsed and written without a change, the object's relocation of symbol 3 has become one of symbol 16777216,
# at 0x800000000000000, where there is nothing. The little-endian object comes through whole. Reported as LIEF's issue
# 673, which is closed; for relocatable files it is still so. Shown with Debian 12's clang 14.0.6.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q clang-14=1:14.0.6-12 libclang-cpp14=1:14.0.6-12 libclang-common-14-dev=1:14.0.6-12 \
  libllvm14=1:14.0.6-12 >/dev/null
for deb in *.deb; do dpkg -x "$deb" unpacked; done
echo 'int limit = 5; int one(int *ctx) { return *ctx + limit; }' >one.c
for target in bpfel bpfeb; do
  LD_LIBRARY_PATH="$dir/unpacked/usr/lib/x86_64-linux-gnu:$dir/unpacked/usr/lib/llvm-14/lib" \
    unpacked/usr/lib/llvm-14/bin/clang -target "$target" -O2 -c one.c -o "$target.o"
done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install lief==1.0.0 pyelftools==0.32 2>/dev/null
venv/bin/python - <<'PY'
import lief
from elftools.elf.elffile import ELFFile


def relocations(path):
    with open(path, "rb") as file:
        section = ELFFile(file).get_section_by_name(".rel.text")
        return [(r["r_offset"], r["r_info"]) for r in section.iter_relocations()]


for target in ("bpfel", "bpfeb"):
    lief.parse(f"{target}.o").write(f"{target}.written.o")
    before, after = relocations(f"{target}.o"), relocations(f"{target}.written.o")
    print(f"{target}: r_offset and r_info read", *[[hex(n) for n in r] for r in (*before, *after)], sep=" ")
    if target == "bpfeb":
        before = [tuple(int.from_bytes(n.to_bytes(8, "little"), "big") for n in entry) for entry in before]
        assert after == before, "they are in the file's byte order now"
    assert after == before
PY
