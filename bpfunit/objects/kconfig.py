"""The kernel's configuration where libbpf looks for it, for ``extern … CONFIG_X __kconfig``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bpfunit.guest import in_guest

#: The host's path of the configuration of the kernel that a guest runs.
PATH_VARIABLE = "BPFUNIT_KCONFIG"


def _candidates(release: str) -> Iterator[Path]:
    if handed := os.environ.get(PATH_VARIABLE):
        yield Path(handed)
    modules = Path("/lib/modules", release)
    yield from (modules / "config", modules / "build" / ".config")


def provide() -> None:
    """Let ``/boot/config-RELEASE`` be there, in a guest whose files are thrown away.

    A text in ``bpf_object_open_opts.kconfig`` would not do: libbpf still opens the file when the
    configuration lacks one of the names, as it may for weak externs.
    """
    release = os.uname().release
    wanted = Path(f"/boot/config-{release}")
    if not in_guest() or wanted.exists() or Path("/proc/config.gz").exists():
        return
    for found in _candidates(release):
        if found.is_file():
            with contextlib.suppress(FileExistsError):
                wanted.parent.mkdir(exist_ok=True)
                wanted.symlink_to(found)
            return
