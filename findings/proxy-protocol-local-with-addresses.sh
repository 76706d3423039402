#!/bin/bash
# PROXY protocol, version 2 (HAProxy's doc/proxy-protocol.txt, 2.2): of a LOCAL header the receiver ignores the
# family and discards the whole block behind it, so a sender may put addresses there. The Python package
# proxy-protocol 0.11.3 reads such a block as TLVs from its first byte: 192.0.2.1 becomes the head
# of a TLV of type 192.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install proxy-protocol==0.11.3 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import struct

from proxyprotocol.v2 import ProxyProtocolV2

signature = b"\r\n\r\n\x00\r\nQUIT\n"
addresses = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack("!HH", 40000, 443)
LOCAL, TCP4 = 0x20, 0x11
header = signature + bytes([LOCAL, TCP4]) + struct.pack("!H", len(addresses)) + addresses
result = ProxyProtocolV2().unpack(header)
print(f"{type(result).__name__}, its TLVs: {dict(result.tlv)!r}")
assert set(result.tlv) == {192, 51}, "the block is no longer read as TLVs"
PY
