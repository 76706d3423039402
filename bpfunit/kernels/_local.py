"""Kernels that are files of the user's: an image, a build tree, an unpacked directory."""

from __future__ import annotations

import mmap
import platform
from pathlib import Path

from bpfunit._arch import ARCHITECTURES, Architecture, native
from bpfunit.kernels.errors import KernelsError
from bpfunit.kernels.kernel import Kernel


def local_kernel(path: Path) -> Kernel:
    """Return the kernel at a path.

    Args:
        path: a boot image (``vmlinuz``), the tree of a built kernel, or a directory with
            ``boot/vmlinuz-RELEASE`` and ``lib/modules/RELEASE``.

    Raises:
        KernelsError: when it is none of these; the message says what was looked for.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        return _from_tree(path) if (path / "Kbuild").exists() else _from_directory(path)
    if not path.exists():
        raise KernelsError(f"resolve kernel: {path}: no such file or directory")
    # The image and vmlinux of a build tree mean the tree, with its modules.
    for tree in (path.parent, *path.parents[3:4]):
        if (tree / "Kbuild").exists() and (tree / "Kconfig").exists():
            return _from_tree(tree)
    return _from_image(path)


def image_release(image: Path) -> tuple[str, Architecture]:
    """Return the release that a boot image says it is, and its architecture.

    Raises:
        KernelsError: when it is no such image.
    """
    head = b""
    if image.stat().st_size:
        with (
            image.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            head = data[:4]
            for one in ARCHITECTURES.values():
                if (release := one.image_release(data)) is not None:
                    return release, one
    arch = native()
    format_found = "an ELF file (vmlinux)" if head == b"\x7fELF" else "something else"
    raise KernelsError(
        f"resolve kernel: {image}: expected a {arch.image_name} (vmlinuz), found"
        f" {format_found}; in a build tree it is {arch.boot_image}"
    )


def _from_tree(tree: Path) -> Kernel:
    built = (one for one in ARCHITECTURES.values() if (tree / one.boot_image).is_file())
    arch = next(built, native())
    image = tree / arch.boot_image
    release_file = tree / "include/config/kernel.release"
    for needed in (image, release_file):
        if not needed.is_file():
            raise KernelsError(
                f"resolve kernel: {tree}: a kernel tree without "
                f"{needed.relative_to(tree)}; build it first"
                f" (make -C {tree} {arch.image_name} modules)"
            )
    release = release_file.read_text(encoding="utf-8").strip()
    headers = tree if (tree / "Module.symvers").is_file() else None
    source = f"build tree {tree}"
    return Kernel(
        *(_series(release), release, image, None, headers, source), tree=tree, architecture=arch
    )


def _from_directory(directory: Path) -> Kernel:
    images = sorted((directory / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        found = ", ".join(image.name for image in images) or "none"
        raise KernelsError(
            f"resolve kernel: {directory}: expected a built kernel tree, or one "
            f"boot/vmlinuz-RELEASE beside lib/modules/RELEASE; found {found}; name the image itself"
        )
    return _from_image(images[0])


def _from_image(image: Path) -> Kernel:
    release, arch = image_release(image)
    beside = image.parent.parent / "lib/modules" / release
    installed = Path("/lib/modules") / release
    modules = next((path for path in (beside, installed) if path.is_dir()), None)
    headers = None
    if modules:
        candidates = (
            modules / "build",
            modules.parents[2] / "usr/src" / f"linux-headers-{release}",
        )
        headers = next((path for path in candidates if (path / "Makefile").is_file()), None)
    root = modules.parents[2] if modules else None
    note = "" if modules else f"no lib/modules/{release} beside it: modules cannot be loaded"
    running = " (the running kernel's)" if release == platform.release() else ""
    source = f"image {image}{running}"
    return Kernel(
        *(_series(release), release, image, root, headers, source, note), architecture=arch
    )


def _series(release: str) -> str:
    return ".".join(release.split(".")[:2])
