"""From what a user types to a kernel that is there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bpfunit._arch import native
from bpfunit.kernels import _fetch, _foreign
from bpfunit.kernels._cache import (
    Record,
    kernel_dir,
    load_record,
    load_substitute,
    save_substitute,
)
from bpfunit.kernels._local import local_kernel
from bpfunit.kernels._parallel import side_by_side
from bpfunit.kernels._progress import Reporter, Task
from bpfunit.kernels.catalogue import Catalogue, Entry, load_catalogue, split_spec
from bpfunit.kernels.errors import PinVanishedError, RefusedKernelError, UnknownKernelError
from bpfunit.kernels.kernel import Kernel

_RELEASE = re.compile(r"\d+\.\d+\.\d+\S*")


def strict_pins() -> bool:
    """Tell whether ``$BPFUNIT_STRICT_PINS`` asks to fail where a pinned release is gone."""
    return os.environ.get("BPFUNIT_STRICT_PINS", "") not in {"", "0"}


def resolve(
    spec: str | Path, *, strict: bool | None = None, reporter: Reporter | None = None
) -> Kernel:
    """Return the kernel that `spec` names, fetched first where it is not cached.

    Args:
        spec: a series (``"6.12"``), an exact release, or the path of a boot image, a build tree or
            an unpacked directory. A series wins over a directory of that name: write ``./6.12``.
            ``/arm64`` behind a series or release asks for another architecture's.
        strict: whether a vanished pin fails; `strict_pins` by default.
        reporter: where progress goes; bars or lines on standard error by default.

    Raises:
        RefusedKernelError: the catalogue lists it and says why it cannot be run.
        UnknownKernelError: nothing has that name; the message lists what there is.
        FetchError: the archive cannot be reached, or its contents were refused.
        PinVanishedError: the pinned release is gone, and `strict` is set or the series is gone too.
    """
    text = os.fspath(spec)
    catalogue = load_catalogue()
    if entry := catalogue.find(text):
        if entry.refused:
            raise RefusedKernelError(f"resolve kernel {text}: {entry.refused}")
        with reporter or Reporter() as display:
            task = display.task(text)
            kernel = _pinned(catalogue, entry, strict_pins() if strict is None else strict, task)
            return _with_foreign(kernel, task)
    is_path = isinstance(spec, Path) or os.sep in text or (text and Path(text).exists())
    if is_path and split_spec(text)[0] == text:
        kernel = local_kernel(Path(spec))
        if kernel.architecture == native():
            return kernel
        with reporter or Reporter() as display:
            return _with_foreign(kernel, display.task(text))
    with reporter or Reporter() as display:
        task = display.task(text)
        return _with_foreign(_unpinned(catalogue, text, task), task)


def _with_foreign(kernel: Kernel, task: Task) -> Kernel:
    """Return a kernel with what it needs beyond this machine, fetched first."""
    return replace(kernel, foreign=_foreign.needs(kernel.architecture, task))


def resolve_many(specs: str | Sequence[str | Path]) -> list[Kernel]:
    """Return several kernels, fetched side by side.

    Args:
        specs: ``"all"`` for all of the catalogue that this machine's architecture can run,
            ``"all/arm64"`` for another's, one spec, or a list in which these may occur.

    Raises:
        What `resolve` raises, for the first spec that fails; the others are fetched to the end.
    """
    wanted: dict[str | Path, None] = {}
    for spec in [specs] if isinstance(specs, str) else specs:
        kernel, architecture = split_spec(os.fspath(spec))
        everything = [entry.name for entry in load_catalogue().usable_on(architecture)]
        wanted.update(dict.fromkeys(everything if kernel == "all" else [spec]))
    # Two at a time: one kernel unpacks while the next one downloads.
    with Reporter() as reporter:
        kernels = side_by_side(lambda spec: resolve(spec, reporter=reporter), wanted, workers=2)
    return list({kernel.image: kernel for kernel in kernels}.values())


def _pinned(catalogue: Catalogue, entry: Entry, strict: bool, task: Task) -> Kernel:
    if record := load_record(entry.release):
        return _kernel(record, entry)
    if not strict and (record := load_substitute(entry.release)):
        return _kernel(record, entry, _substitution(entry, record.release))
    task.step(f"looking for {entry.release}")
    if plan := _fetch.find_release(catalogue, entry, entry.release):
        return _kernel(_fetch.fetch(catalogue, entry, plan, task), entry)
    newest = _fetch.find_newest(catalogue, entry)
    suites = ", ".join(suite.name for suite in entry.suites)
    if newest is None:
        raise PinVanishedError(
            f"fetch {entry.name}: the pinned {entry.release} is gone from {suites}, and so is "
            f"every other release of {entry.name}; take it out of {catalogue.path}, or name "
            "another suite there"
        )
    if strict:
        raise PinVanishedError(
            f"fetch {entry.name}: the pinned {entry.release} is gone from {suites}, the newest "
            f"is {newest.release}; run `bpfunit kernels update`, or unset BPFUNIT_STRICT_PINS"
        )
    record = _fetch.fetch(catalogue, entry, newest, task)
    save_substitute(entry.release, record.release)
    return _kernel(record, entry, _substitution(entry, record.release))


def _substitution(entry: Entry, release: str) -> str:
    return (
        f"{release} in place of the pinned {entry.release}, which is gone from the archive; "
        "`bpfunit kernels update` renews the pins"
    )


def _unpinned(catalogue: Catalogue, spec: str, task: Task) -> Kernel:
    """Return an exact release that is not the pinned one of its series."""
    named, architecture = split_spec(spec)
    ours = [e for e in catalogue.entries if e.architecture == architecture]
    # a release with its flavour says its architecture itself
    ours = [e for e in catalogue.entries if named.endswith(f"-{e.flavour}")] or ours
    entry = next((e for e in ours if named.startswith(f"{e.series}.")), None)
    suffix = f"-{entry.flavour}" if entry else ""
    release = named if named.endswith(suffix) else named + suffix
    if entry is not None and _RELEASE.fullmatch(release):
        if record := load_record(release):
            return _kernel(record, entry)
        task.step(f"looking for {release}")
        for candidate in dict.fromkeys([entry, replace(entry, headers=False)]):
            if plan := _fetch.find_release(catalogue, candidate, release):
                return _kernel(_fetch.fetch(catalogue, candidate, plan, task), entry)
    available = [f"{e.name} ({e.release})" for e in catalogue.entries]
    available.append("or the path of an image or build tree")
    raise UnknownKernelError("resolve kernel", spec, available)


def _kernel(record: Record, entry: Entry, note: str = "") -> Kernel:
    directory = kernel_dir(record.release)
    headers = directory / "usr/src" / f"linux-headers-{record.release}"
    return Kernel(
        record.series,
        record.release,
        directory / "boot" / f"vmlinuz-{record.release}",
        directory,
        headers if record.headers else None,
        f"{record.suite} {record.version}",
        note,
        entry.root,
        architecture=entry.architecture,
    )
