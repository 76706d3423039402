#!/bin/bash
# A pcapng file may have several interfaces, each with its own if_tsresol (draft-ietf-opsawg-pcapng, 4.2), and several
# sections, each in its own byte order (4.1). dpkt 1.9.8 reads one section header and one interface when a Reader is
# made and uses them to the end of the file: a packet of an interface that counts nanoseconds gets a time in the year
# 55840, and behind a section of the other byte order the file seems to end, without an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install dpkt==1.9.8 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import struct

from dpkt import pcapng


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order, link=1, option=None, value=b""):
    body = struct.pack(order + "HHI", link, 0, 0)
    if option is not None:
        padded = value + bytes(-len(value) % 4)
        body += struct.pack(order + "HH", option, len(value)) + padded + bytes(4)
    return block(order, 1, body)


def packet(order, stamp, data, interface=0):
    head = struct.pack(order + "IIIII", interface, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
    return block(order, 6, head + data)


RESOLUTION, NANO = 9, b"\x09"
MICROS, NANOS = 1_700_000_000_000_000, 1_700_000_000_000_000_000
frame = bytes(60)
two_interfaces = section("<") + interface("<") + interface("<", 1, RESOLUTION, NANO)
two_interfaces += packet("<", MICROS, frame) + packet("<", NANOS, frame, interface=1)
times = [stamp for stamp, data in pcapng.Reader(io.BytesIO(two_interfaces))]
print("two interfaces, both packets of one moment:", times)
assert times == [1.7e9, 1.7e12], "each interface has its own resolution now"

two_sections = b"".join(section(o) + interface(o) + packet(o, MICROS, frame) for o in "<>")
times = [stamp for stamp, data in pcapng.Reader(io.BytesIO(two_sections))]
print("two sections, a packet in each:", times)
assert times == [1.7e9], "the second section is read now"
PY
