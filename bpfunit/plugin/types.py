"""``--bpf-types``: files with the types that objects under test lack."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from bpfunit.errors import BpfunitError
from bpfunit.guest import in_guest
from bpfunit.plugin.fixtures import object_under_test
from bpfunit.values import sources, typefiles


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, and the keys of the configuration file."""
    group = parser.getgroup("bpfunit")
    group.addoption(
        "--bpf-types",
        action="append",
        default=[],
        metavar="FILE",
        help="where to find types that an object's BTF and DWARF lack: a C header or source, an"
        " object, or a BTF file; may be given several times",
    )
    group.addoption(
        "--bpf-types-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="for the clang that compiles headers of --bpf-types: --bpf-types-flag=-Iinclude; may"
        " be given several times",
    )
    parser.addini("bpf_types", "files for --bpf-types", type="paths", default=[])
    parser.addini("bpf_types_flags", "flags for clang, as --bpf-types-flag", type="args")


def _absolute(flag: str, root: Path) -> str:
    """Return an include path of the configuration file from that file's directory."""
    return f"-I{root / flag[2:]}" if flag.startswith("-I") else flag


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name the files for this process; on the host, make the types that guests will want.

    Raises:
        pytest.UsageError: a named file has no types.
    """
    here = config.invocation_params.dir
    files = [*config.getini("bpf_types"), *(here / name for name in config.option.bpf_types)]
    flags = [_absolute(flag, config.rootpath) for flag in config.getini("bpf_types_flags")]
    flags += config.option.bpf_types_flag
    sources.use_for_session(files, flags)
    if in_guest():
        return
    try:
        sources.named_types(None)
    except BpfunitError as error:
        raise pytest.UsageError(str(error)) from error
    if config.option.kernel:
        with contextlib.suppress(OSError, BpfunitError):  # a test that needs it will say why
            typefiles.dwarf_types(object_under_test(config))
        os.environ[typefiles.DIRECTORY_VARIABLE] = str(Path(typefiles.directory()).absolute())
