"""`--help` with examples, completion in the shells that are here, and terminals without colours."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from programs import DEADLINE
from subprocesses import environment

from aiflow._terminal.examples import EXAMPLES
from aiflow.cli.app import app, run

EXECUTABLES = Path(sys.executable).parent


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*words, name))


def invocation(line: str) -> list[str]:
    """The arguments of `aiflow` in a line of shell."""
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
    (part,) = (part for part in re.split(r"[|>]", line) if re.match(r"\s*(sudo )?aiflow ", f"{part} "))
    words = shlex.split(part)
    return words[words.index("aiflow") + 1 :]


# ---- examples ----


@pytest.mark.unit
@pytest.mark.parametrize("words", list(commands(app)), ids=" ".join)
def test_the_help_of_every_command_ends_with_examples(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    _, found, examples = capsys.readouterr().out.partition("\nExamples:\n")
    assert found
    for line, meaning in EXAMPLES[" ".join(words)]:
        assert f"  {line}\n" in examples, "not wrapped: it can be copied"
        assert meaning in examples


@pytest.mark.unit
def test_examples_belong_to_commands() -> None:
    assert set(EXAMPLES) == {" ".join(words) for words in commands(app)}


@pytest.mark.unit
@pytest.mark.parametrize("line", [line for rows in EXAMPLES.values() for line, _ in rows])
def test_an_example_can_be_parsed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    words = invocation(line)
    command: Any = app
    context = None
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command, parent=context, info_name=words[0])
        command, words = command.get_command(context, words[0]), words[1:]
    command.make_context("aiflow", words, parent=context)  # a usage error is raised


# ---- completion ----


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_AIFLOW_COMPLETE" in capsys.readouterr().out


def test_completion_for_another_shell_is_bad_usage() -> None:
    assert run(["completion", "tcsh"]) == 2


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(aiflow completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(aiflow completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "aiflow completion fish | source"),
}


@contextlib.contextmanager
def terminal(command: list[str], **variables: str) -> Iterator[int]:
    """A process on a terminal of its own; gives the terminal's other end."""
    pid, fd = pty.fork()
    if pid == 0:
        try:
            for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
                os.environ.pop(name, None)
            os.environ.update(variables)
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    try:
        yield fd
    finally:
        os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def read_until(fd: int, wanted: str, seconds: float = 60) -> str:
    """What a terminal shows, up to `wanted`."""
    text, deadline = "", time.monotonic() + seconds
    while wanted not in text:
        assert time.monotonic() < deadline, text
        if select.select([fd], [], [], 0.5)[0]:
            text += os.read(fd, 65536).decode(errors="replace")
    return text


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("aiflow compl", "aiflow completion"),
        ("aiflow ports un", "aiflow ports unbind"),
        ("aiflow send --resu", "--resume"),
    ],
)
def test_a_shell_completes(shell: str, typed: str, completed: str, tmp_path: Path) -> None:
    command, setup = SHELLS[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {shell} here")
    with shell_with_completion(command, setup, tmp_path) as fd:
        os.write(fd, typed.encode() + b"\t")
        read_until(fd, completed)


@contextlib.contextmanager
def shell_with_completion(command: list[str], setup: str, home: Path) -> Iterator[int]:
    path = f"{EXECUTABLES}:{os.environ['PATH']}"
    with terminal(command, PATH=path, TERM="dumb", HOME=str(home), PS1="> ") as fd:
        os.write(fd, f"{setup}; echo re''ady\n".encode())
        read_until(fd, "ready")
        yield fd


@pytest.mark.parametrize("shell", [*SHELLS, "bash without colons"])
def test_a_shell_completes_the_name_of_a_receiver(shell: str, endpoint: str, aiflow: Any, tmp_path: Path) -> None:
    command, setup = SHELLS[shell.partition(" ")[0]]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {shell} here")
    if shell == "bash without colons":
        setup += "; COMP_WORDBREAKS=' '"
    aiflow("recv", tmp_path / "out", "-p", endpoint).says("receiving on")
    with shell_with_completion(command, setup, tmp_path) as fd:
        os.write(fd, f"aiflow send . -p {endpoint[:-1]}\t".encode())
        read_until(fd, f"{endpoint} ")


@pytest.mark.parametrize(
    ("line", "breaks", "expected"),
    [
        ("aiflow recv out -p local:compl", ":=", "complete-me"),
        ("aiflow recv out -p local:compl", "=", "local:complete-me"),
        ("aiflow recv out --ports=local:compl", ":=", "complete-me"),
        ("aiflow recv out --ports=local:compl", "=", "local:complete-me"),
        ("aiflow recv out --ports=local:compl", ":", "complete-me"),
        ("aiflow recv out --ports=local:compl", " ", "--ports=local:complete-me"),
        ("aiflow send --ports mem", ":=", "memif:"),
        ("aiflow send --ports=mem", ":=", "memif:"),
        ("aiflow lab run fi", ":=", "fig6"),
    ],
)
def test_bash_completes_words_with_colons(
    line: str, breaks: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bash asks: it keeps what stands before the last colon or equals sign, if COMP_WORDBREAKS has it."""
    from aiflow.cli import completion

    monkeypatch.setattr(completion, "_names", lambda: {"local:complete-me": "receiver"})
    monkeypatch.setenv("_AIFLOW_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_WORDBREAKS", breaks)
    with pytest.raises(SystemExit):
        run([])
    assert expected in [row.partition(",")[2] for row in capsys.readouterr().out.splitlines()]


def test_zsh_gets_colons_that_end_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the version of click: zsh ends a value with a help at its first colon."""
    from aiflow.cli import completion

    monkeypatch.setattr(completion, "_names", lambda: {"local:complete-me": "receiver"})
    monkeypatch.setattr(completion.ZshComplete, "format_completion", lambda *_: "that of click")
    monkeypatch.setenv("_AIFLOW_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "aiflow recv out -p local:c")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        run([])
    assert capsys.readouterr().out == "plain\nlocal\\:complete-me\nreceiver\n"


# ---- colours and bars ----


def shown(arguments: list[str], **variables: str) -> str:
    """What `aiflow …` writes to a terminal."""
    with terminal([sys.executable, "-m", "aiflow", *arguments], TERM="xterm-256color", **variables) as fd:
        text, deadline = "", time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                block = os.read(fd, 65536)
            except OSError:  # the process has ended
                break
            text += block.decode(errors="replace")
            if not block:
                break
        return text


ESCAPE = "\x1b"


def test_a_terminal_has_colours_and_with_no_color_it_has_none() -> None:
    assert ESCAPE in shown(["ports"])
    assert ESCAPE in shown(["ports"], NO_COLOR="")
    assert ESCAPE not in shown(["ports"], NO_COLOR="1")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["a terminal", "NO_COLOR"])
def test_a_bar_is_shown_on_a_terminal_only(endpoint: str, tmp_path: Path, variables: dict[str, str]) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(bytes(1 << 20))
    with subprocess.Popen(
        [sys.executable, "-m", "aiflow", "recv", tmp_path / "out", "-p", endpoint], env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as recv:  # fmt: skip
        try:
            text = shown(["send", str(tmp_path / "source"), "-p", endpoint], **variables)
            stdout, stderr = recv.communicate(timeout=DEADLINE)
        finally:
            recv.kill()
    assert "sent 1 file" in text
    assert (ESCAPE in text, "sending" in text) == ((not variables), (not variables))
    assert ESCAPE not in stdout + stderr
    assert "receiving ━" not in stderr


# ---- Ctrl-C ----


@pytest.mark.parametrize("moment", ["before the command", "at the end of the interpreter"])
def test_ctrl_c_shows_no_traceback(moment: str) -> None:
    early = """
        from aiflow.cli import main, streams
        def interrupted():
            raise KeyboardInterrupt
        streams.provide = interrupted
    """
    late = """
        import atexit, os, signal
        from aiflow.cli import main
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
    """
    script = textwrap.dedent(early if moment.startswith("before") else late) + "main()\n"
    ended = subprocess.run(
        [sys.executable, "-c", script, "--version"], env=environment(), capture_output=True, text=True, timeout=DEADLINE
    )
    if moment.startswith("before"):
        assert (ended.returncode, ended.stderr) == (130, "aiflow: interrupted\n")
    else:
        assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
