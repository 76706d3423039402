#!/bin/bash
# The option if_tsoffset of a pcapng interface is a number of seconds to add to the time of each of its packets
# (draft-ietf-opsawg-pcapng, 4.2). dpkt 1.9.8 adds it. scapy 2.8.0 reads over it, and python-pcapng 2.1.1 decodes the
# option and does not use it: the packet of 2023 is of the first minute of 1970.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install dpkt==1.9.8 python-pcapng==2.1.1 scapy==2.8.0 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import struct

import pcapng
from dpkt import pcapng as dpkt_pcapng
from scapy.utils import PcapNgReader


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


OFFSET = 14
capture = section("<") + interface("<", 1, OFFSET, struct.pack("<q", 1_700_000_000))
capture += packet("<", 5_500_000, bytes(60))
dpkt = [stamp for stamp, data in dpkt_pcapng.Reader(io.BytesIO(capture))]
scapy = [float(p.time) for p in PcapNgReader(io.BytesIO(capture))]
blocks = list(pcapng.FileScanner(io.BytesIO(capture)))
scanned = [b.timestamp for b in blocks if isinstance(b, pcapng.blocks.EnhancedPacket)]
print(f"dpkt: {dpkt}, scapy: {scapy}, python-pcapng: {scanned}, its option: {blocks[1].options['if_tsoffset']}")
assert dpkt == [1_700_000_005.5]
assert scapy == [5.5], "scapy adds the offset now"
assert scanned == [5.5], "python-pcapng adds the offset now"
assert blocks[1].options["if_tsoffset"] == 1_700_000_000
PY
