#!/bin/bash
# IPv6 addresses may end in a dotted quad (RFC 4291, 2.2, form 3), as the socket functions print those that are mapped
# from IPv4. dnslib 0.9.26's AAAA takes no such address (_parse_ipv6 reads each part as hexadecimal): ValueError about
# int(), from the constructor and from zone text, while ipaddress and inet_pton read it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install dnslib==0.9.26 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import ipaddress
import socket

from dnslib import AAAA

for text in ("::ffff:192.0.2.1", "64:ff9b::192.0.2.33"):
    packed = socket.inet_pton(socket.AF_INET6, text)
    assert ipaddress.ip_address(text).packed == packed
    assert bytes(AAAA(tuple(packed)).data) == packed
    try:
        AAAA(text)
    except ValueError as error:
        print(f"{text}: {error}")
        assert "base 16" in str(error)
    else:
        raise SystemExit(f"{text}: read now")
PY
