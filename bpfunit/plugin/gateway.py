"""A guest on this machine for a pytest on another: ``python -m bpfunit.plugin.gateway 7.3``.

Takes the place of the Python in an execnet spec (``ssh=box//python=…``), so that execnet's ssh
gateways lead into a guest; ``docs/matrix.md`` shows how.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import execnet

from bpfunit.errors import BpfunitError
from bpfunit.guest.spec import GuestSpec
from bpfunit.kernels import module_for, resolve
from bpfunit.plugin.worker import LABEL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one guest between this process's standard input and output; return its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m bpfunit.plugin.gateway", description=__doc__)
    parser.add_argument("kernel", help="series, exact release, or path of an image or build tree")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--cpus", type=int, default=1, metavar="N")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg", "icount"), default="auto")
    # What execnet has a Python run; the one in the guest runs it.
    parser.add_argument("-c", dest="ignored", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    run = Path(tempfile.mkdtemp(prefix="bpfunit-"))
    try:
        kernel = resolve(arguments.kernel)
        spec = GuestSpec(
            kernel,
            module_for(kernel) if kernel.headers is not None else None,
            cpus=arguments.cpus,
            memory=arguments.memory,
            accel=arguments.accel,
            # Nobody on the other machine knows which releases there are here.
            env={LABEL_VARIABLE: kernel.release},
        )
        command = execnet.XSpec(spec.prepare(run / "guest")).python
        return subprocess.run(shlex.split(command), check=False).returncode
    except BpfunitError as error:
        print(f"bpfunit gateway: {error}", file=sys.stderr)
        return 3
    finally:
        shutil.rmtree(run, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
