"""A guest for one command: booted, asked, thrown away."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import execnet
import typer
from rich.status import Status

from bpfunit import _native, kernels
from bpfunit.cli._common import err
from bpfunit.errors import BpfunitError
from bpfunit.guest.environment import asked_for
from bpfunit.guest.errors import GuestError
from bpfunit.guest.outcome import read_exit_report
from bpfunit.guest.spec import GuestSpec

if TYPE_CHECKING:
    from bpfunit.explorer.side import Kernel


class LostGuestError(BpfunitError):
    """The guest did not come up, or died while it was asked."""


@contextmanager
def booted(
    name: str, memory: int = 1024, env: Mapping[str, str] | None = None
) -> Iterator[tuple[kernels.Kernel, execnet.Gateway]]:
    """Boot a guest with the module loaded and yield the kernel and a gateway into it.

    Args:
        name: the kernel as ``--kernel`` takes it.
        memory: MiB.
        env: variables for the guest beside those that are passed on.

    Raises:
        KernelsError: no such kernel, or it cannot be had.
        GuestError: this machine cannot run it.
        LostGuestError: the guest died; its last words are in the message.
    """
    kernel = kernels.resolve(name)
    if built := kernels.cross_libraries(kernel, _native.LIBRARIES):
        env = {**(env or {}), _native.PATH_VARIABLE: str(built.get("loops", ""))}
    module = kernels.module_for(kernel) if kernel.headers else None
    with tempfile.TemporaryDirectory(prefix="bpfunit-") as directory:
        group = execnet.Group()
        try:
            with Status(f"booting {kernel.release}", console=err()):
                spec = GuestSpec(kernel, module, memory=memory, env=dict(env or {}))
                xspec = spec.prepare(Path(directory))
                gateway = group.makegateway(xspec)
                call(gateway, "_inside.load_module")
            yield kernel, gateway
        except (EOFError, OSError, execnet.RemoteError) as error:
            raise LostGuestError(_exit_report(kernel.release, Path(directory), error)) from error
        finally:
            group.terminate(timeout=5)


def _exit_report(release: str, directory: Path, error: Exception) -> str:
    """Say what the guest died of, or what failed in it while it lived."""
    for status in directory.glob("*/status.json"):
        exit_report = read_exit_report(status.parent)
        what = str(error).strip() if isinstance(error, execnet.RemoteError) else str(exit_report)
        words = exit_report.last_words.replace("\n", "\n  ") or "(the console is empty)"
        return f"talk to the guest of {release}: {what}; its last words:\n  {words}"
    return f"start a guest of {release}: {error or 'its supervisor ended'}"


def start(gateway: execnet.Gateway, function: str, *arguments: Any) -> Any:
    """Start a function in the guest and return the channel to it.

    Args:
        gateway: into the guest.
        function: its module in :mod:`bpfunit.cli` and its name, as in ``"_inside.serve"``; it gets
            the channel as its first argument, then ``arguments``.
        arguments: plain data.
    """
    module = function.partition(".")[0]
    channel = gateway.remote_exec(
        f"from bpfunit.cli import {module}\n{function}(channel, *channel.receive())"
    )
    channel.send(arguments)
    return channel


def call(gateway: execnet.Gateway, function: str, *arguments: Any) -> Any:
    """Start a function in the guest, see :func:`start`, and return what it sends back."""
    return start(gateway, function, *arguments).receive()


@contextmanager
def explored_kernel(kernel: str, env: Mapping[str, str] | None = None) -> Iterator[Kernel]:
    """Boot a guest whose programs the host explores, with the loop in C that the host compiles.

    Raises:
        BpfunitError: as :func:`booted`.
    """
    from bpfunit.explorer.side import Kernel  # with coverage and more

    env = dict(env or {})
    if built := _native.build():
        env[_native.PATH_VARIABLE] = str(built)
    with booted(kernel, env=env) as (_, gateway):
        guest = Kernel(start(gateway, "_inside_explore.serve_sides"))
        yield guest
        guest.end()


def variables(requests: Sequence[str] | None) -> dict[str, str]:
    """Return the variables that ``--guest-env`` asks for.

    Raises:
        BadParameter: one of them cannot be passed.
    """
    try:
        return asked_for(requests or (), os.environ)
    except GuestError as error:
        raise typer.BadParameter(str(error), param_hint="--guest-env") from error


def ask_guest(kernel: str, request: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Boot ``kernel`` and answer one ``request`` there, see :func:`bpfunit.cli._inside.answer`."""
    with booted(kernel, env=env) as (_, gateway):
        report: dict[str, Any] = call(gateway, "_inside.serve", request)
        return report
