"""Standard streams that are closed, full, deserted or not UTF-8, and names that a terminal would obey."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from programs import DEADLINE, content
from subprocesses import environment, run

# What is done to the streams, as a shell says it.
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>&-"]
UNWRITABLE = {
    "full": "2>/dev/full",
    "read only": "2</dev/null",
    "without a reader": "2> >(exec true); sleep 0.1",
    "a pipe that is full and does not block": "2>&{full}",
}


def command(streams: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `aiflow …` by a shell that has done this to its streams."""
    script = f'exec {streams}; exec "$@"'
    return subprocess.Popen(
        ["bash", "-c", script, "bash", sys.executable, "-m", "aiflow", *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.DEVNULL),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        **options,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (tmp_path / "source" / name).write_bytes(name.encode() * 1000)
    return tmp_path / "source"


# ---- closed ----


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--version",), 0),
        (("--help",), 0),
        (("send", "--help"), 0),
        (("ports",), 0),
        (("ports", "--json"), 0),
        (("recv", "/nowhere/out", "-p", "local:x"), 2),
        (("recv", "/tmp", "-p", "nonsense:x", "--json"), 2),
        (("nosuchcommand",), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_ends_as_ever_with_its_streams_closed(streams: str, arguments: tuple[str, ...], code: int) -> None:
    process = command(streams, *arguments)
    _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("streams", CLOSED)
def test_no_file_gets_the_number_of_a_closed_stream(streams: str, tmp_path: Path) -> None:
    """Nor do processes that we start find them closed."""
    script = """
        import os, subprocess, sys
        from aiflow.cli import streams
        streams.provide()
        with open(sys.argv[1], "w") as out:
            print(out.fileno(), *(os.path.realpath(f"/proc/self/fd/{n}") for n in range(3)), file=out, flush=True)
            subprocess.run(["ls", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"], check=True)
            for stream in sys.stdout, sys.stderr:
                print("some text \\u2603", file=stream, flush=True)
    """
    import textwrap

    out = tmp_path / "out"
    subprocess.run(
        ["bash", "-c", f'"$@" {streams}', "bash", sys.executable, "-c", textwrap.dedent(script), str(out)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    number, *places = out.read_text().split()
    assert int(number) == 3  # nor is anything else opened in their place
    closed = [n for n, sign in enumerate(("<&-", " >&-", "2>&-")) if sign in f" {streams}"]
    assert [places[n] for n in closed] == ["/dev/null"] * len(closed)


@pytest.mark.parametrize("streams", [*CLOSED[-2:], *UNWRITABLE.values()], ids=[*CLOSED[-2:], *UNWRITABLE])
def test_files_arrive_and_both_ends_say_so_whatever_their_streams_are(
    streams: str, endpoint: str, source: Path, tmp_path: Path
) -> None:
    full, unread = os.pipe()
    os.set_blocking(unread, False)
    try:
        while True:
            os.write(unread, bytes(4096))
    except BlockingIOError:
        pass
    streams = streams.format(full=unread)
    out = tmp_path / "out"
    recv = command(streams, "recv", out, "-p", endpoint, "--timeout", 60, pass_fds=[unread])
    send = command(streams, "send", source, "-p", endpoint, "--timeout", 60, pass_fds=[unread])
    try:
        assert (send.wait(DEADLINE), recv.wait(DEADLINE)) == (0, 0), f"{send.stderr.read()} {recv.stderr.read()}"
    finally:
        for process in (send, recv):
            process.kill()
            process.communicate()
        os.close(full)
        os.close(unread)
    assert content(out) == content(source)


# ---- not UTF-8 ----

ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "cp1251"}, ASCII_LOCALE],
    ids=["cp1251", "C locale"],
)
def test_what_a_terminal_cannot_show_changes_no_exit_code(
    aiflow: Any, endpoint: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    source, out = tmp_path / "Süd", tmp_path / "Übung"
    source.mkdir()
    for name in ("é.txt", "日本"):
        (source / name).write_text(name, encoding="utf-8")
    (source / "ö").symlink_to("nowhere")
    recv = aiflow("recv", out, "-p", endpoint, "--timeout", 60, **variables)
    send = aiflow("send", source, "-p", endpoint, "--timeout", 60, "--name", "Küche", **variables)
    send.text(0)
    stdout, _ = recv.text(0)
    assert "wrote 2 files" in stdout
    assert content(out) == content(source)


def test_a_directory_called_like_rich_markup_is_only_a_name(aiflow: Any, endpoint: str, source: Path) -> None:
    out = source.parent / "[bold] :smile: [" / "red]"
    out.parent.mkdir()
    recv = aiflow("recv", out, "-p", endpoint, "--timeout", 60)
    aiflow("send", source, "-p", endpoint, "--timeout", 60).text(0)
    stdout, _ = recv.text(0)
    assert "[bold] :smile: [/red]" in stdout


# ---- what a terminal would obey ----

OBEYED = {
    "escape sequence": "\x1b[2K\x1b]0;owned\x07",
    "C1 control": "\x9b2K",
    "backspace": "\x08\x08\x08",
    "carriage return": "\rall is well",
    "delete": "\x7f",
    "bidi override": "\u202e",
    "bidi isolate": "\u2066",
    "zero width": "\u200b\ufeff",
    "tag characters": "\U000e0041",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "lone surrogate": "\udc9b",
    "form feed and vertical tab": "\x0c\x0b",
}


def obeyed(text: str) -> list[str]:
    """Characters that a terminal may obey, but for the newline of a line."""
    return [each for each in text if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.unit
@pytest.mark.parametrize("name", OBEYED.values(), ids=OBEYED)
def test_names_are_spelled_out_wherever_they_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from aiflow._terminal.outcome import Terminal
    from aiflow.cli.figures import print_table

    terminal = Terminal(as_json=False)
    terminal.say(f"aiflow: <{name}> is left out", style="red")
    terminal.tell(f"received <{name}>")
    print_table(terminal.console(), [{"name": f"<{name}>", "driver": f"<{name}>", "frames": 1, "nbytes": 1}])
    table = Table(title=f"<{name}>")
    table.add_column(f"<{name}>")
    table.add_row(f"<{name}>")
    terminal.console().print(table)
    terminal.console().print(f"<{name}>", markup=False)
    said, told = capsys.readouterr().err, capsys.readouterr().out
    assert obeyed(said + told) == []
    assert re.search(r"<(\\|all is well)", said), "shown as an escape"


@pytest.mark.unit
def test_a_line_in_a_name_is_no_line_of_ours() -> None:
    from aiflow._terminal.text import printable

    assert printable("a\naiflow: all is well") == "a\\naiflow: all is well"
    assert printable("Übung 日本 \u00a0☃") == "Übung 日本 \u00a0☃"


def test_no_name_from_the_wire_or_the_disk_reaches_a_terminal_raw(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    evil = "\x1b[2K\u202e\x9bx\naiflow: all is well"
    recv = aiflow("recv", tmp_path / "out", "-p", endpoint, "--timeout", 20)
    run(
        """
        import sys, aiflow
        from aiflow._transfer.filemarks import FileMark, Marked
        evil = sys.argv[2]
        unfinished = Marked(evil + "u", b"x", FileMark("part", 0o600, 0, 0, 100))
        lost = Marked(evil + "l", b"x", FileMark("part", 0o600, 0, 50, 100))
        with aiflow.Sender(sys.argv[1]) as tx:
            try:
                tx.send([("../" + evil, b"x"), unfinished, lost], timeout=20)
            except aiflow.DeliveryError as error:
                assert list(error.failed) == [evil + "l"], error.failed
            else:
                raise AssertionError("all was written")
        """,
        endpoint,
        evil,
    )
    _, stderr = recv.text(1)
    assert "never arrived" in stderr
    assert "was written to" in stderr
    assert "arrived without those before it" in stderr
    source = tmp_path / "source"
    source.mkdir()
    (source / evil).symlink_to("nowhere")
    (source / os.fsdecode(b"\xff" + evil.encode())).write_bytes(b"x")
    for arguments in (("send", source, "-p", endpoint), ("send", source / evil, "-p", endpoint), ("send", evil, evil)):
        process = aiflow(*arguments)
        _, said = process.process.communicate(timeout=DEADLINE)
        stderr += said
    assert obeyed(stderr) == []
    assert not re.search("^aiflow: all is well", stderr, re.MULTILINE)
