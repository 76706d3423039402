"""How the documentation is built; ``make docs``. Needs no network once the tools are installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent

project = "bpfunit"
author = "the bpfunit developers"
project_copyright = "the bpfunit developers"
version = release = installed_version("bpfunit")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings quote names in single backquotes
nitpicky = True
# Only names of our own can be looked up without a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!bpfunit\.).*"),
    # not public
    (
        r"py:.*",
        r"bpfunit\.(_arch|_sys|engines|objects\.globals|progtypes|rewrite|runs|tailcalls|values"
        r"|kernels\.(_\w+|kernel))\..*",
    ),
]
suppress_warnings = ["ref.python"]  # results of a type describe attributes that they inherit

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "bpfunit"
html_static_path = ["_static"]
html_show_sourcelink = False
copybutton_prompt_text = r"\$ |# |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def _write_command_reference() -> None:
    """Write the reference of the command line from the command itself."""
    command = [sys.executable, "-m", "typer", "bpfunit.cli", "utils", "docs"]
    command += ["--name", "bpfunit", "--title", "The bpfunit command"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    target = HERE / "reference" / "command.md"
    target.parent.mkdir(exist_ok=True)
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


_write_command_reference()
