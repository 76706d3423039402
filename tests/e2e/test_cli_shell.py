"""``bpfunit shell``: a person at a prompt in a guest, and a script that runs one command there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bpfunit._paths import cache_dir

sys.path.append(str(Path(__file__).parent))
from terminal import Terminal

pytestmark = pytest.mark.host

SHELL = [sys.executable, "-m", "bpfunit.cli", "shell", "--kernel", "6.12"]
BOOT_S = 180
ANSWER_S = 30  # for a command that takes no time, on a machine with much else to do
PROMPT = r"\(6\.12[^)]*\).*# "


def environment(directory: Path) -> dict[str, str]:
    """Return variables that make a shell the same on every machine, its files in a directory."""
    return {
        **os.environ,
        "SHELL": "/bin/bash",
        "HOME": str(directory),
        "BPFUNIT_CACHE": str(cache_dir()),
        "TMPDIR": str(directory),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
    }


def open_terminal(directory: Path, *command: str) -> Terminal:
    (directory / ".bashrc").write_text("PS1='${debian_chroot:+($debian_chroot)}here# '\n")
    return Terminal([*SHELL, *command], environment(directory), lines=33, columns=111)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shell")


@pytest.fixture(scope="module")
def prompt(directory: Path) -> Iterator[Terminal]:
    """A terminal with a prompt in it."""
    terminal = open_terminal(directory)
    terminal.read_until(PROMPT, BOOT_S)
    yield terminal
    terminal.close()


def answer(prompt: Terminal, keys: str, wait: float = ANSWER_S) -> str:
    """Type a line and return what is shown up to the next prompt, the echo left out."""
    prompt.type(keys + "\r")
    return prompt.read_until(PROMPT, wait).partition("\n")[2].rpartition("\n")[0]


def running(terminal: Terminal) -> list[psutil.Process]:
    return psutil.Process(terminal.process.pid).children(recursive=True)


def assert_nothing_is_left(processes: list[psutil.Process], directory: Path) -> None:
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert list(directory.glob("bpfunit-*")) == []


def test_a_command_at_the_prompt_runs_in_the_guest(prompt: Terminal) -> None:
    assert answer(prompt, "uname -n; cat /proc/sys/kernel/osrelease").startswith("bpfunit\n6.12.")
    assert answer(prompt, "grep -c ^bpfunit_testrun /proc/modules; id -u") == "1\n0"


def start_sleeping(prompt: Terminal) -> None:
    """Start a command of its own that says when it runs: keys before that would be the shell's."""
    prompt.type("sh -c 'echo begin; exec sleep 1000'\r")
    prompt.read_until("\nbegin\n", ANSWER_S)


def test_ctrl_c_ends_the_command_and_not_the_shell(prompt: Terminal) -> None:
    start_sleeping(prompt)
    prompt.type("\x03")
    prompt.read_until(PROMPT, ANSWER_S)
    assert answer(prompt, "echo $?") == "130"


def test_ctrl_z_and_jobs_work_as_in_any_terminal(prompt: Terminal) -> None:
    start_sleeping(prompt)
    prompt.type("\x1a")
    prompt.read_until(PROMPT, ANSWER_S)
    assert "Stopped" in answer(prompt, "jobs")
    assert "Stopped" not in answer(prompt, "kill -CONT %1; kill %1; wait; jobs")


def test_a_reader_that_goes_away_ends_its_writer_in_silence(prompt: Terminal) -> None:
    """Python ignores SIGPIPE, and its children would inherit that."""
    assert answer(prompt, "yes | head -n 1; echo ${PIPESTATUS[0]}") == "y\n141"


def test_lines_are_edited_and_remembered(prompt: Terminal) -> None:
    left, up, backspace = "\x1b[D", "\x1b[A", "\x7f"
    assert answer(prompt, f"echo ac{left}bx{backspace}").endswith("abc")
    assert answer(prompt, f"{up}d").endswith("abcd")


def test_the_terminal_has_the_size_of_ours_also_when_that_changes(prompt: Terminal) -> None:
    assert answer(prompt, "stty size") == "33 111"
    # At its prompt, the shell would draw that again.
    prompt.type("echo begin; until [ \"$(stty size)\" = '44 122' ]; do sleep 0.1; done\r")
    prompt.read_until("\nbegin\n", ANSWER_S)
    prompt.resize(44, 122)
    prompt.read_until(PROMPT, ANSWER_S)
    assert answer(prompt, "echo $TERM") == "xterm"


def test_much_output_arrives_whole(prompt: Terminal) -> None:
    lines = answer(prompt, "seq 20000", 120).splitlines()
    assert lines == [str(number) for number in range(1, 20001)]


def test_exit_ends_the_guest_with_the_shells_code(prompt: Terminal, directory: Path) -> None:
    processes = running(prompt)
    assert any("qemu" in process.name() for process in processes)
    prompt.type("exit 7\r")
    assert prompt.process.wait(ANSWER_S) == 7
    assert prompt.echoes
    assert_nothing_is_left(processes, directory)


def test_a_panic_at_the_prompt_is_told_and_leaves_the_terminal_usable(tmp_path: Path) -> None:
    terminal = open_terminal(tmp_path)
    try:
        terminal.read_until(PROMPT, BOOT_S)
        processes = running(terminal)
        terminal.type("echo c >/proc/sysrq-trigger\r")
        terminal.read_until("its last words:", ANSWER_S)
        terminal.read_until("sysrq triggered crash", ANSWER_S)
        assert terminal.process.wait(ANSWER_S) == 3
        assert terminal.echoes
        assert_nothing_is_left(processes, tmp_path)
    finally:
        terminal.close()


def test_ctrl_c_while_the_guest_boots_ends_it(tmp_path: Path) -> None:
    terminal = open_terminal(tmp_path)
    try:
        terminal.read_until("booting", BOOT_S)
        while not any("qemu" in process.name() for process in running(terminal)):
            assert terminal.process.poll() is None
        processes = running(terminal)
        terminal.type("\x03")
        assert terminal.process.wait(ANSWER_S) == 130
        assert_nothing_is_left(processes, tmp_path)
    finally:
        terminal.close()


def test_a_command_has_our_streams_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    script = "cat; uname -n; echo trouble >&2; exit 5"
    done = subprocess.run(
        [*SHELL, "--", "sh", "-c", script],
        env=environment(tmp_path),
        input=b"from\0here\n",
        capture_output=True,
        timeout=BOOT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b"from\0here\nbpfunit\n")
    assert done.stderr.endswith(b"trouble\n")
    assert list(tmp_path.glob("bpfunit-*")) == []


def test_a_command_runs_with_our_input_closed_and_nobody_who_reads_on(tmp_path: Path) -> None:
    command = shlex.join([*SHELL, "--", "sh", "-c", "cat; seq 100000"])
    script = f"{command} <&- | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=BOOT_S,
        check=False,
    )
    assert done.stdout == "1\n2\n141\n", done.stderr
    assert list(tmp_path.glob("bpfunit-*")) == []


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SHELL, "--", "no-such-command"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (127, "")
    assert "bpfunit: run no-such-command: no such file or directory" in done.stderr


def test_without_a_terminal_a_prompt_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        SHELL,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "give a command after --" in " ".join(done.stderr.replace("│", " ").split())
