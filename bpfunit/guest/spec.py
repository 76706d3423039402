"""What a guest shall be, and the execnet spec that starts it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpfunit._paths import cache_dir, chosen_libbpf
from bpfunit.guest import foreign, snapshot
from bpfunit.guest.accel import choose, qemu
from bpfunit.guest.bytecode import archive
from bpfunit.guest.environment import passed_on, require_visible
from bpfunit.guest.errors import GuestError
from bpfunit.guest.image import boot_files
from bpfunit.guest.tsc import tsc_khz

if TYPE_CHECKING:
    from bpfunit.kernels import Kernel

_PACKAGE = Path(__file__).resolve().parent.parent
_SUPERVISOR = Path(__file__).resolve().parent / "supervisor"

_KERNEL_WORDS = (
    "loglevel=5 panic=-1 oops=panic unknown_nmi_panic=1 random.trust_cpu=on"
    " raid=noautodetect audit=0"
)

# In a run's directory: it was empty when the run began, and is the supervisor's to remove when
# nobody else is left to do it. The supervisor, which imports nothing from here, has it once more.
OWNED = ".bpfunit-run"


@dataclass(frozen=True)
class GuestSpec:
    """One guest to boot.

    Attributes:
        kernel: what to boot.
        module: a kernel module for whoever runs in the guest, as ``BPFUNIT_MODULE``; None for none.
        cpus: virtual processors; ``icount`` allows one.
        memory: MiB.
        accel: ``"auto"``, ``"kvm"``, ``"tcg"`` or ``"icount"`` (one guest nanosecond is one guest
            instruction).
        env: variables for the guest, beside those of the host that are passed on; see
            :mod:`bpfunit.guest.environment`.
        append: further words for the kernel's command line.
        qemu_args: further arguments for QEMU.
        cwd: where the guest's command starts; the host's current directory by default.
        boot_timeout: seconds from the start of QEMU until the guest's command starts.
        silence_timeout: seconds without a sign of life after which the guest counts as hung.
        slots: how many kernels of the run may be up at once.
        run: the directory that the specs of one run share, removed with all that is in it when the
            controller dies; each spec's own directory by default. One that was not empty is kept.
        packages: directories of Python modules to give to the guest compiled.
    """

    kernel: Kernel
    module: Path | None = None
    cpus: int = 1
    memory: int = 1024
    accel: str = "auto"
    env: dict[str, str] = field(default_factory=dict)
    append: str = ""
    qemu_args: tuple[str, ...] = ()
    cwd: Path | None = None
    boot_timeout: float = 180.0
    silence_timeout: float = 60.0
    slots: int = 1
    run: Path | None = None
    packages: tuple[Path, ...] = (_PACKAGE,)

    def prepare(self, directory: Path) -> str:
        """Write what the guest's supervisor needs, and return the execnet spec that starts it.

        Args:
            directory: an empty or new directory for this spec; every guest started from the spec
                keeps its console log in a directory of its own below it.

        Raises:
            GuestError: this machine cannot run the guest.
        """
        try:
            return self._prepare(directory)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise GuestError(
                f"prepare a guest of {self.kernel.release}: no space left in {directory.parent} or "
                f"{cache_dir()}; free some, or set $TMPDIR or $BPFUNIT_CACHE to a place with room"
            ) from error

    def _prepare(self, directory: Path) -> str:
        self._require_visible(directory)
        run = self.run or directory
        run.mkdir(parents=True, exist_ok=True)
        if not any(run.iterdir()):
            (run / OWNED).touch()
        directory.mkdir(exist_ok=True)
        accel = choose(self.accel, self.kernel.release, emulator=self._emulator)
        variables = self._variables(accel)
        (directory / "env").write_bytes(os.fsencode(self._environment(variables)))
        kernel = self.kernel
        image, cached = boot_files(kernel.image, kernel.release, kernel.modules_root, self._root)
        initramfs = directory / "initramfs"  # the kernel unpacks archives one after the other
        initramfs.write_bytes(cached.read_bytes() + archive(self.packages, self._parts))
        if self._root is not None:
            (directory / "foreign").write_text(foreign.commands(), encoding="utf-8")
        argv = self._command_line(accel, directory, image)
        worker: dict[str, Any] = {"environment": variables, "path": []}
        worker["cwd"] = str(self.cwd or Path.cwd())
        description = {
            "argv": argv,
            **self._start(accel, argv, cached, worker),
            "worker": worker,
            "boot_timeout": self.boot_timeout,
            "silence_timeout": self.silence_timeout,
            "run": str(run),
            "slots": {"count": self.slots, "group": self.kernel.release},
        }
        path = directory / "guest.json"
        path.write_text(json.dumps(description, indent=1))
        command = shlex.join([sys.executable, "-I", "-S", str(_SUPERVISOR), str(path)])
        return f"popen//python={command}"

    @property
    def _emulator(self) -> Path | None:
        return self.kernel.foreign.emulator if self.kernel.foreign else None

    @property
    def _root(self) -> Path | None:
        return self.kernel.foreign.root if self.kernel.foreign else None

    @property
    def _parts(self) -> dict[Path, str]:
        return dict(self.kernel.foreign.parts) if self.kernel.foreign else {}

    def _words(self, accel: str) -> str:
        """Return the kernel's command line, with the rate at which the guest's counter will run."""
        arch = self.kernel.architecture
        words = f"{arch.kernel_words} {_KERNEL_WORDS}"
        if self._root is not None:
            words += " bpfunit.arch"
        rate = tsc_khz() if arch.tells_clock and not self._root and accel == "tcg" else None
        return f"{words} tsc_early_khz={rate}" if rate else words

    def _require_visible(self, directory: Path) -> None:
        needed = {
            "the current directory": self.cwd or Path.cwd(),
            "the Python environment": Path(sys.prefix),
            "bpfunit": _PACKAGE,
            "the run's temporary directory ($TMPDIR)": directory,
        }
        if self.module is not None:
            needed["the kernel module ($BPFUNIT_CACHE)"] = self.module
        for what, path in needed.items():
            require_visible(what, path)

    def _start(
        self, accel: str, argv: list[str], boots: Path, worker: dict[str, Any]
    ) -> dict[str, object]:
        """Return the snapshot to start from, if any, and in words how the guest starts.

        With KVM a boot takes a second; under icount every instruction counts. A guest with words
        for its kernel or arguments for QEMU is booted as they say.
        """
        if accel != "tcg" or self.append or self.qemu_args or not snapshot.wanted():
            return {"start": "", "snapshot": None}
        if loader := sorted(name for name in worker["environment"] if name.startswith("LD_")):
            # The loader reads them as a process starts, and the Python in a snapshot has started.
            return {"start": f"boots, since {' and '.join(loader)} is set", "snapshot": None}
        configuration = {
            "release": self.kernel.release,
            "image": str(self.kernel.image),
            "boots": boots.parent.name,
            "memory": self.memory,
            "cpus": self.cpus,
            "words": _KERNEL_WORDS,
            "packages": [str(package) for package in self.packages],
        }
        initramfs = Path(argv[argv.index("-initrd") + 1])
        if self._root is not None:
            configuration["root"] = str(self._root)
            configuration["parts"] = sorted(self._parts.values())
        found = snapshot.find(configuration, worker["environment"], initramfs, self.kernel.foreign)
        if found.failed:
            why = f"boots since its snapshot failed: {found.failed}; "
            return {"start": f"{why}remove {found.slot} to try again", "snapshot": None}
        worker["path"] = found.path
        lines = snapshot.command_lines(argv, found.slot, self.memory, self._words(accel))
        start = "" if found.ready else "makes a snapshot first, once, which takes as long as a boot"
        return {"start": start, "snapshot": {"slot": str(found.slot), **lines}}

    def _variables(self, accel: str) -> dict[str, str]:
        variables = passed_on(os.environ)
        if self._root is not None:
            for name in foreign.WITHHELD:
                variables.pop(name, None)
        variables.update(self.env, BPFUNIT_GUEST="1", BPFUNIT_ACCEL=accel)
        variables["PYTHONDONTWRITEBYTECODE"] = "1"  # it would be gone with the guest
        if self._root is None and (libbpf := chosen_libbpf()):
            path = Path(libbpf).absolute()
            require_visible("the chosen libbpf", path)
            variables["BPFUNIT_LIBBPF"] = str(path)
        if self.module is not None:
            variables["BPFUNIT_MODULE"] = str(self.module)
        if (configuration := self.kernel.configuration) is not None:
            variables["BPFUNIT_KCONFIG"] = str(configuration)
        return variables

    def _environment(self, variables: dict[str, str]) -> str:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
        bootstrap = "import sys;exec(eval(sys.stdin.readline()))"  # what execnet expects to run
        own = {
            "BPFUNIT_CWD": str(self.cwd or Path.cwd()),
            "BPFUNIT_COMMAND": shlex.join([sys.executable, "-u", "-c", bootstrap]),
            "BPFUNIT_MODULES": "",
        }
        root, release = self.kernel.modules_root, self.kernel.release
        if root is not None:
            own["BPFUNIT_MODULES"] = str(root / "lib" / "modules" / release)
        lines += [f"{name}={shlex.quote(value)}" for name, value in own.items()]
        return "\n".join(lines) + "\n"

    def _command_line(self, accel: str, directory: Path, image: Path) -> list[str]:
        """Return QEMU's arguments; ``@NAME@`` stand for what the supervisor fills in."""
        arch = self.kernel.architecture
        accelerate = {
            "kvm": ["-accel", "kvm", "-cpu", "host"],
            "tcg": ["-accel", "tcg", "-cpu", arch.emulated_cpu],
            "icount": ["-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", arch.emulated_cpu],
        }[accel]
        append = f"bpfunit.dir={directory} {self._words(accel)} {self.append}"
        shared = "security_model=none,readonly=on,multidevs=remap"
        root: list[str] = []
        if self._root is not None:
            root = ["-fsdev", f"local,id=arch,path={self._root},{shared}"]
            root += ["-device", f"virtio-9p-{arch.bus},fsdev=arch,mount_tag=arch"]
        # fmt: off
        return [
            qemu(self._emulator)[0], "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot",
            "-machine", arch.machine,
            *accelerate,
            "-smp", str(1 if accel == "icount" else self.cpus),
            "-m", f"{self.memory}M",
            "-kernel", str(image), "-initrd", f"{directory}/initramfs", "-append", append.strip(),
            "-chardev", "file,id=console,path=@CONSOLE@,append=on", *arch.console,
            "-fsdev", f"local,id=host,path=/,{shared}",
            "-device", f"virtio-9p-{arch.bus},fsdev=host,mount_tag=host",
            *root,
            "-device", f"virtio-serial-{arch.bus}",
            "-chardev", "socket,id=io,fd=@IO@",
            "-device", "virtserialport,nr=1,chardev=io,name=bpfunit.io",
            "-chardev", "socket,id=report,fd=@REPORT@",
            "-device", "virtserialport,nr=2,chardev=report,name=bpfunit.report",
            "-chardev", "socket,id=monitor,fd=@MONITOR@",
            "-mon", "chardev=monitor,mode=control",
            *self.qemu_args,
        ]
        # fmt: on


def unusual_start(directory: Path) -> str:
    """Return what a user may want to know of how a prepared guest starts, "" for nothing.

    Args:
        directory: as given to :meth:`GuestSpec.prepare`.
    """
    start: str = json.loads((directory / "guest.json").read_text())["start"]
    return start
