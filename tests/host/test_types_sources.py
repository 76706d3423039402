"""Types that an object's BTF lacks: from its DWARF, and from the files that the user names."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpfunit import BtfError, NotFoundError, Types, load_types
from bpfunit.values import dwarf, sources, typefiles
from bpfunit.values.layout import layout_lines
from bpfunit.values.sources import ObjectTypes, object_types
from tests.objects import CLANGS, compiled, linked, stripped

HEADER = Path(__file__).parents[1] / "guest" / "bpf" / "sized.h"
VALUE = ["+0 kind: u8", "+1 address: u32", "+5 ports: u32[4]"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(typefiles.DIRECTORY_VARIABLE, raising=False)
    sources._types_of_file.cache_clear()
    sources.use_for_session([])


def types_of_object(path: Path, *named: Types) -> ObjectTypes:
    return object_types(load_types(path)._raw, path, named)


def test_type_that_the_btf_lacks_comes_from_dwarf() -> None:
    types = types_of_object(compiled("sized"))
    assert "sized_value" not in load_types(stripped(compiled("sized")))
    assert "sized_value" in types
    assert layout_lines(types.sized_value) == VALUE
    assert types.sized_value(ports=[1, 2]).ports == [1, 2, 0, 0]


def test_missing_name_of_a_stripped_object_says_which_ways_give_it() -> None:
    types = types_of_object(stripped(compiled("sized")))
    with pytest.raises(NotFoundError) as caught:
        _ = types.sized_value
    for way in ("has no DWARF", "llvm-strip", "types=", "--bpf-types", "bpf_types"):
        assert way in str(caught.value)


def test_missing_name_of_an_object_with_dwarf_does_not_blame_stripping() -> None:
    with pytest.raises(NotFoundError, match="no such type in its DWARF either"):
        _ = types_of_object(compiled("sized")).no_such_type


@pytest.mark.parametrize("clang", CLANGS)
def test_header_gives_every_type_it_declares(clang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", clang)
    types = types_of_object(stripped(compiled("sized")), load_types(HEADER))
    assert layout_lines(types.sized_value) == VALUE
    assert ctypes.sizeof(types.sized_key) == 4


def test_another_object_gives_types_by_its_dwarf_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.o"
    objcopy = ["llvm-objcopy", "--remove-section", ".BTF", "--remove-section", ".rel.BTF"]
    subprocess.run([*objcopy, str(compiled("sized")), str(other)], check=True, timeout=60)
    types = types_of_object(stripped(compiled("sized")), load_types(other))
    assert layout_lines(types.sized_value) == VALUE


def test_file_of_raw_btf_gives_types(tmp_path: Path) -> None:
    file = tmp_path / "types.btf"
    file.write_bytes(dwarf.btf_from(compiled("sized").read_bytes(), "sized") or b"")
    assert layout_lines(load_types(file).sized_value) == VALUE


def test_flags_reach_the_compiler() -> None:
    types = load_types(HEADER, ["-DPORTS=9"])
    assert layout_lines(types.sized_value)[-1] == "+5 ports: u32[9]"


def test_include_paths_reach_the_compiler(tmp_path: Path) -> None:
    header = tmp_path / "mine.h"
    header.write_text('#include "sized.h"\nstruct mine { sized_key key; };\n')
    with pytest.raises(BtfError, match=r"sized\.h.*file not found"):
        load_types(header)
    assert layout_lines(load_types(header, [f"-I{HEADER.parent}"]).mine) == ["+0 key.id: u32"]


def test_two_sources_that_differ_are_an_error_that_shows_both() -> None:
    types = types_of_object(compiled("sized"), load_types(HEADER, ["-DPORTS=9"]))
    with pytest.raises(BtfError) as caught:
        _ = types.sized_value
    for part in ("sized_value", "(DWARF), 21 bytes", "sized.h, 41 bytes", "u32[4]", "u32[9]"):
        assert part in str(caught.value)
    assert ctypes.sizeof(types.sized_key) == 4, "the same in both is no difference"


def test_field_of_another_name_is_a_difference_too(tmp_path: Path) -> None:
    header = tmp_path / "renamed.h"
    header.write_text(HEADER.read_text().replace("address", "addr"))
    types = types_of_object(compiled("sized"), load_types(header))
    with pytest.raises(BtfError, match=r"(?s)\+1 address: u32.*\+1 addr: u32"):
        _ = types.sized_value


def test_compiled_header_is_kept_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "kept.h"
    header.write_text("struct kept { int one; };\n")
    load_types(header)
    compiles: list[object] = []

    def compile_(*arguments: Any, run: Any = typefiles._compile) -> Any:
        compiles.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(typefiles, "_compile", compile_)
    sources._types_of_file.cache_clear()
    load_types(header)
    assert not compiles
    header.write_text("struct kept { int one, two; };\n")
    assert ctypes.sizeof(load_types(header).kept) == 8
    assert len(compiles) == 1


def test_file_is_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sources.use_for_session([HEADER, compiled("sized")])
    first = sources.named_types(None)
    monkeypatch.setattr(sources, "compiled_types", None)
    monkeypatch.setattr(sources, "_elf_types", None)
    assert sources.named_types(None) == first


def test_machine_without_clang_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", "clang-that-is-not-there")
    with pytest.raises(BtfError, match="no clang-that-is-not-there on PATH"):
        load_types(HEADER)


def test_files_named_for_the_session_count_for_every_load() -> None:
    sources.use_for_session([HEADER], ["-DPORTS=9"])
    (types,) = sources.named_types(None)
    assert ctypes.sizeof(types.sized_value) == 41
    own, more = sources.named_types(HEADER)
    assert (ctypes.sizeof(own.sized_value), more) == (21, types)


def test_text_file_is_no_source_of_types(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BtfError, match=r"neither a C header or source"):
        load_types(tmp_path / "notes.txt")
    with pytest.raises(BtfError, match="no such file"):
        load_types(tmp_path / "absent.h")


@pytest.mark.parametrize("clang", CLANGS)
@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_dwarf_and_btf_agree_on_every_type(clang: str, version: str) -> None:
    path = compiled("layouts", clang=clang, flags=[version])
    btf = load_types(path)
    raw = dwarf.btf_from(path.read_bytes(), path.name)
    assert raw is not None
    found = Types(raw, "DWARF")
    # BTF spells three base types in its own way, and knows types that no code uses
    names = [name for name in found if name in btf]
    assert {"everything", "bits", "either", "packed", "frontend_key"} <= set(names)
    for name in names:
        assert layout_lines(found[name]) == layout_lines(btf[name]), name


def test_arrays_of_arrays_keep_their_order(tmp_path: Path) -> None:
    header = tmp_path / "grid.h"
    header.write_text("struct grid { short cells[2][3]; char end[]; };\n")
    grid = load_types(header).grid
    assert grid(cells=[[1, 2, 3], [4, 5, 6]]).cells[1] == [4, 5, 6]
    assert ctypes.sizeof(grid) == 12


def test_name_with_two_layouts_in_a_linked_object_is_an_error(tmp_path: Path) -> None:
    parts = []
    for name, field in (("one", "int a"), ("two", "long a, b")):
        source = tmp_path / f"{name}.c"
        source.write_text(f'struct conf {{ {field}; }} {name} __attribute__((section(".data")));\n')
        parts.append(tmp_path / f"{name}.o")
        command = ["clang", "-target", "bpf", "-g", "-O2", "-c", str(source), "-o", str(parts[-1])]
        subprocess.run(command, check=True, timeout=60)
    whole = linked(f"conf-{tmp_path.parent.name}", *parts)
    with pytest.raises(BtfError, match=r"(?s)conf: two sources differ.*\+0 a: s32.*\+8 b: s64"):
        _ = load_types(whole).conf
