"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KernelName = Annotated[
    str, typer.Option("--kernel", "-k", help="Series, exact release, or a kernel's path.")
]
MapTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--map-type",
        metavar="NAME=KEY,VALUE",
        help="C types of a map that declares sizes only; repeatable.",
    ),
]
TypeFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="C header, object or BTF file with types that OBJECT lacks; repeatable.",
    ),
]
TypesFlags = Annotated[
    list[str] | None,
    typer.Option(
        "--types-flag", metavar="FLAG", help="For the clang that compiles headers; repeatable."
    ),
]
Globals = Annotated[
    list[str] | None,
    typer.Option("--global", "-g", metavar="NAME=VALUE", help="Set a global variable."),
]
GuestEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--guest-env",
        metavar="NAME[=VALUE]",
        help="Pass a variable that is withheld, or set one for the guest; repeatable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
