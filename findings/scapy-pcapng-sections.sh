#!/bin/bash
# Interface IDs of a pcapng file start anew at 0 in each section (draft-ietf-opsawg-pcapng, 4.1), so that files may be
# concatenated. scapy 2.8.0 knows sections, byte order included, and goes on with the interfaces of all sections
# before (RawPcapNgReader._read_block_shb leaves self.interfaces): a packet of the second file gets the link type and
# the resolution of the first file's interface, here Ethernet for a raw IP packet and a time a thousand times too
# late.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install scapy==2.8.0 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import struct

from scapy.utils import RawPcapNgReader


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


ETHERNET, RAW_IP, RESOLUTION, NANO = 1, 101, 9, b"\x09"
one = section("<") + interface("<", ETHERNET) + packet("<", 1_700_000_000_000_000, bytes(60))
two = section("<") + interface("<", RAW_IP, RESOLUTION, NANO) + packet("<", 1_700_000_000_000_000_000, bytes(20))


def said(capture):
    return [(a.linktype, (a.tshigh << 32 | a.tslow) // a.tsresol) for _, a in RawPcapNgReader(io.BytesIO(capture))]


print("link type and second, each file for itself:", said(one) + said(two))
print("one behind the other:                      ", said(one + two))
assert said(one) + said(two) == [(ETHERNET, 1_700_000_000), (RAW_IP, 1_700_000_000)]
assert said(one + two) == [(ETHERNET, 1_700_000_000), (ETHERNET, 1_700_000_000_000)], "sections are told apart now"
PY
