"""Reports for other tools: LCOV tracefiles and Cobertura XML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from bpfunit.coverage.sites import Line, SourceFile
from bpfunit.coverage.summary import Totals, grand_total, totals


def lcov(files: Mapping[str, SourceFile]) -> str:
    """Return an LCOV tracefile (format: the manual page of geninfo(1)).

    A branch outcome is ``-`` where its line never ran, and its block number is the column, so that
    several branches on a line stay apart.
    """
    return "".join(f"{line}\n" for path, file in files.items() for line in _lcov_file(path, file))


def _lcov_file(path: str, file: SourceFile) -> Iterator[str]:
    yield "TN:bpfunit"
    yield f"SF:{path}"
    functions = file.functions.values()
    for function in functions:
        yield f"FN:{function.line},{function.name}"
    for function in functions:
        yield f"FNDA:{function.count},{function.name}"
    yield f"FNF:{len(functions)}"
    yield f"FNH:{sum(bool(function.count) for function in functions)}"
    for branch in file.branches:
        ran = file.lines[branch.at.line].count
        counted = [outcome for outcome in branch.outcomes if outcome.counted]
        for number, outcome in enumerate(counted):
            shown = outcome.count if ran else "-"
            yield f"BRDA:{branch.at.line},{branch.at.column},{number},{shown}"
    found = totals(file)
    yield f"BRF:{found.outcomes}"
    yield f"BRH:{found.outcomes - found.outcomes_missed}"
    for line in file.lines.values():
        if line.counted:
            yield f"DA:{line.number},{line.count}"
    yield f"LF:{found.lines}"
    yield f"LH:{found.lines - found.lines_missed}"
    yield "end_of_record"


def _rate(total: int, missed: int) -> str:
    return f"{(total - missed) / total:.4f}" if total else "1"


def _rates(found: Totals) -> dict[str, str]:
    return {
        "line-rate": _rate(found.lines, found.lines_missed),
        "branch-rate": _rate(found.outcomes, found.outcomes_missed),
        "complexity": "0",
    }


def cobertura(files: Mapping[str, SourceFile], root: str, timestamp: int) -> str:
    """Return Cobertura XML (coverage-04.dtd).

    Args:
        files: as from `merge_sources`.
        root: the directory that relative paths start from. Files below it are named from there:
            clang writes the whole path when it is called with a relative one, and CI systems look
            for names as they are in the repository.
        timestamp: seconds since 1970.
    """
    found = grand_total(files.values())
    coverage = ElementTree.Element(
        "coverage",
        {
            **_rates(found),
            "lines-valid": str(found.lines),
            "lines-covered": str(found.lines - found.lines_missed),
            "branches-valid": str(found.outcomes),
            "branches-covered": str(found.outcomes - found.outcomes_missed),
            "version": "bpfunit",
            "timestamp": str(timestamp),
        },
    )
    ElementTree.SubElement(ElementTree.SubElement(coverage, "sources"), "source").text = root
    packages = ElementTree.SubElement(coverage, "packages")
    package = ElementTree.SubElement(packages, "package", {"name": "bpf", **_rates(found)})
    classes = ElementTree.SubElement(package, "classes")
    for path, file in files.items():
        _cobertura_file(classes, path.removeprefix(f"{root}/"), file)
    ElementTree.indent(coverage)
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return declaration + ElementTree.tostring(coverage, encoding="unicode") + "\n"


def _cobertura_file(classes: ElementTree.Element, path: str, file: SourceFile) -> None:
    names = {"name": path.rsplit("/", 1)[-1], "filename": path}
    entry = ElementTree.SubElement(classes, "class", {**names, **_rates(totals(file))})
    ElementTree.SubElement(entry, "methods")
    lines = ElementTree.SubElement(entry, "lines")
    for line in file.lines.values():
        if line.counted:
            ElementTree.SubElement(lines, "line", _cobertura_line(line))


def _cobertura_line(line: Line) -> dict[str, str]:
    attributes = {"number": str(line.number), "hits": str(line.count)}
    outcomes = [o for branch in line.branches for o in branch.outcomes if o.counted]
    if outcomes:
        taken = sum(bool(outcome.count) for outcome in outcomes)
        percent = 100 * taken // len(outcomes)
        attributes["branch"] = "true"
        attributes["condition-coverage"] = f"{percent}% ({taken}/{len(outcomes)})"
    return attributes
