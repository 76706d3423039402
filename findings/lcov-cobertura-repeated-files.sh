#!/bin/bash
# A tracefile of lcov may have several records for one source file, such as one for each test name, and tools add them
# up. lcov_cobertura 2.1.1 keeps the last record's lines as the file's and adds the lines of all records to the
# totals: a line that the first test ran has no hits, and the report counts four lines where the file has two.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install lcov_cobertura==2.1.1 2>/dev/null
"$dir/venv/bin/python" - <<'PY'
import io
import xml.etree.ElementTree as ElementTree

from lcov_cobertura import LcovCobertura

tracefile = """TN:first
SF:src/verdict.c
DA:1,7
DA:2,0
end_of_record
TN:second
SF:src/verdict.c
DA:1,0
DA:2,5
end_of_record
"""
root = ElementTree.parse(io.StringIO(LcovCobertura(tracefile).convert())).getroot()
hits = {line.get("number"): line.get("hits") for line in root.iter("line")}
print("hits:", hits, "of", root.get("lines-valid"), "lines,", root.get("lines-covered"), "covered")
assert hits == {"1": "0", "2": "5"}, "records of one file are added up now"
assert (root.get("lines-valid"), root.get("lines-covered")) == ("4", "2")
PY
