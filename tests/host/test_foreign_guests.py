"""Guests of another architecture: what they put in the place of this machine's Python."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpfunit._arch import ARCHITECTURES
from bpfunit.cli._objects import is_bpf_object
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import Facts, Site
from bpfunit.explorer.wire import Input, Step, Wire
from bpfunit.guest import foreign
from bpfunit.guest.bytecode import ROOT, archive
from bpfunit.kernels import Kernel
from bpfunit.kernels._foreign import _keep_usr_alone
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._wheels import compiled_parts
from bpfunit.plugin.fixtures import object_under_test
from bpfunit.plugin.worker import _fits_this_machine

pytestmark = pytest.mark.host

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def test_the_place_of_this_interpreter_and_its_library_get_the_guests_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "lib"))
    (tmp_path / "lib/site-packages").mkdir(parents=True)
    assert foreign.commands().splitlines() == [
        f"/bin/busybox mount -o bind ./usr/bin/{VERSION} .{tmp_path}/bin/python",
        f"/bin/busybox mkdir -p ./usr/lib/{VERSION}/site-packages",
        f"/bin/busybox mount -o bind .{tmp_path}/lib/site-packages"
        f" ./usr/lib/{VERSION}/site-packages",
        f"/bin/busybox mount -o rbind ./usr/lib/{VERSION} .{tmp_path}/lib",
    ]


def test_debians_own_interpreter_is_where_the_guest_has_its_own(monkeypatch):
    monkeypatch.setattr(sys, "executable", f"/usr/bin/{VERSION}")
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: f"/usr/lib/{VERSION}")
    assert foreign.commands() == ""


def test_a_root_keeps_all_below_usr(tmp_path):
    for path in ("bin/sh", "lib/ld.so", "lib/x/libc.so", "usr/lib/x/libz.so", "etc/passwd"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    _keep_usr_alone(tmp_path)
    found = subprocess.run(
        ["find", ".", "-type", "f"], cwd=tmp_path, capture_output=True, text=True
    )
    expected = "./usr/bin/sh ./usr/lib/ld.so ./usr/lib/x/libc.so ./usr/lib/x/libz.so"
    assert sorted(found.stdout.split()) == expected.split()
    assert (tmp_path / "lib/x/libc.so").read_text() == "lib/x/libc.so"
    assert (tmp_path / "bin").readlink() == Path("usr/bin")


def test_a_warm_python_reads_its_own_library_and_the_projects_files(tmp_path):
    """Files of the standard library and machine code come from the root, all others from here."""
    root, library = tmp_path / "root", Path(sysconfig.get_path("stdlib")).resolve()
    own, libraries = root / "usr/lib" / VERSION, root / "usr/lib/vax-linux-gnu"
    contents = {
        root / "usr/bin" / VERSION: b"\x7fELF libc.so.6\0 libnot.so.10\0",
        own / "os.py": b"",
        own / "encodings/utf_8.py": b"",
        own / "_sysconfigdata__vax-linux-gnu.py": b"",
        own / "lib-dynload/zlib.so": b"\x7fELF libz.so.1\0",
        own / "tkinter.py": b"",
        libraries / "libc.so.6": b"\x7fELF ld-vax.so.1\0",
        libraries / "libz.so.1": b"\x7fELF",
        libraries / "libnot.so.1": b"\x7fELF",
        root / "usr/lib/ld-vax.so.1": b"\x7fELF",
    }
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    here = Path(__file__)
    listed = [str(path) for path in (library / "os.py", library / "json/__init__.py", here)]
    found = foreign.warm_files([*listed, sys.executable], root)
    assert found == {
        str(root / "usr/bin" / VERSION): str(Path(sys.executable).resolve()),
        str(own / "os.py"): str(library / "os.py"),
        str(own / "encodings/utf_8.py"): str(library / "encodings/utf_8.py"),
        str(own / "_sysconfigdata__vax-linux-gnu.py"): str(
            library / "_sysconfigdata__vax-linux-gnu.py"
        ),
        str(own / "lib-dynload/zlib.so"): str(library / "lib-dynload/zlib.so"),
        str(libraries / "libc.so.6"): "/usr/lib/vax-linux-gnu/libc.so.6",
        str(libraries / "libz.so.1"): "/usr/lib/vax-linux-gnu/libz.so.1",
        str(root / "usr/lib/ld-vax.so.1"): "/usr/lib/ld-vax.so.1",
        str(here): str(here),
    }


@pytest.mark.parametrize("target", ["bpfel", "bpfeb"])
def test_objects_of_either_byte_order_are_found(tmp_path, target):
    (tmp_path / "one.c").write_text("int one(void) { return 1; }")
    build = ["clang", "-target", target, "-c", "one.c", "-o", "one.o"]
    subprocess.run(build, cwd=tmp_path, check=True)
    assert is_bpf_object(tmp_path / "one.o")
    subprocess.run(["clang", "-c", "one.c", "-o", "one.o"], cwd=tmp_path, check=True)
    assert not is_bpf_object(tmp_path / "one.o")


@pytest.mark.parametrize(
    ("order", "asked", "found"),
    [
        ("little", None, "/project/bpf/build/hook.bpf.o"),
        ("big", None, "/project/bpf/build/hook.bpfeb.o"),
        ("little", "build/x.bpf{endian}.o", "build/x.bpfel.o"),
        ("big", "build/x.bpf{endian}.o", "build/x.bpfeb.o"),
        ("big", "build/x.o", "build/x.o"),
    ],
)
def test_the_object_under_test_follows_the_byte_order(monkeypatch, order, asked, found):
    monkeypatch.setattr(sys, "byteorder", order)
    config: Any = SimpleNamespace(getoption=lambda *_: asked, rootpath=Path("/project"))
    assert object_under_test(config) == Path(found)


def test_a_kernel_built_without_a_jit_interprets_programs(tmp_path):
    image = tmp_path / "vmlinuz-6.12.0-test"
    kernel = Kernel("6.12", "6.12.0-test", image, None, None, "here")
    assert not kernel.interprets  # nobody knows
    configuration = tmp_path / "config-6.12.0-test"
    configuration.write_text("CONFIG_BPF=y\nCONFIG_BPF_JIT=y\nCONFIG_NET=y\n")
    assert not kernel.interprets
    configuration.write_text("CONFIG_BPF=y\n# CONFIG_BPF_JIT is not set\n")
    assert kernel.interprets


@pytest.mark.parametrize(("order", "number"), [("little", b"\2\0"), ("big", b"\0\2")])
def test_what_explore_says_and_hears_is_in_the_kernels_byte_order(order, number):
    """Inputs as _native/explore.c reads them, and a record of it: the site and both operands."""
    sites = [Site("key", 0), Site("key", 1), Site("branch", 2, op=0x10)]
    facts = Facts("p", "s", "k", "t", sites, frozenset(), {}, (), (), (), (), order=order)
    wire = Wire(Facts.from_plain(facts.to_plain()))
    four = [n.to_bytes(4, order) for n in (1, 0, 0, 3)]
    body = b"".join(four) + b"ctx" + bytes(4)
    assert wire.encode([Input((Step(b"ctx"),))]) == len(body).to_bytes(4, order) + body
    record = number + (5).to_bytes(8, order) + (6).to_bytes(8, order)
    assert wire._records(record, 0, len(record)) == [(2, 5, 6, b"")]
    cell = Cell("ctx", 0, 0, 2)
    given = Cells(facts).written(Input((Step(bytes(4)),)), cell, 7)
    assert given.steps[0].ctx == (7).to_bytes(2, order) + bytes(2)
    assert Cells(facts).read(given, cell) == 7


def test_machine_code_for_a_package_lies_where_the_guest_looks_for_it(tmp_path):
    """In the initramfs over the host's files, and in a warm Python's tree with its libraries."""
    part, place = tmp_path / "_native.abi3.so", "/project/venv/hypothesis/_native.abi3.so"
    part.write_bytes(b"\x7fELF libz.so.1\0")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    given = archive([], {part: place})
    subprocess.run(["busybox", "cpio", "-id"], input=given, cwd=unpacked, check=True)
    assert (unpacked / ROOT / place[1:]).read_bytes() == part.read_bytes()
    root = tmp_path / "root"
    library = root / "usr/lib/vax-linux-gnu/libz.so.1"
    for path in (root / "usr/bin" / VERSION, library):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x7fELF")
    found = foreign.warm_files([], root, {part: place})
    assert found[str(part)] == place
    assert (
        found[str(root / "usr/lib/vax-linux-gnu/libz.so.1")] == "/usr/lib/vax-linux-gnu/libz.so.1"
    )


def test_a_package_fits_by_the_machine_that_its_code_is_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "compiled_for_another"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert _fits_this_machine(package.name)
    own = Path(sys.executable).read_bytes()[:64]
    other = own[:18] + b"\x3f\x3f" + own[20:]
    (package / "_native.abi3.so").write_bytes(other)
    assert not _fits_this_machine(package.name)
    (package / "_native.abi3.so").write_bytes(own)
    assert _fits_this_machine(package.name)


def test_pip_says_why_it_has_no_wheel(tmp_path, monkeypatch):
    """The run goes on, since not every one imports the package."""
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with Reporter() as reporter:
        assert compiled_parts(ARCHITECTURES["s390x"], reporter.task("test")) == {}
    assert not [one for one in (tmp_path / "roots").iterdir() if one.is_dir()]
