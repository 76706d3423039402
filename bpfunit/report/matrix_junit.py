"""A run as JUnit XML, one file for each kernel.

The elements and attributes are those that CI systems read of pytest's own file (``testsuite``,
``testcase``, ``failure``, ``error``, ``skipped``, ``system-out``). A test that died with its guest,
and one that never ran, is an ``error``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from bpfunit.report._model import KernelInfo, Outcome, Run, Status

# What XML 1.0 can hold, section 2.2; logs of a dying kernel hold more.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {
    Status.CRASHED: "error",
    Status.MISSING: "error",
    Status.ERROR: "error",
    Status.FAILED: "failure",
    Status.XFAILED: "skipped",
    Status.SKIPPED: "skipped",
    Status.NOT_APPLICABLE: "skipped",
}


def junit(run: Run, kernel: KernelInfo) -> ET.Element:
    """Return the outcomes on one kernel as a ``testsuites`` element."""
    outcomes = [outcome for outcome in run.outcomes if outcome.kernel == kernel.name]
    elements = [_ELEMENTS.get(outcome.status) for outcome in outcomes]
    suite = ET.Element(
        "testsuite",
        name=kernel.name,
        tests=str(len(outcomes)),
        errors=str(elements.count("error")),
        failures=str(elements.count("failure")),
        skipped=str(elements.count("skipped")),
        time=f"{run.seconds_on(kernel.name):.3f}",
        timestamp=run.started.isoformat(timespec="seconds"),
    )
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", name="kernel", value=kernel.name)
    for note in kernel.notes:
        ET.SubElement(properties, "property", name="note", value=_clean(note))
    suite.extend(_case(outcome) for outcome in outcomes)
    suites = ET.Element("testsuites", name=run.title)
    suites.append(suite)
    return suites


def write_junit(run: Run, directory: Path) -> list[Path]:
    """Write ``junit-RELEASE.xml`` for each kernel of a run; the directory is made where needed.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for kernel in run.kernels:
        path = directory / f"junit-{kernel.name}.xml"
        tree = ET.ElementTree(junit(run, kernel))
        tree.write(path, encoding="utf-8", xml_declaration=True)
        written.append(path)
    return written


def _case(outcome: Outcome) -> ET.Element:
    file, _, name = outcome.test.partition("::")
    scope = name.partition("[")[0].rpartition("::")[0]
    module = file.removesuffix(".py").replace("/", ".")
    case = ET.Element(
        "testcase",
        classname=_clean(".".join([module, *scope.split("::")] if scope else [module])),
        name=_clean(name.removeprefix(f"{scope}::") or file),
        time=f"{outcome.seconds:.3f}",
    )
    if outcome.properties:
        properties = ET.SubElement(case, "properties")
        for key, value in outcome.properties:
            ET.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    if tag := _ELEMENTS.get(outcome.status):
        element = ET.SubElement(
            case, tag, type=outcome.status.value, message=_clean(outcome.reason)
        )
        # The first text is the traceback where there is one.
        element.text = _clean(outcome.sections[0].text if outcome.sections else outcome.reason)
    rest = outcome.sections[1:] if tag else outcome.sections
    if rest:
        output = ET.SubElement(case, "system-out")
        output.text = _clean("\n".join(f"{s.title}:\n{s.text}" for s in rest))
    return case


def _clean(text: str) -> str:
    return _ILLEGAL.sub(lambda found: f"#x{ord(found[0]):02X}", text)
