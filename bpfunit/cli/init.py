"""``bpfunit init``: a first test, a make target and a CI workflow for someone's own project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import jinja2
import typer

from bpfunit.cli._common import out
from bpfunit.cli._objects import find_objects, is_bpf_object, programs_of
from bpfunit.errors import BpfunitError

_TEMPLATES = Path(__file__).parent / "templates"
_WORKFLOW = Path(".github/workflows/bpfunit.yml")


class InitError(BpfunitError):
    """The project cannot be set up as it is; nothing was written."""


def init(
    object_: Annotated[
        Path | None,
        typer.Option("--object", "-o", help="The object to test; looked for when not given."),
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", "-k", help="The kernel of the make target and the workflow.")
    ] = "6.12",
    directory: Annotated[
        Path, typer.Option("--directory", "-C", help="The project.", file_okay=False)
    ] = Path(),
) -> None:
    """Write a first test, a make target and a CI workflow into an eBPF project.

    Build the object first: the test is made for the programs that it has. Files that exist are
    never overwritten: if one does, nothing is written at all.
    """
    root = directory.resolve()
    target = _choose_object(root, object_)
    files = render(root, target, kernel)
    existing = [str(path) for path in files if (root / path).exists()]
    if existing:
        raise InitError(
            f"set up {root}: {', '.join(existing)} already there; nothing was written. "
            "Move it away, or copy what you need from the documentation"
        )
    console = out()
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
        console.print(f"wrote {path}")
    console.print("\nNext:")
    console.print(f"  bpfunit doctor\n  pytest --kernel {kernel} tests", markup=False)
    if _has_makefile(root):
        console.print("For `make vmtest`, add this line to your Makefile: include bpfunit.mk")
    else:
        console.print("or: make -f bpfunit.mk vmtest")


def _has_makefile(root: Path) -> bool:
    return any((root / name).exists() for name in ("Makefile", "GNUmakefile", "makefile"))


def _source_to_build(root: Path, target: Path) -> str:
    """Return the source for which a rule is to be written; "" where the project has its own.

    Without any rule, make would take the one it was born with and compile for this machine.
    """
    if _has_makefile(root):
        return ""
    for directory in (target.parent, root):
        source = directory / target.with_suffix(".c").name
        if source.exists():
            return str(source.relative_to(root))
    return ""


def _choose_object(root: Path, given: Path | None) -> Path:
    if given is not None:
        path = given if given.is_absolute() else Path.cwd() / given
        if not path.exists() and (root / given).exists():
            path = root / given
        if not is_bpf_object(path):
            found = "no such file" if not path.exists() else "not an ELF object for BPF"
            raise InitError(f"read {given}: {found}; build it with clang -target bpf -g -O2 -c")
        return path.resolve()
    found_objects = list(find_objects(root))
    if not found_objects:
        raise InitError(
            f"look for BPF objects in {root}: none; build yours first "
            "(clang -target bpf -g -O2 -c prog.bpf.c -o prog.bpf.o), or say --object FILE"
        )
    if len(found_objects) > 1:
        listing = ", ".join(str(path.relative_to(root)) for path in found_objects)
        raise InitError(f"look for BPF objects in {root}: {listing}; say which: --object FILE")
    return found_objects[0]


def render(root: Path, target: Path, kernel: str) -> dict[Path, str]:
    """Return the files that ``init`` writes, by path below the project.

    Args:
        root: the project, absolute.
        target: the object, absolute; must lie in the project.
        kernel: what ``--kernel`` gets.

    Raises:
        InitError: the object lies elsewhere.
    """
    if not target.is_relative_to(root):
        raise InitError(
            f"set up {root}: {target} is not in it; say --directory, or copy the object"
        )
    programs = programs_of(target)
    if not programs:
        raise InitError(f"set up {root}: {target.name} has no programs; is it the right object?")
    name = re.sub(r"\W+", "_", target.name.removesuffix(".o").removesuffix(".bpf")).strip("_")
    values = {
        "object": str(target.relative_to(root)),
        "source": _source_to_build(root, target),
        "object_name": target.name,
        "kernel": kernel,
        "tests": "tests",
        "programs": programs,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Python, make and YAML, no markup
    )
    return {
        Path(path): environment.get_template(template).render(values)
        for path, template in (
            (f"tests/test_{name or 'bpf'}.py", "test.py.j2"),
            ("bpfunit.mk", "bpfunit.mk.j2"),
            (str(_WORKFLOW), "workflow.yml.j2"),
        )
    }
