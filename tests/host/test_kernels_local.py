"""Kernels given by path: images, build trees, unpacked directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfunit._arch import ARCHITECTURES
from bpfunit.kernels import KernelsError, resolve
from bpfunit.kernels._local import image_release

pytestmark = pytest.mark.host

RELEASE = "6.14.0-rc3-mine+"


def write_image(path: Path, release: str = RELEASE) -> Path:
    """Write what a bzImage begins with: the setup header and the version string it points to."""
    data = bytearray(0x4000)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x3000).to_bytes(2, "little")
    text = f"{release} (me@here) #1 SMP".encode()
    data[0x3200 : 0x3200 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def build_tree(path: Path) -> Path:
    write_image(path / "arch/x86/boot/bzImage")
    for name in ("Kbuild", "Kconfig", "Makefile", "vmlinux", "Module.symvers"):
        (path / name).touch()
    (path / "include/config").mkdir(parents=True)
    (path / "include/config/kernel.release").write_text(f"{RELEASE}\n")
    return path


def test_an_image_says_its_release_itself(tmp_path):
    kernel = resolve(write_image(tmp_path / "bzImage"))
    assert (kernel.series, kernel.release) == ("6.14", RELEASE)
    assert (kernel.modules_root, kernel.headers) == (None, None)
    assert f"no lib/modules/{RELEASE}" in kernel.note
    assert kernel.boot_path == tmp_path / "bzImage"


def test_an_unpacked_directory_is_found_with_modules_and_headers(tmp_path):
    image = write_image(tmp_path / f"boot/vmlinuz-{RELEASE}")
    headers = tmp_path / f"usr/src/linux-headers-{RELEASE}"
    headers.mkdir(parents=True)
    (headers / "Makefile").touch()
    (tmp_path / "lib/modules" / RELEASE).mkdir(parents=True)
    kernel = resolve(tmp_path)
    assert (kernel.image, kernel.modules_root, kernel.headers) == (image, tmp_path, headers)
    assert resolve(image) == kernel
    assert kernel.note == ""


def test_an_arm64_image_says_its_release_in_its_banner(tmp_path):
    data = bytearray(0x20000)
    data[56:60] = b"ARMd"  # Documentation/arch/arm64/booting.rst
    text = b"Linux version 6.14.0-rc3-mine+ (me@here) #1 SMP"
    data[0x18000 : 0x18000 + len(text)] = text
    (tmp_path / "Image").write_bytes(data)
    assert image_release(tmp_path / "Image") == (RELEASE, ARCHITECTURES["aarch64"])


@pytest.mark.parametrize("inside", [".", "arch/x86/boot/bzImage", "vmlinux"])
def test_a_build_tree_is_meant_by_itself_and_its_images(tmp_path, inside):
    tree = build_tree(tmp_path / "linux")
    kernel = resolve(str(tree / inside))
    assert (kernel.release, kernel.tree, kernel.headers) == (RELEASE, tree, tree)
    assert kernel.image == tree / "arch/x86/boot/bzImage"
    assert kernel.boot_path == tree


def test_a_relative_path_is_taken_from_where_the_user_is(tmp_path, monkeypatch):
    write_image(tmp_path / "bzImage")
    monkeypatch.chdir(tmp_path)
    assert resolve("bzImage").image == tmp_path / "bzImage"
    assert resolve("./bzImage").image == tmp_path / "bzImage"


def test_a_tree_that_is_not_built_says_how_to_build_it(tmp_path):
    tree = build_tree(tmp_path / "linux")
    (tree / "arch/x86/boot/bzImage").unlink()
    with pytest.raises(KernelsError, match=r"without arch/x86/boot/bzImage; build it first \(make"):
        resolve(tree)


def test_an_elf_file_is_told_what_is_wanted(tmp_path):
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(KernelsError, match=r"expected a bzImage.*found an ELF file \(vmlinux\)"):
        resolve(tmp_path / "vmlinux")


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(KernelsError, match=r"gone: no such file or directory"):
        resolve(tmp_path / "gone")


def test_a_directory_with_two_images_asks_for_one(tmp_path):
    write_image(tmp_path / "boot/vmlinuz-a")
    write_image(tmp_path / "boot/vmlinuz-b")
    with pytest.raises(KernelsError, match="found vmlinuz-a, vmlinuz-b; name the image itself"):
        resolve(tmp_path)
