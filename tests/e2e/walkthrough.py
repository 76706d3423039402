"""Does what a page of the documentation says: writes its files, types its commands, compares.

A page is Markdown. A code block with ``:caption: PATH`` is a file to write. In a ``console`` block
a line that starts with ``$ `` is typed into one shell that lives as long as the page; the lines
under it are the output to expect, where ``...`` stands for anything, in a line or for whole lines.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(
    r"^```(?:\{code-block\} (?P<directive>\w+)|(?P<language>\w+))\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CAPTION = re.compile(r"\A:caption: (?P<path>\S+)\n\n", re.MULTILINE)
_END = "@@end of command@@"


@dataclass
class Command:
    """One typed line and what the page says that it prints."""

    line: str
    expected: list[str] = field(default_factory=list)


@dataclass
class File:
    """One file that the page has the reader write."""

    path: str
    text: str


def steps(markdown: str) -> Iterator[Command | File]:
    """Yield what the page has the reader do, in order."""
    for match in _FENCE.finditer(markdown):
        body = match["body"]
        if match["language"] == "console":
            yield from _commands(body)
        elif caption := _CAPTION.match(body):
            yield File(caption["path"], body[caption.end() :])


def _commands(body: str) -> Iterator[Command]:
    command: Command | None = None
    for line in body.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            command = Command(line[2:])
        elif command:
            command.expected.append(line)
    if command:
        yield command


def pattern(expected: list[str]) -> re.Pattern[str]:
    """Return the regular expression that the output of a command must match as a whole.

    A line of ``...`` stands for any number of lines; ``...`` in a line for anything in that line.
    """
    parts = []
    for line in expected:
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            pieces = [
                r"\s+".join(map(re.escape, re.split(" +", part))) for part in line.split("...")
            ]
            parts.append(".*".join(pieces) + r"[ \t]*\n")
    return re.compile("".join(parts) + r"\s*")


class Shell:
    """One bash that keeps its directory and environment between commands.

    Args:
        directory: where it starts.
        environment: variables beside this process's own.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, line: str) -> tuple[str, int]:
        """Run one line and return its output, both streams together, and its exit code."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{line} </dev/null\nprintf '\\n%s %d\\n' '{_END}' $?\n")
        self._bash.stdin.flush()
        output: list[str] = []
        for printed in self._bash.stdout:
            if printed.startswith(_END):
                return "".join(output).removesuffix("\n"), int(printed.split()[-1])
            output.append(printed)
        raise AssertionError(f"the shell ended in: {line}\n{''.join(output)}")

    def close(self) -> None:
        """End the shell."""
        self._bash.kill()
        self._bash.wait()
        for stream in (self._bash.stdin, self._bash.stdout):
            assert stream
            stream.close()


def follow(page: Path, shell: Shell, directory: Path) -> int:
    """Do what the page says; return the number of commands typed.

    Raises:
        AssertionError: a command failed, or printed something else than the page says.
    """
    typed = 0
    for step in steps(page.read_text(encoding="utf-8")):
        if isinstance(step, File):
            path = directory / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            continue
        output, code = shell.type(step.line)
        typed += 1
        said = f"{page.name}: $ {step.line}\n{output}"
        assert code == 0, f"{said}\nexit code {code}"
        if step.expected:
            wanted = "\n".join(step.expected)
            assert pattern(step.expected).fullmatch(output + "\n"), f"{said}\nexpected:\n{wanted}"
    return typed
