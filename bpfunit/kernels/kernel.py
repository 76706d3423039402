"""A kernel that is there: what a guest boots and what a module is built against."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bpfunit._arch import Architecture, native
from bpfunit.kernels.catalogue import BuildRoot, full_name


@dataclass(frozen=True)
class Foreign:
    """What guests of another architecture run with.

    Attributes:
        emulator: the QEMU that has it.
        root: an unpacked Debian of that architecture, with the Python and the libraries that a
            worker needs; the rest is this machine's.
        parts: files with that architecture's machine code for packages of the environment here,
            each with its place in the guest.
    """

    emulator: Path
    root: Path
    parts: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One kernel, on this machine's disk.

    Attributes:
        series: ``"6.12"``; for local kernels the first two numbers of the release.
        release: as ``uname -r`` prints it.
        image: what boots: a bzImage on x86.
        modules_root: the directory that has ``lib/modules/RELEASE``; None when there is none, as in
            build trees (vng makes one of its own from `tree`).
        headers: what ``make -C`` takes to build a module; None when modules cannot be built.
        source: where it came from, for reports.
        note: what the user should know about it, for reports; most often "".
        build_root: the root for hosts whose tools do not suffice; None for local kernels.
        tree: the build tree it lies in, None for all others.
        architecture: of its processor.
        foreign: what it takes to run on this machine, None where nothing beyond what is here.
    """

    series: str
    release: str
    image: Path
    modules_root: Path | None
    headers: Path | None
    source: str
    note: str = ""
    build_root: BuildRoot | None = None
    tree: Path | None = None
    architecture: Architecture = field(default_factory=native)
    foreign: Foreign | None = None

    @property
    def name(self) -> str:
        """What users type and reports say: ``"6.12"``, ``"6.12/arm64"``."""
        return full_name(self.series, self.architecture)

    @property
    def boot_path(self) -> Path:
        """What ``vng --run`` takes."""
        return self.tree or self.image

    @property
    def interprets(self) -> bool:
        """Whether it interprets programs, since it was built without a BPF JIT."""
        path = self.configuration
        return path is not None and "\nCONFIG_BPF_JIT=y\n" not in path.read_text("utf-8")

    @property
    def configuration(self) -> Path | None:
        """Its configuration (``CONFIG_…``), None when it is not here."""
        named = f"config-{self.release}"
        candidates = [self.image.with_name(named)]
        candidates += [self.modules_root / "boot" / named] if self.modules_root else []
        candidates += [one / ".config" for one in (self.tree, self.headers) if one]
        return next((path for path in candidates if path.is_file()), None)
