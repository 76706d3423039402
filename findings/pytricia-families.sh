#!/bin/bash
# pytricia 1.3.0 takes prefixes of IPv4 and IPv6 in one table of 128 bits and does not keep the families apart: it
# stores the bits alone. 10.0.0.0/8 and a00::/8 have the same first byte, so they are one entry; the one added last
# answers for both, and the table has one key. py-radix 1.1.0 keeps two.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install py-radix==1.1.0 pytricia==1.3.0 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import pytricia
import radix

table = pytricia.PyTricia(128)
table["10.0.0.0/8"] = "IPv4"
table["a00::/8"] = "IPv6"
print("pytricia:", table.keys(), "10.1.1.1 is", table.get("10.1.1.1"))
assert table.keys() == ["10.0.0.0/8"] and table.get("10.1.1.1") == "IPv6", "the families are kept apart now"
tree = radix.Radix()
tree.add("10.0.0.0/8").data["is"] = "IPv4"
tree.add("a00::/8").data["is"] = "IPv6"
print("py-radix:", [n.prefix for n in tree], "10.1.1.1 is", tree.search_best("10.1.1.1").data["is"])
assert len(list(tree)) == 2 and tree.search_best("10.1.1.1").data["is"] == "IPv4"
PY
