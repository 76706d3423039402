"""Building the module: make, its log and its cache on small header trees; then on real ones."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from bpfunit.kernels import (
    Kernel,
    ModuleBuildError,
    inventory,
    load_catalogue,
    module_for,
    modules_for,
    resolve,
)

pytestmark = pytest.mark.host

SOURCE = "int answer(void) { return 42; }\n"
MAKEFILE = """\
modules:
\tgcc -Wall -Werror -c -o $(M)/thing.o $(M)/thing.c
\tcp $(M)/thing.o $(M)/thing.ko
"""


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "Kbuild").write_text("obj-m := thing.o\n")
    (directory / "thing.c").write_text(SOURCE)
    return directory


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Return a local kernel whose header tree has make and gcc do what kbuild would."""
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("V", raising=False)
    headers = tmp_path / "headers"
    for tool in ("scripts/basic/fixdep", "scripts/mod/modpost"):
        (headers / tool).parent.mkdir(parents=True)
        (headers / tool).write_text("#!/bin/sh\nexit 1\n")
        (headers / tool).chmod(0o755)
    (headers / "Makefile").write_text(MAKEFILE)
    (headers / "Module.symvers").write_text("0x1\tprintk\n")
    return Kernel("6.14", "6.14.0", tmp_path / "image", None, headers, "a test", tree=headers)


def test_a_module_is_built_once(kernel, source):
    module = module_for(kernel, source=source)
    assert module.name == "thing.ko"
    before = module.stat()
    assert module_for(kernel, source=source) == module
    assert module.stat().st_ino == before.st_ino
    assert sorted(path.name for path in module.parent.iterdir()) == ["thing.ko"]


def test_a_changed_source_is_another_module(kernel, source):
    first = module_for(kernel, source=source)
    (source / "thing.c").write_text(SOURCE.replace("42", "43"))
    second = module_for(kernel, source=source)
    assert second != first
    assert first.read_bytes() != second.read_bytes()


def test_a_changed_source_in_a_directory_is_another_module(kernel, source):
    part = source / "types" / "answer.h"
    part.parent.mkdir()
    part.write_text("#define ANSWER 42\n")
    code = '#include "types/answer.h"\nint answer(void) { return ANSWER; }\n'
    (source / "thing.c").write_text(code)
    first = module_for(kernel, source=source)
    part.write_text("#define ANSWER 43\n")
    second = module_for(kernel, source=source)
    assert second != first
    assert first.read_bytes() != second.read_bytes()


def test_what_a_build_by_hand_left_is_no_source(kernel, source):
    module = module_for(kernel, source=source)
    (source / "thing.mod.c").write_text("written by kbuild\n")
    (source / ".thing.o.c").write_text("and so is this\n")
    assert module_for(kernel, source=source) == module


def test_a_rebuilt_kernel_of_the_same_release_is_another_kernel(kernel, source):
    first = module_for(kernel, source=source)
    os.utime(kernel.headers / "Module.symvers", ns=(1, 1))
    assert module_for(kernel, source=source) != first


def test_a_compile_error_shows_the_line_in_the_users_file_and_the_log(kernel, source):
    (source / "thing.c").write_text("int answer(void) { return nothing; }\n")
    with pytest.raises(ModuleBuildError) as error:
        module_for(kernel, source=source)
    message, log = str(error.value), error.value.log
    assert log is not None
    assert f"{source}/thing.c:1:" in message
    assert "undeclared" in message
    assert f"the whole log: {log}" in message
    assert "In function" in log.read_text()
    assert [path for path in log.parent.iterdir() if path.is_dir()] == []


def test_a_warning_is_an_error_where_the_source_says_so(kernel, source):
    (source / "thing.c").write_text("static int unused;\n" + SOURCE)
    with pytest.raises(ModuleBuildError, match="unused-variable"):
        module_for(kernel, source=source)


def test_an_outer_make_does_not_reach_the_build(kernel, source, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "n")
    monkeypatch.setenv("M", "/nonexistent")
    assert module_for(kernel, source=source).is_file()


def test_the_build_is_quiet_unless_asked(kernel, source, monkeypatch, capfd):
    module_for(kernel, source=source)
    assert "gcc" not in capfd.readouterr().err
    (source / "thing.c").write_text(SOURCE + "\n")
    monkeypatch.setenv("V", "1")
    module_for(kernel, source=source)
    assert "gcc -Wall -Werror" in capfd.readouterr().err


def test_tools_that_need_a_newer_libc_are_found_out_by_running_them(kernel, source):
    words = "modpost: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found"
    modpost = kernel.headers / "scripts/mod/modpost"
    modpost.write_text(f"#!/bin/sh\ncat >&2 <<'EOF'\n{words}\nEOF\nexit 1\n")
    with pytest.raises(ModuleBuildError, match=r"modpost does not run: version `GLIBC_2\.99'"):
        module_for(kernel, source=source)


def test_a_tree_without_its_tools_says_how_to_make_them(kernel, source):
    (kernel.headers / "scripts/mod/modpost").unlink()
    with pytest.raises(
        ModuleBuildError, match=r"has no scripts/mod/modpost; run make modules_prep"
    ):
        module_for(kernel, source=source)


def test_a_kernel_without_headers_points_to_the_other_engine(tmp_path, source):
    kernel = Kernel("6.16", "6.16.1", tmp_path, tmp_path, None, "trixie-backports 6.16.1-1")
    with pytest.raises(ModuleBuildError, match=r"6\.16\.1.* without headers; .*--bpf-engine live"):
        module_for(kernel, source=source)


def test_a_source_without_kbuild_file_is_named(kernel, tmp_path):
    with pytest.raises(ModuleBuildError, match=r"build module: .*/empty/Kbuild: No such file"):
        module_for(kernel, source=tmp_path / "empty")


# From here on with the real catalogue and cache. Run for the kernels that are cached; with
# BPFUNIT_TEST_ARCHIVE=1 for all of them, fetched from the archive first.

ENTRIES = load_catalogue().usable
FETCH = os.environ.get("BPFUNIT_TEST_ARCHIVE", "") not in {"", "0"}


def is_cached(series: str) -> bool:
    return any(s.record for s in inventory() if s.entry and s.entry.name == series)


def real_kernel(series: str) -> Kernel:
    if not FETCH and not is_cached(series):
        pytest.skip(f"{series} is not cached; BPFUNIT_TEST_ARCHIVE=1 fetches it")
    return resolve(series)


@pytest.mark.parametrize("series", [entry.series for entry in ENTRIES])
def test_a_real_kernel_is_complete(series):
    kernel = real_kernel(series)
    assert kernel.modules_root is not None
    assert kernel.image.read_bytes()[0x202:0x206] == b"HdrS"
    # What a guest needs before it has any other file system.
    dependencies = kernel.modules_root / "lib/modules" / kernel.release / "modules.dep"
    builtin = dependencies.with_name("modules.builtin").read_text()
    loadable = dependencies.read_text()
    for name in ("9pnet_virtio", "9p", "overlay", "veth"):
        assert f"/{name}.ko" in loadable + builtin, name
    headers = [entry.headers for entry in ENTRIES if entry.series == series]
    assert [kernel.headers is not None] == headers


@pytest.mark.parametrize("series", [entry.series for entry in ENTRIES if entry.headers])
def test_what_is_unpacked_lacks_no_symbol_that_the_network_needs(series):
    kernel = real_kernel(series)
    assert kernel.headers is not None
    assert kernel.modules_root is not None
    symbols = kernel.headers / "Module.symvers"
    command: list[str | Path] = ["depmod", "-n", "-e", "-E", symbols]
    command += ["-b", kernel.modules_root, kernel.release]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
    wanting = {word for word in result.stderr.split() if word.endswith((".ko", ".ko.xz"))}
    assert wanting, "depmod -e reports nothing: the check does not check"
    needed = ("/kernel/net/", "/drivers/virtio/", "/fs/9p/", "/fs/overlayfs/")
    assert [word for word in sorted(wanting) if any(part in word for part in needed)] == []


@pytest.mark.parametrize("series", [entry.series for entry in ENTRIES if entry.headers])
def test_the_module_builds_for_a_real_kernel(series):
    kernel = real_kernel(series)
    module = module_for(kernel)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    magic = subprocess.run(
        ["modinfo", "-F", "vermagic", module], capture_output=True, text=True, env={"PATH": path}
    )
    assert magic.stdout.split()[0] == kernel.release
    log = Path(f"{module.parent}.log").read_text()
    assert "warning:" not in log.replace("warning: the compiler differs", "")
    started = time.perf_counter()
    assert modules_for([kernel]) == [module]
    assert time.perf_counter() - started < 0.5


def test_an_error_in_a_real_build_names_the_file_that_was_written(tmp_path, monkeypatch):
    kernel = real_kernel("6.12")
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "Kbuild").write_text("obj-m := thing.o\n")
    (tmp_path / "thing.c").write_text("#include <linux/module.h>\n#error not today\n")
    with pytest.raises(
        ModuleBuildError, match=rf"{tmp_path}/thing\.c:2:2: error: #error not today"
    ):
        module_for(kernel, source=tmp_path)
