"""A guest for one command: booted, asked, thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import execnet
from rich.status import Status

from bpfunit import kernels
from bpfunit.cli._common import err
from bpfunit.errors import BpfunitError
from bpfunit.guest.spec import GuestSpec

_LAST_WORDS = 30  # lines of the console to show of a guest that died


class LostGuestError(BpfunitError):
    """The guest did not come up, or died while it was asked."""


@contextmanager
def booted(name: str, memory: int = 1024) -> Iterator[tuple[kernels.Kernel, execnet.Gateway]]:
    """Boot a guest with the module loaded and yield the kernel and a gateway into it.

    Args:
        name: the kernel as ``--kernel`` takes it.
        memory: MiB.

    Raises:
        KernelsError: no such kernel, or it cannot be had.
        GuestError: this machine cannot run it.
        LostGuestError: the guest died; its last words are in the message.
    """
    kernel = kernels.resolve(name)
    module = kernels.module_for(kernel) if kernel.headers else None
    with tempfile.TemporaryDirectory(prefix="bpfunit-") as directory:
        group = execnet.Group()
        try:
            with Status(f"booting {kernel.release}", console=err()):
                spec = GuestSpec(kernel, module, memory=memory).prepare(Path(directory))
                gateway = group.makegateway(spec)
                call(gateway, "load_module")
            yield kernel, gateway
        except (EOFError, OSError, execnet.RemoteError) as error:
            raise LostGuestError(_obituary(kernel.release, Path(directory), error)) from error
        finally:
            group.terminate(timeout=5)


def _obituary(release: str, directory: Path, error: Exception) -> str:
    said = [line for path in sorted(directory.glob("*/console")) for line in _lines(path)]
    words = "\n  ".join(said[-_LAST_WORDS:]) or "(the console is empty)"
    return f"talk to the guest of {release}: {error or 'it is gone'}; its last words:\n  {words}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def start(gateway: execnet.Gateway, function: str, *arguments: Any) -> Any:
    """Start a function of :mod:`bpfunit.cli._inside` in the guest and return the channel to it.

    The function gets the channel as its first argument, then ``arguments``, which are plain data.
    """
    channel = gateway.remote_exec(
        f"from bpfunit.cli import _inside\n_inside.{function}(channel, *channel.receive())"
    )
    channel.send(arguments)
    return channel


def call(gateway: execnet.Gateway, function: str, *arguments: Any) -> Any:
    """Call a function of :mod:`bpfunit.cli._inside` in the guest and return what it sends back."""
    return start(gateway, function, *arguments).receive()


def ask_guest(kernel: str, request: dict[str, Any]) -> dict[str, Any]:
    """Boot ``kernel`` and answer one ``request`` there, see :func:`bpfunit.cli._inside.answer`."""
    with booted(kernel) as (_, gateway):
        report: dict[str, Any] = call(gateway, "serve", request)
        return report
