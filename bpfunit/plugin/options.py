"""Command line options and markers."""

from __future__ import annotations

import pytest

MARKERS = (
    "guest: needs a kernel of its own; an error without --kernel",
    "host: runs on the host only; left out (and counted) in guests",
    "characterisation: written by `bpfunit explore`: says what a program did, not what it ought to",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options about kernels and guests."""
    group = parser.getgroup("bpfunit", "tests in throwaway kernels")
    group.addoption(
        "--kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help="Run every test in a throwaway guest with this kernel: a series of the catalogue "
        "(6.12), an exact release, the path of an image or of a build tree, or all. May be given "
        "several times: every test runs on every kernel.",
    )
    group.addoption(
        "--bpf-object",
        metavar="FILE",
        default=None,
        help="BPF object under test in place of the project's own.",
    )
    group.addoption(
        "--guests",
        type=int,
        default=None,
        metavar="N",
        help="Guests of each kernel, which share the tests (default: -n, else 1).",
    )
    group.addoption(
        "--guest-memory", type=int, default=1024, metavar="MIB", help="Memory of a guest, in MiB."
    )
    group.addoption(
        "--guest-cpus", type=int, default=1, metavar="N", help="Virtual processors of a guest."
    )
    group.addoption(
        "--guest-accel",
        choices=("auto", "kvm", "tcg", "icount"),
        default="auto",
        help="How QEMU runs guests: kvm, tcg (software emulation), icount (software emulation in "
        "which one guest nanosecond is one instruction); auto takes KVM where it works, else tcg.",
    )
    group.addoption(
        "--guest-append",
        default="",
        metavar="WORDS",
        help="Further words for the guests' kernel command line.",
    )
    group.addoption(
        "--guest-qemu-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="A further argument for QEMU; may be given several times.",
    )
    group.addoption(
        "--guest-env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="A variable for the guests, also one that they do not get by themselves; may be given "
        "several times. Without a value it is the one that is set here.",
    )
    parser.addini(
        "guest_env",
        "Variables for the guests, NAME or NAME=VALUE, one a line; --guest-env goes before them.",
        type="linelist",
        default=[],
    )
    group.addoption(
        "--guest-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="A guest that gives no sign of life for so long is hung, and killed.",
    )
    group.addoption(
        "--guest-boot-timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="A guest that is not up after so long never boots, and is killed.",
    )
    group.addoption(
        "--guest-test-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="A test that takes longer is ended, with its guest.",
    )
    group.addoption(
        "--guest-restarts",
        type=int,
        default=3,
        metavar="N",
        help="How often a guest of one kernel that died is replaced before the kernel is given up.",
    )


def register_markers(config: pytest.Config) -> None:
    """Make the markers known."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
