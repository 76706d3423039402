#!/bin/bash
# execnet's serialiser takes positive integers of any size. A negative one below -2^31 fails, with struct.error
# instead of the DumpError that other values which cannot be sent raise: code that catches DumpError around a
# send misses it. Seen with execnet 2.1.2 on Python 3.11.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install execnet==2.1.2 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import struct

from execnet.gateway_base import DumpError, dumps, loads

for fine in (2**31, 2**70, -(2**31)):
    assert loads(dumps(fine)) == fine
    print(f"{fine}: carried")
for lost in (-(2**31) - 1, -(2**70)):
    try:
        dumps(lost)
    except DumpError as error:
        raise SystemExit(f"{lost}: now execnet's own error: {error}")
    except struct.error as error:
        print(f"{lost}: struct.error: {error}")
    else:
        raise SystemExit(f"{lost}: now carried")
PY
