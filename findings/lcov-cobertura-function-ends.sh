#!/bin/bash
# Since lcov 2.0 a function in a tracefile may have its last line, too: FN:first,last,name (geninfo(1)), and
# coverage.py writes it so. lcov_cobertura 2.1.1 splits at the first comma only: each function becomes two methods in
# its XML, `2,name`, which is never hit, and `name`, which lies in line 0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install coverage==7.10.7 lcov_cobertura==2.1.1 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import os
import xml.etree.ElementTree as ElementTree

import coverage
from lcov_cobertura import LcovCobertura

with open("verdict.py", "w") as file:
    file.write("def verdict():\n    return 2\nverdict()\n")
measured = coverage.Coverage(include=["verdict.py"], data_file=None)
with measured.collect():
    exec(compile(open("verdict.py").read(), os.path.abspath("verdict.py"), "exec"), {})
measured.lcov_report(outfile="lcov.info")
tracefile = open("lcov.info").read()
print(*[line for line in tracefile.splitlines() if line.startswith("FN")], sep="\n")
assert "FN:1,2,verdict\n" in tracefile
tree = ElementTree.parse(io.StringIO(LcovCobertura(tracefile).convert()))
lines = {m.get("name"): m.find("lines/line") for m in tree.iter("method")}
methods = {name: (line.get("number"), line.get("hits")) for name, line in lines.items()}
print("methods, with line and hits:", methods)
assert methods == {"2,verdict": ("1", "0"), "verdict": ("0", "1")}, "the last line is understood now"
PY
