#!/bin/bash
# A pcapng Simple Packet Block holds min(original length, SnapLen) bytes, and a SnapLen of 0 says that the interface
# has no limit (draft-ietf-opsawg-pcapng, 4.2 and 4.4). scapy 2.8.0 takes 0 for the limit
# (RawPcapNgReader._read_block_spb) and returns the packet without its bytes, dpkt 1.9.8 leaves the packet out,
# python-pcapng 2.1.1 has it whole.
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
from scapy.utils import RawPcapNgReader


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order):
    return block(order, 1, struct.pack(order + "HHI", 1, 0, 0))


frame = bytes(range(60))
capture = section("<") + interface("<") + block("<", 3, struct.pack("<I", len(frame)) + frame)
scapy = [(len(data), about.wirelen) for data, about in RawPcapNgReader(io.BytesIO(capture))]
dpkt = list(dpkt_pcapng.Reader(io.BytesIO(capture)))
whole = [b.packet_data for b in pcapng.FileScanner(io.BytesIO(capture)) if isinstance(b, pcapng.blocks.SimplePacket)]
print(f"scapy, bytes and length on the wire: {scapy}; dpkt: {dpkt}; python-pcapng: {[len(p) for p in whole]} bytes")
assert scapy == [(0, 60)], "scapy has the bytes now"
assert dpkt == [], "dpkt has the packet now"
assert whole == [frame]
PY
