"""``python -m bpfunit.kernels build 6.12``: kernels and their modules, without the whole CLI."""

from __future__ import annotations

import argparse
import sys

from bpfunit.kernels import KernelsError, modules_for, resolve_many
from bpfunit.kernels._sparse import sparse


def main() -> int:
    """Fetch kernels; build the module for each, or run sparse over it; print what is there now."""
    parser = argparse.ArgumentParser(prog="python -m bpfunit.kernels", description=main.__doc__)
    parser.add_argument("action", choices=["fetch", "build", "sparse"])
    parser.add_argument("kernels", nargs="+", help="series, exact releases, paths, or all")
    arguments = parser.parse_args()
    try:
        kernels = resolve_many(arguments.kernels)
        if arguments.action == "fetch":
            print(*(kernel.image for kernel in kernels), sep="\n")
            return 0
        if arguments.action == "sparse":
            findings = [line for kernel in kernels for line in sparse(kernel)]
            print(*findings, sep="\n", end="\n" if findings else "")
            return 1 if findings else 0
        # "all" asks for what can be built; a kernel that was named is worth an error.
        if "all" in arguments.kernels:
            kernels = [kernel for kernel in kernels if kernel.headers]
        print(*modules_for(kernels), sep="\n")
    except KernelsError as error:
        print(f"bpfunit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
