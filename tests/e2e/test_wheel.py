"""The wheel: what it carries, and that every supported Python can use it without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from bpfunit.kernels._kmod import source_files

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.host

# Imports all there is: a module that needs a newer Python, or a file that the wheel lacks, shows.
IMPORT_ALL = """
import importlib, pkgutil, bpfunit
names = [m.name for m in pkgutil.walk_packages(bpfunit.__path__, "bpfunit.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names), bpfunit.__file__)
"""


def interpreters() -> list[Path]:
    """Return one interpreter for each minor version from 3.10 on that this machine has."""
    found: dict[int, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(10, 15):
        candidates = [shutil.which(f"python3.{minor}")]
        candidates += [str(path) for path in pyenv.glob(f"3.{minor}.*/bin/python3.{minor}")]
        for candidate in candidates:
            command = [candidate or "false", "-c", "import venv, ensurepip"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                found.setdefault(minor, Path(candidate or ""))
    return list(found.values())


def test_the_wheel_carries_the_module_the_catalogue_and_the_templates(wheelhouse: Path) -> None:
    [wheel] = wheelhouse.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (
        "bpfunit/py.typed",
        "bpfunit/_vm/kernels.toml",
        "bpfunit/_vm/testrun/Kbuild",
        "bpfunit/guest/init.sh",
        "bpfunit/cli/templates/test.py.j2",
        "bpfunit/report/templates/run.html.j2",
    ):
        assert path in names
    carried = {name for name in names if name.startswith("bpfunit/_vm/testrun/")}
    sources = source_files(ROOT / "vm" / "testrun")
    assert Path("types/sock_addr.c") in sources
    assert carried >= {f"bpfunit/_vm/testrun/{file}" for file in sources}
    leftovers = [name for name in names if name.endswith((".ko", ".o", ".pyc", ".cmd"))]
    assert leftovers == []


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: path.name)
def test_each_python_installs_and_imports_it(
    wheelhouse: Path, tmp_path: Path, python: Path
) -> None:
    environment = {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": "",
        "PYTHONWARNINGS": "error::SyntaxWarning",
    }

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    run(python, "-m", "venv", "env")
    own = tmp_path / "env/bin/python"
    [wheel] = wheelhouse.glob("*.whl")
    run(own, "-m", "pip", "install", "--quiet", wheel)
    count, where = run(own, "-c", IMPORT_ALL).split()
    assert int(count) > 50
    assert Path(where).is_relative_to(tmp_path)
    assert run(tmp_path / "env/bin/bpfunit", "--version").startswith("bpfunit ")
    (tmp_path / "test_plugin.py").write_text("def test_plugin(bpf_load): assert callable(bpf_load)")
    assert "1 passed" in run(own, "-m", "pytest", "-q", "test_plugin.py")
