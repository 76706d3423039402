"""Makes the objects of the mutants: a copy of the source each, one edit, the ordinary Makefile."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .mutant import BIG_ENDIAN_HOOK, HOOK, ROOT, Mutant, Subject

SOURCE = ROOT / "bpf"
#: Below bpf/build, so that the tests of the project's own log messages take part.
OBJECTS = SOURCE / "build" / "mutants"


class MutantError(Exception):
    """A mutant that cannot be made: its edit does not apply or compile, or changes nothing."""


def mutate(mutant: Mutant, text: str) -> str:
    """Return the file's text with the mutant's edit.

    Raises:
        MutantError: the text that the edit replaces is not there: the table is out of date.
    """
    start = text.find(mutant.after)
    place = text.find(mutant.old, start) if start >= 0 else -1
    if place < 0:
        missing = mutant.after if start < 0 else mutant.old
        raise MutantError(
            f"make mutant {mutant.name}: {mutant.file} has no {missing!r}"
            f"{f' behind {mutant.after!r}' if mutant.after and start >= 0 else ''};"
            " bring tests/mutants/table up to date"
        )
    return text[:place] + mutant.new + text[place + len(mutant.old) :]


def build_all(mutants: Sequence[Mutant], jobs: int = 2) -> dict[str, Path]:
    """Build every mutant's object and return the paths by name.

    Raises:
        MutantError: for the first that cannot be made.
    """
    subjects = {m.subject for m in mutants}
    if BIG_ENDIAN_HOOK in subjects:
        subjects.add(HOOK)
    originals = {s: _code(_build("original", SOURCE, s)) for s in subjects}
    with ThreadPoolExecutor(jobs) as pool:
        paths = list(pool.map(_build_one, mutants))
    for mutant, path in zip(mutants, paths, strict=True):
        if not mutant.equivalent and _code(path) == originals[mutant.subject]:
            raise MutantError(f"make mutant {mutant.name}: the edit changes no instruction")
        if mutant.big_endian:
            here = _build(mutant.name, OBJECTS / "src" / mutant.name / "bpf", HOOK)
            if _code(here) != originals[HOOK]:
                raise MutantError(f"make mutant {mutant.name}: little-endian machines see it, too")
    return {mutant.name: path for mutant, path in zip(mutants, paths, strict=True)}


def _build_one(mutant: Mutant) -> Path:
    copy = OBJECTS / "src" / mutant.name / "bpf"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("build"))
    target = copy / mutant.file
    target.write_text(mutate(mutant, target.read_text()))
    return _build(mutant.name, copy, mutant.subject)


def object_of(name: str, subject: Subject) -> Path:
    """Return where a mutant's object is, or the original's."""
    return OBJECTS / "obj" / name / f"{subject.name}.{subject.suffix}"


def _build(name: str, source: Path, subject: Subject) -> Path:
    target = object_of(name, subject)
    run = subprocess.run(
        # a mutant may leave a parameter without a use
        [
            *("nice", "make", "-s", "-C", source, f"BUILD={target.parent}"),
            *("EXTRA_CFLAGS=-Wno-error", target),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise MutantError(f"make mutant {name}: it does not compile\n{run.stderr}")
    return target


def _code(path: Path) -> bytes:
    """Return the object without its debug sections: what the kernel would see of it."""
    bare = path.with_suffix(".bare")
    sections = [f"--remove-section={name}" for name in (".BTF", ".BTF.ext")]
    subprocess.run(["llvm-objcopy", "--strip-debug", *sections, path, bare], check=True)
    return bare.read_bytes()
