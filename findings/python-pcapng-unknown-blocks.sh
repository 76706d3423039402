#!/bin/bash
# python-pcapng 2.1.1 hands out blocks of types that it does not know as UnknownBlock, among them those of pcapng's
# later drafts (10, the decryption secrets that Wireshark writes). Such a block has no dictionary of decoded fields,
# in which Block.__getattr__ looks for every name: hasattr() and getattr() with a default, the usual way to pick the
# packets, end in RecursionError instead of False. isinstance() is what works.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install python-pcapng==2.1.1 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import struct

import pcapng


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


secrets = block("<", 10, struct.pack("<II", 0x544C534B, 4) + b"none")
scanner = pcapng.FileScanner(io.BytesIO(section("<") + secrets))
found = list(scanner)[1]
print(found)
assert type(found) is pcapng.blocks.UnknownBlock, "the type is known now"
try:
    print("hasattr says", hasattr(found, "packet_data"))
except RecursionError as error:
    print("hasattr: RecursionError:", error)
else:
    raise SystemExit("hasattr answers now")
PY
