"""The tool that follows the pages of the documentation, tried on small pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from walkthrough import Shell, follow, pattern

pytestmark = pytest.mark.host


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, {})
    yield shell
    shell.close()


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


def test_files_are_written_and_the_shell_remembers(tmp_path: Path, shell: Shell) -> None:
    text = """
```{code-block} c
:caption: sub/one.c

int x;
```

```console
$ cd sub && WORD=kept
$ cat one.c; echo $WORD
int x;
kept
```
"""
    assert follow(page(tmp_path, text), shell, tmp_path) == 2


def test_other_output_than_the_page_says_is_an_error(tmp_path: Path, shell: Shell) -> None:
    with pytest.raises(AssertionError, match=r"expected:\ntwo"):
        follow(page(tmp_path, "```console\n$ echo one\ntwo\n```\n"), shell, tmp_path)


def test_a_command_that_fails_is_an_error(tmp_path: Path, shell: Shell) -> None:
    with pytest.raises(AssertionError, match="exit code 3"):
        follow(page(tmp_path, "```console\n$ (exit 3)\n```\n"), shell, tmp_path)


@pytest.mark.parametrize(
    ("expected", "output", "fits"),
    [
        (["..."], "any\nthing\n", True),
        (["...", "last"], "a\nb\nlast\n", True),
        (["...", "last"], "a\nlast\nafter\n", False),
        (["a...c"], "abc\n", True),
        (["a...c"], "a\nc\n", False),
        (["a  b"], "a b\n", True),
        (["exact"], "exactly\n", False),
    ],
)
def test_dots_stand_for_what_differs(expected: list[str], output: str, fits: bool) -> None:
    assert bool(pattern(expected).fullmatch(output)) is fits
