#!/bin/bash
# Names in the data of a record may be compressed only for the types of RFC 1035 (RFC 3597, 4). dnslib 0.9.26 packs
# the second name of an RP record (RFC 1183) as a pointer, so a message that it parsed and packed again has other
# record data than it came with: data that is hashed or signed, or copied from the message as it is, is no longer
# right.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install dnslib==0.9.26 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import struct

from dnslib import DNSRecord


def name(text):
    return b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0"


RP, IN = 17, 1
data = name("admin.zone.example") + name("about.zone.example")
message = struct.pack("!6H", 1, 0x8400, 0, 1, 0, 0) + name("host.invalid")
message += struct.pack("!HHIH", RP, IN, 60, len(data)) + data
again = bytes(DNSRecord.parse(message).pack())
print("came:", message[-len(data) :])
print("goes:", again[-30:])
assert len(again) < len(message) and again[-2] & 0xC0 == 0xC0, "the name is written out now"
PY
