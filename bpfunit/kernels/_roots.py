"""Small Debian roots, unpacked into the cache: nothing is installed, no maintainer script runs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bpfunit._arch import Architecture
from bpfunit._paths import cache_dir
from bpfunit.kernels._apt import configured_transport, keyring, mirrors, require_tools
from bpfunit.kernels.catalogue import Suite, load_catalogue
from bpfunit.kernels.errors import KernelsError

_LEFT_OUT = ("dev/*", "usr/share/locale", "usr/share/doc", "usr/share/man", "var/*")


def root_dir(name: str) -> Path:
    """Return where a root lies in the cache, there or not."""
    return cache_dir() / "roots" / name


def bootstrap(
    what: str,
    suites: Sequence[Suite],
    packages: Sequence[str],
    architecture: Architecture,
    directory: Path,
) -> None:
    """Fetch packages with all that they depend on, verify them and unpack them.

    Args:
        what: for the message, as in ``"make build root trixie"``.
        suites: where they come from.
        packages: by name.
        architecture: of the packages; it may be another than this machine's.
        directory: where they are unpacked.

    Raises:
        KernelsError: no tools, no network, a bad signature, no such package.
    """
    require_tools(what, mmdebstrap="mmdebstrap", tar="tar", unshare="util-linux")
    catalogue = load_catalogue()
    key = keyring(catalogue)
    complaints = []
    for mirror in mirrors(catalogue, suites[0].archive):
        base = mirror.removesuffix(suites[0].archive)
        sources = [
            f"deb [signed-by={key}] {base}{suite.archive} {suite.name} {suite.component}"
            for suite in suites
        ]
        # chrootless and extract: no root privilege, no mounts, no maintainer scripts.
        command = ["mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract"]
        command += ["--format=tar", f"--include={','.join(packages)}"]
        command += [f"--architectures={architecture.debian}"]
        command += [f"--aptopt={line.rstrip(';')}" for line in configured_transport().splitlines()]
        command += [suites[0].name, "-", *sources]
        with tempfile.TemporaryFile() as words:
            # A session of its own: where mmdebstrap fails it hangs up on its whole process group.
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            ) as maker:
                unpacker = subprocess.run(
                    ["tar", "-x", "--no-same-owner", "-C", str(directory)]
                    + [f"--exclude=./{path}" for path in _LEFT_OUT],
                    stdin=maker.stdout,
                    capture_output=True,
                    text=True,
                )
            if maker.returncode == 0 and unpacker.returncode == 0:
                return
            words.seek(0)
            lines = words.read().decode(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(("E:", "Err:"))]
            complaints.append(f"{mirror}: {'; '.join(errors) or unpacker.stderr.strip()}")
    raise KernelsError(f"{what}: {'; '.join(complaints)}")
