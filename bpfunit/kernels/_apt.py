"""A Debian suite read through apt with state of its own; the host's package state is not touched.

apt verifies the suite's signature with the keyring, the index by the signed hashes, each package
by the index. From the host's configuration only the transport is taken over (proxies, timeouts).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cmp_to_key, lru_cache
from pathlib import Path

from filelock import FileLock

from bpfunit._arch import Architecture, native
from bpfunit.kernels.catalogue import Catalogue, Suite
from bpfunit.kernels.errors import FetchError

INDEX_LIFETIME_S = 3600
"""An index younger than this is not fetched again, unless what is looked for is missing from it."""

_CONFIGURATION = """\
Dir::State "{state}";
Dir::State::lists "{state}/lists";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Etc::SourceList "{state}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::Etc::Main "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "/dev/null";
APT::Architecture "{architecture}";
APT::Architectures {{ {architectures} }};
APT::Sandbox::User "root";
{transport}
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
"""

_TRANSPORT = re.compile(
    r"Acquire::(https?::(Proxy|CAInfo|Timeout|No-Cache)|Check-Valid-Until|Check-Date|ForceIPv[46]|"
    r"Queue-Mode|Max-FutureTime)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Package:
    """One binary package of a suite's index.

    Attributes:
        name: the package's name.
        version: its Debian version.
        size: bytes to download.
        installed: bytes once unpacked, as the package itself says.
        depends: the ``Depends`` field as it stands.
        source: the source package's name.
        architecture: ``"amd64"``, or ``"all"``.
    """

    name: str
    version: str
    size: int
    installed: int
    depends: str
    source: str
    architecture: str = "all"


def newest_first(packages: Sequence[Package]) -> list[Package]:
    """Sort packages by Debian version, the newest first."""

    def compare(a: Package, b: Package) -> int:
        if a.version == b.version:
            return 0
        newer = subprocess.run(["dpkg", "--compare-versions", a.version, "gt", b.version])
        return -1 if newer.returncode == 0 else 1

    return sorted(packages, key=cmp_to_key(compare))


def mirrors(catalogue: Catalogue, archive: str) -> list[str]:
    """Return the URIs to try for an archive, the best first.

    `$BPFUNIT_MIRROR` alone when it is set; else the mirror that the host's apt uses for the
    archive, then the catalogue's.
    """
    if explicit := os.environ.get("BPFUNIT_MIRROR"):
        return [f"{explicit.rstrip('/')}/{archive}"]
    uris = [uri.rstrip("/") for uri in _configured_uris()]
    found = [uri for uri in uris if uri.rpartition("/")[2] == archive]
    return list(dict.fromkeys([*found, f"{catalogue.mirror}/{archive}"]))


def keyring(catalogue: Catalogue) -> Path:
    """Return the keyring to verify with.

    Raises:
        FetchError: when it is not there.
    """
    path = Path(os.environ.get("BPFUNIT_KEYRING") or catalogue.keyring)
    if not path.is_file():
        raise FetchError(
            f"verify archive: no keyring at {path}; "
            "install debian-archive-keyring, or name one in $BPFUNIT_KEYRING"
        )
    return path


def require_tools(operation: str, **tools: str) -> None:
    """Check that commands exist.

    Args:
        operation: what they are needed for, as the message begins.
        tools: command and the package that has it; an underscore stands for a hyphen.

    Raises:
        FetchError: naming all that are missing and the packages to install.
    """
    wanted = {name.replace("_", "-"): package for name, package in tools.items()}
    missing = [name for name in wanted if not _which(name)]
    if missing:
        packages = " ".join(sorted({wanted[name] for name in missing}))
        raise FetchError(
            f"{operation}: {', '.join(missing)} not found; run: apt-get install {packages}"
        )


def _which(name: str) -> str | None:
    # depmod lives in sbin, which is not on the path of ordinary users.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@lru_cache(maxsize=1)
def _configured_uris() -> tuple[str, ...]:
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    return tuple(listing.stdout.split())


@lru_cache(maxsize=1)
def configured_transport() -> str:
    """Return what the host's apt is told of transport, as lines of an apt configuration."""
    dump = subprocess.run(
        ["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"], capture_output=True, text=True
    )
    return "\n".join(line for line in dump.stdout.splitlines() if _TRANSPORT.match(line))


class SuiteIndex:
    """The package index of one suite, in a state directory of its own.

    Args:
        catalogue: names mirror and keyring.
        suite: the suite to read.
        state_root: directory that holds the states, one below it for each suite and mirror.
        sources: whether source packages are wanted too, for `download_source`.
        architecture: whose packages are meant; those of this machine are there beside them.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        suite: Suite,
        state_root: Path,
        *,
        sources: bool = False,
        architecture: Architecture | None = None,
    ) -> None:
        self._catalogue = catalogue
        self.suite = suite
        self._source_types = ("deb", "deb-src") if sources else ("deb",)
        wanted = architecture or native()
        self._architectures = list(dict.fromkeys([wanted.debian, native().debian]))
        name = suite.name if wanted == native() else f"{suite.name}-{wanted.debian}"
        self._state = state_root / name
        self._lock = FileLock(str(state_root / f".{name}.lock"))
        self._uri_file = self._state / "mirror"

    @property
    def mirror(self) -> str:
        """The URI that the index came from."""
        return self._uri_file.read_text(encoding="utf-8").strip()

    @property
    def is_foreign(self) -> bool:
        """Whether its packages are of another architecture than this machine."""
        return len(self._architectures) > 1

    def refresh(self, max_age_s: float = INDEX_LIFETIME_S) -> bool:
        """Fetch and verify the index where it is older than `max_age_s` seconds.

        Returns:
            Whether it was fetched.

        Raises:
            FetchError: no network, a bad signature, no such suite; with apt's own words.
        """
        require_tools(
            f"read {self.suite.name}", apt_get="apt", apt_cache="apt", dpkg="dpkg", dpkg_deb="dpkg"
        )
        key = keyring(self._catalogue)
        uris = mirrors(self._catalogue, self.suite.archive)
        self._state.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._is_fresh(uris, key, max_age_s):
                return False
            failures = []
            for uri in uris:
                self._write_state(uri, key)
                complaint = self._update()
                if complaint is None:
                    self._uri_file.write_text(uri, encoding="utf-8")
                    return True
                failures.append(f"{uri}: {complaint}")
        raise FetchError(
            f"read {self.suite.name} of the archive: {'; '.join(failures)}; "
            f"{_remedy(' '.join(failures))}"
        )

    def _is_fresh(self, uris: list[str], key: Path, max_age_s: float) -> bool:
        try:
            age = time.time() - self._uri_file.stat().st_mtime
            sources = (self._state / "sources.list").read_text(encoding="utf-8")
        except OSError:
            return False
        return age < max_age_s and any(sources == self._sources(uri, key) for uri in uris)

    def _sources(self, uri: str, key: Path) -> str:
        archive = f"{uri} {self.suite.name} {self.suite.component}"
        options = f"[arch={','.join(self._architectures)} signed-by={key}]"
        return "".join(f"{source_type} {options} {archive}\n" for source_type in self._source_types)

    def _write_state(self, uri: str, key: Path) -> None:
        self._uri_file.unlink(missing_ok=True)
        for part in ("lists/partial", "cache/archives/partial"):
            (self._state / part).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        (self._state / "sources.list").write_text(self._sources(uri, key), encoding="utf-8")
        configuration = _CONFIGURATION.format(
            state=self._state,
            architecture=self._architectures[0],
            architectures=" ".join(f'"{name}";' for name in self._architectures),
            transport=configured_transport(),
        )
        (self._state / "apt.conf").write_text(configuration, encoding="utf-8")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, env=self._environment())

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self._state / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def _update(self) -> str | None:
        # Without --error-on=any apt exits 0 with a warning when it falls back to an old index.
        result = self._run("apt-get", "update", "--error-on=any")
        return None if result.returncode == 0 else _complaint(result.stderr)

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that begin with `prefix`."""
        return sorted(self._run("apt-cache", "pkgnames", prefix).stdout.split())

    def packages(self, names: Sequence[str]) -> list[Package]:
        """Return all versions of the named packages; names that do not exist are left out."""
        if not names:
            return []
        return list(_stanzas(self._run("apt-cache", "show", *names).stdout))

    def download(
        self,
        packages: Sequence[Package],
        directory: Path,
        on_progress: Callable[[float], None],
    ) -> None:
        """Download and verify packages into a directory.

        Args:
            packages: exact versions.
            directory: where the files end up.
            on_progress: called with the fraction that is there, 0 to 1.

        Raises:
            FetchError: network gone, hash wrong, file vanished; with apt's own words.
        """
        wanted = [f"{self._called(package)}={package.version}" for package in packages]
        reader, writer = os.pipe()
        with (directory / "apt.log").open("w+b") as log:
            process = subprocess.Popen(
                ["apt-get", "download", "-o", f"APT::Status-Fd={writer}", *wanted],
                cwd=directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(writer,),
            )
            os.close(writer)
            try:
                with os.fdopen(reader, encoding="utf-8", errors="replace") as status:
                    for line in status:
                        status_type, _, percent, *_rest = [*line.split(":"), "", ""]
                        if status_type == "dlstatus":
                            on_progress(float(percent) / 100)
                code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            log.seek(0)
            words = log.read().decode(errors="replace")
        if code != 0:
            raise FetchError(
                f"download {', '.join(wanted)} from {self.mirror}: {_complaint(words)}"
            )

    def _called(self, package: Package) -> str:
        is_usual = package.architecture in {"all", self._architectures[0]}
        return package.name if is_usual else f"{package.name}:{package.architecture}"

    def download_source(self, package: Package, directory: Path) -> None:
        """Download and verify the files of the source package that a package was built from.

        Raises:
            FetchError: it is not in the suite, network gone, hash wrong; with apt's own words.
        """
        # the epoch of libbpf1's version is its own: the source has none
        wanted = f"{package.source}={package.version.rpartition(':')[2]}"
        command = ["apt-get", "source", "--download-only", "-q", wanted]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, env=self._environment()
        )
        if done.returncode != 0:
            raise FetchError(
                f"download source {wanted} from {self.mirror}: {_complaint(done.stderr)}"
            )


def _complaint(stderr: str) -> str:
    lines = [line[2:].strip() for line in stderr.splitlines() if line.startswith("E:")]
    lines = lines or [line[2:].strip() for line in stderr.splitlines() if line.startswith("W:")]
    # apt's last line says only that some index failed; the ones before say which and why.
    return "; ".join(lines[:-1] if len(lines) > 1 else lines) or "apt failed without a word"


def _remedy(complaint: str) -> str:
    if "No space left on device" in complaint:
        return "free some space or set $BPFUNIT_CACHE"
    return "check the network, or name a mirror in $BPFUNIT_MIRROR"


def _stanzas(text: str) -> Iterator[Package]:
    for stanza in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " "
        )
        if "Package" in fields and "Version" in fields:
            yield Package(
                fields["Package"],
                fields["Version"],
                int(fields.get("Size", 0)),
                int(fields.get("Installed-Size", 0)) * 1024,
                fields.get("Depends", ""),
                fields.get("Source", fields["Package"]).split()[0],
                fields.get("Architecture", "all"),
            )
