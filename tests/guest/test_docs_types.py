"""The examples in the pages of program types do what they say."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit import Object

from ..objects import compiled

pytestmark = pytest.mark.guest

HOWTO = Path(__file__).parents[2] / "docs/howto"
PAGES = ["cgroup-device", "cgroup-sock", "cgroup-sockopt", "cgroup-sysctl", "sk-reuseport"]


@pytest.mark.parametrize("page", PAGES)
def test_the_example_of_a_page_passes(page: str, bpf_load: Callable[..., Object]) -> None:
    text = (HOWTO / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(def (test_\w+)\(bpf_load\):.*?)```", text, re.DOTALL)
    assert found, f"{page}.md has no example"
    names: dict[str, Any] = {
        "bpfunit": bpfunit,
        "errno": errno,
        "socket": socket,
        "struct": struct,
    }
    exec(compile(found[1], f"{page}.md", "exec"), names)

    def load(name: str, **options: Any) -> Object:
        return bpf_load(compiled(name.removesuffix(".bpf.o")), **options)

    names[found[2]](load)
