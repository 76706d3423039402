"""A small Debian archive made on the fly: real packages, real hashes, signed by a throwaway key."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from email.utils import formatdate
from pathlib import Path

SUITE = "test"


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=True, capture_output=True, **options)  # type: ignore[call-overload]


class Key:
    """A signing key in a home of its own; `close` ends its agent."""

    def __init__(self) -> None:
        # An agent's socket path has 108 bytes; pytest's temporary directories can be longer.
        self.home = Path(tempfile.mkdtemp(prefix="bpfunit-gpg-"))
        self._gpg("--quick-gen-key", "bpfunit test <test@example.invalid>", "rsa2048", "sign")
        self.keyring = self.home / "keyring.gpg"
        self.keyring.write_bytes(self._gpg("--export").stdout)

    def _gpg(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return run(
            "gpg", "--homedir", self.home, "--batch", "--yes", "--passphrase", "", *arguments
        )

    def sign(self, release: Path, signed: Path) -> None:
        self._gpg("--digest-algo", "SHA256", "--output", signed, "--clearsign", release)

    def close(self) -> None:
        run("gpgconf", "--homedir", self.home, "--kill", "gpg-agent")
        shutil.rmtree(self.home, ignore_errors=True)


class Archive:
    """One suite, `SUITE`, of one archive, ``debian``, below `root`."""

    def __init__(self, root: Path, key: Key) -> None:
        self.root = root
        self.key = key
        self.base = root / "debian"
        self.dists = self.base / "dists" / SUITE
        self.packages: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        return f"file://{self.root}"

    @property
    def index(self) -> Path:
        return self.index_of("amd64")

    def index_of(self, architecture: str) -> Path:
        return self.dists / f"main/binary-{architecture}/Packages"

    def add(
        self,
        name: str,
        version: str,
        files: dict[str, str],
        depends: str = "",
        architecture: str = "amd64",
    ) -> Path:
        """Build a package with the given files, path to content."""
        tree = self.root / "trees" / name
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content, encoding="utf-8")
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
            f"Maintainer: nobody <nobody@example.invalid>\nInstalled-Size: 10\n"
            + (f"Depends: {depends}\n" if depends else "")
            + "Description: test package\n"
        )
        (tree / "DEBIAN/control").write_text(control, encoding="utf-8")
        pool = self.base / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        package = pool / f"{name}_{version}_{architecture}.deb"
        run("dpkg-deb", "--build", "--root-owner-group", "-Znone", tree, package)
        shutil.rmtree(tree)
        self.packages[name if architecture == "amd64" else f"{name}:{architecture}"] = package
        return package

    def add_kernel(self, release: str, version: str, *, headers: bool = True) -> None:
        """Add a kernel as Debian packages them up to 6.18."""
        modules = f"lib/modules/{release}"
        self.add(
            f"linux-image-{release}",
            version,
            {
                f"boot/vmlinuz-{release}": f"image of {release}",
                f"{modules}/kernel/net/README": "kept",
                f"{modules}/kernel/sound/README": "dropped",
                "usr/share/doc/README": "dropped",
            },
            "kmod, initramfs-tools | linux-initramfs-tool",
        )
        if headers:
            self.add_headers(release, version)

    def add_split_kernel(self, release: str, version: str, *, modules: bool = True) -> None:
        """Add a kernel as Debian packages them since 6.19, in pieces below ``usr/lib/modules``."""
        below = f"usr/lib/modules/{release}"
        parts = {
            "base": {f"{below}/modules.order": "", f"{below}/modules.builtin": ""},
            "binary": {f"{below}/vmlinuz": f"image of {release}"},
            "modules": {f"{below}/kernel/net/README": "kept"},
        }
        for part, files in parts.items():
            if modules or part != "modules":
                depends = "" if part == "base" else f"linux-base-{release} (= {version})"
                self.add(f"linux-{part}-{release}", version, files, depends)
        depends = ", ".join(f"linux-{part}-{release} (= {version})" for part in parts)
        self.add(f"linux-image-{release}", version, {"usr/share/doc/README": "x"}, depends)

    def add_headers(self, release: str, version: str) -> None:
        short = release.removesuffix("-amd64")
        source = "usr/src/linux-headers"
        self.add(
            f"linux-headers-{release}",
            version,
            {f"{source}-{release}/Makefile": f"include /{source}-{short}-common/Makefile\n"},
            f"linux-headers-{short}-common (= {version}), gcc-12",
        )
        self.add(
            f"linux-headers-{short}-common",
            version,
            {
                f"{source}-{short}-common/Makefile": "where:\n\t@echo common: $(CURDIR)\n",
                f"{source}-{short}-common/arch/x86/Makefile": "",
                f"{source}-{short}-common/arch/arm64/Makefile": "",
            },
        )

    def add_arm64_kernel(self, release: str, version: str) -> None:
        """Add a kernel for arm64 whose headers want build tools, which come for both."""
        short = release.removesuffix("-arm64")
        common, kbuild = f"linux-headers-{short}-common", f"linux-kbuild-{short}"
        image = {f"boot/vmlinuz-{release}": "image", f"lib/modules/{release}/kernel/README": "x"}
        self.add(f"linux-image-{release}", version, image, architecture="arm64")
        files = {f"usr/src/linux-headers-{release}/Makefile": "all:\n"}
        depends = f"{common} (= {version}), {kbuild} (= {version})"
        self.add(f"linux-headers-{release}", version, files, depends, architecture="arm64")
        trees = {f"usr/src/{common}/arch/{one}/Makefile": "" for one in ("x86", "arm64", "s390")}
        self.add(common, version, trees, architecture="all")
        for architecture in ("amd64", "arm64"):
            tool = {f"usr/lib/{kbuild}/scripts/fixdep": f"runs on {architecture}"}
            self.add(kbuild, version, tool, architecture=architecture)

    def drop(self, prefix: str) -> None:
        """Take packages whose name begins with `prefix` out of the archive."""
        for name in [name for name in self.packages if name.startswith(prefix)]:
            self.packages.pop(name).unlink()

    def publish(self, key: Key | None = None) -> None:
        """Write the index and sign it."""
        stanzas: dict[str, list[str]] = {"amd64": [], "arm64": []}
        for name, package in self.packages.items():
            control = run("dpkg-deb", "-f", package).stdout.decode().rstrip()
            data = package.read_bytes()
            architecture = name.partition(":")[2] or "amd64"
            for one in stanzas if architecture == "all" else [architecture]:
                stanzas[one].append(
                    f"{control}\nFilename: pool/{package.name}\nSize: {len(data)}\n"
                    f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
                )
        hashes = ""
        for one, texts in stanzas.items():
            index = self.index_of(one)
            index.parent.mkdir(parents=True, exist_ok=True)
            index.write_text("\n".join(texts), encoding="utf-8")
            data = index.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            hashes += f" {digest} {len(data)} main/binary-{one}/Packages\n"
        release = self.dists / "Release"
        release.write_text(
            f"Origin: bpfunit\nSuite: {SUITE}\nCodename: {SUITE}\n"
            f"Date: {formatdate(usegmt=True)}\nArchitectures: amd64 arm64\nComponents: main\n"
            f"SHA256:\n{hashes}",
            encoding="utf-8",
        )
        (key or self.key).sign(release, self.dists / "InRelease")
        release.unlink()


def catalogue_text(keyring: Path, *kernels: str) -> str:
    """Return a catalogue for `SUITE`; each kernel is ``"RELEASE VERSION [headers]"``."""
    text = (
        f'[archive]\nmirror = "http://127.0.0.1:9"\nkeyring = "{keyring}"\nflavour = "amd64"\n'
        'drop = ["sound"]\n\n'
        f'[suites]\n{SUITE} = {{ archive = "debian" }}\n\n'
        f'[roots.small]\nsuites = ["{SUITE}"]\ncompiler = "gcc"\npackages = []\n'
    )
    for kernel in kernels:
        release, version, *flags = kernel.split()
        series = ".".join(release.split(".")[:2])
        text += f"\n# a comment about {series}\n[[kernel]]\n"
        text += 'architecture = "arm64"\n' if release.endswith("-arm64") else ""
        text += (
            f'series = "{series}"\nrelease = "{release}" # the pin\nversion = "{version}"\n'
            f'suites = ["{SUITE}"]\n'
        )
        text += 'headers = true\nroot = "small"\n' if "headers" in flags else "headers = false\n"
    return text


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that steer bpfunit."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BPFUNIT_")}
