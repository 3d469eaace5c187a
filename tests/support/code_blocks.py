"""Code blocks of Markdown pages: what they are, how they are run, and how what they print is compared.

A comment directly above a block says what is special about it:

``<!-- not run: REASON -->``            it needs what tests do not have
``<!-- run by FILE -->``                that test or script runs it
``<!-- beside the next -->``            it runs while the next block does, as in a second terminal
``<!-- output differs -->``             it is run, and prints what depends on the machine
``<!-- first``, lines of code, ``-->``  are run before it, in the same program

A ``text`` block below a block is what it prints. Times and counts of frames may differ; ``…`` stands for anything.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from subprocesses import environment

RUN = {"python": [sys.executable, "-W", "error::DeprecationWarning"], "sh": ["sh", "-e"]}
READ = ("yaml", "ini")
SHOWN = ("text", "")
"""Output, and drawings."""

MARKS = ("not run", "run by", "beside the next", "output differs")
DEADLINE_S = 120

FENCE = re.compile(
    r"(?P<comments>(?:^<!--(?:(?!-->)[\s\S])*-->\n)*)^```(?P<language>\w*)\n(?P<code>[\s\S]*?)^```$", re.M
)


@dataclass
class Block:
    """One block of a page."""

    line: int
    language: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)  # mark → what it says
    first: str = ""
    output: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether a test of pages is to run it."""
        return self.language in RUN and "not run" not in self.marks and "run by" not in self.marks


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, in order; output is part of the block that prints it."""
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        between, end_before = text[end : match.start()], end
        end = match.end()
        block = Block(text[: match.start("code")].count("\n"), match["language"], match["code"])
        for comment in re.findall(r"<!--\s*(.*?)\s*-->", match["comments"], re.S):
            if comment.startswith("first\n"):
                block.first += comment.removeprefix("first\n") + "\n"
            else:
                name = next((mark for mark in MARKS if comment.startswith(mark)), comment)
                block.marks[name] = comment.removeprefix(name).lstrip(": ")
        follows = end_before > 0 and not between.strip() and found and found[-1].language in RUN
        if block.language == "text" and follows and found[-1].output is None:
            found[-1].output = block.code
        else:
            found.append(block)
    return found


def complaints(block: Block, root: Path) -> Iterator[str]:
    """What is wrong with a block before it is run."""
    unknown = [mark for mark in block.marks if mark not in MARKS]
    if unknown:
        yield f"line {block.line}: unknown mark {unknown[0]!r}: use {', '.join(MARKS)} or first"
    if block.language not in (*RUN, *READ, *SHOWN):
        yield f"line {block.line}: blocks of {block.language!r} are neither run nor read: see RUN and READ"
    if "not run" in block.marks and len(block.marks["not run"]) < 8:
        yield f"line {block.line}: say why it is not run"
    if "run by" in block.marks and not (root / block.marks["run by"].split()[0]).is_file():
        yield f"line {block.line}: {block.marks['run by']} is no file"
    if block.language == "yaml":
        list(yaml.safe_load_all(block.code))
    if block.language == "ini":
        reader = configparser.ConfigParser(strict=False, interpolation=None)
        reader.optionxform = str  # type: ignore[assignment, method-assign]
        reader.read_string(block.code)
    if block.language == "python":
        compile(block.first + block.code, f"line {block.line}", "exec")


def as_pattern(output: str) -> str:
    """What a program prints: times, rates, and counts of frames with their bytes differ from run to run."""
    pattern = re.escape(output)
    pattern = re.sub(r"\d+\\\.\d+(?=\\ (?:ms|s|Gbit|Mbit))", r"\\d+\\.\\d+", pattern)
    pattern = re.sub(r"\d+(\\ frames,\\ )[\d,]+(\\ bytes)", r"\\d+\1[\\d,]+\2", pattern)
    pattern = re.sub(r"\d+(\\ (?:frames|retransmitted))", r"\\d+\1", pattern)
    # where the sender had to wait for its receiver, it says so
    pattern = pattern.replace(r"\ ms\ =", r"\ ms(?:\ after\ \d+\.\d+\ s\ of\ connecting)?\ =")
    return pattern.replace("…", r"[\s\S]*?")


class Failed(AssertionError):
    """A block that did not do what its page says."""


class Shell:
    """Where the blocks of one page run: a home directory of its own, with `aiflow` and `python` in the path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "home"
        self.directory.mkdir()
        self._runtime = tempfile.mkdtemp(prefix="aiflow-", dir="/tmp")  # a short path: it holds sockets
        (bin_ := directory / "bin").mkdir()
        python = shlex.quote(sys.executable)
        for name, command in (("aiflow", f"{python} -m aiflow"), ("python", python), ("python3", python)):
            (bin_ / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (bin_ / name).chmod(0o755)
        self._environment = environment(
            PATH=f"{bin_}:/usr/bin:/bin", HOME=str(self.directory), AIFLOW_RUNTIME_DIR=self._runtime, MPLBACKEND="agg"
        )
        self._beside: list[tuple[Block, subprocess.Popen[str]]] = []

    def run(self, blocks: list[Block]) -> None:
        """Run those that are to be run, in order. Raises Failed, or subprocess.TimeoutExpired."""
        for block in blocks:
            if not block.is_run:
                continue
            started = self._start(block)
            if "beside the next" in block.marks:
                self._beside.append((block, started))
                continue
            self._finish(block, started)
            while self._beside:
                self._finish(*self._beside.pop())
        if self._beside:
            raise Failed(f"line {self._beside[0][0].line}: no block is next to it")

    def _start(self, block: Block) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*RUN[block.language], "-c", block.first + block.code],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _finish(block: Block, started: subprocess.Popen[str]) -> None:
        stdout, stderr = started.communicate(timeout=DEADLINE_S)
        if started.returncode != 0:
            raise Failed(f"line {block.line}: exit code {started.returncode}\n{stdout}{stderr}")
        if block.language == "python" and stderr:
            raise Failed(f"line {block.line}: it complains:\n{stderr}")
        if "output differs" in block.marks:
            return
        if block.output is None and stdout:
            raise Failed(f"line {block.line}: the page does not show that it prints\n{stdout}")
        if block.output is not None and not re.fullmatch(as_pattern(block.output), stdout):
            raise Failed(f"line {block.line}: the page shows\n{block.output}and it prints\n{stdout}")

    def end(self) -> None:
        """End what still runs."""
        for _, started in self._beside:
            if started.poll() is None:
                started.kill()
            started.communicate()
        shutil.rmtree(self._runtime, ignore_errors=True)
