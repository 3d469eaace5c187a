"""The result of a command: a JSON document or a text for people, and the matching exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import click

from aiflow._terminal.interrupts import interrupts_repeated
from aiflow._terminal.text import jsonable, printable
from aiflow.errors import AiflowError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

DELIVERED, NOT_DELIVERED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

_SAMPLE_SECONDS = 0.1


def no_color() -> bool:
    """Return whether the user wants no colours and bars (https://no-color.org)."""
    return os.environ.get("NO_COLOR", "") != ""


def version() -> str:
    """Return the version of the library."""
    import aiflow

    return aiflow.__version__


def _advice_on(error: ImportError) -> ImportError | None:
    """Return the error with advice, if the loader cannot find DPDK, else None."""
    if "librte_" not in str(error) and "libaiflow_dpdk" not in str(error):
        return None
    return ImportError(
        f"{error}: the DPDK that aiflow {version()} in {sys.modules['aiflow'].__path__[0]} was built with is missing. "
        "Let the loader find it (ldconfig or LD_LIBRARY_PATH), or install aiflow again (docs/install.md)"
    )


class CommandError(Exception):
    """A command cannot continue. The message says what failed and what the user can do."""


class Outcome:
    """The result of a running command.

    Attributes
    ----------
    terminal : Terminal
    document : dict
        Printed by ``--json``. Commands add their own keys.
    exit_code : int
    """

    def __init__(self, terminal: Terminal, command: str) -> None:
        self.terminal = terminal
        self.document: dict[str, Any] = {"command": command, "version": version(), "exit_code": 0, "error": None}
        self.exit_code = DELIVERED

    def fail(self, error: BaseException | str, exit_code: int = NOT_DELIVERED) -> None:
        """Record the reason why the command did not succeed completely; notes of an exception belong to it."""
        self.exit_code = exit_code
        message = ". ".join([str(error), *getattr(error, "__notes__", ())])
        self.document["error"] = {
            "type": type(error).__name__ if isinstance(error, BaseException) else None,
            "message": message,
        }
        if isinstance(error, AiflowError):
            self.document["error"]["delivered"] = error.delivered
        self.terminal.say(f"aiflow: {message}", style="bold red")


class Terminal:
    """Output of commands: JSON or text on stdout, progress and errors on stderr.

    Parameters
    ----------
    as_json : bool
        Print only one JSON document on stdout, and no progress.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._consoles: dict[bool, Console] = {}
        self._stdout_is_left = False

    def leave_stdout(self) -> None:
        """Print the result to stderr from now on: stdout carries something else."""
        self._stdout_is_left = True

    def console(self, *, stderr: bool = False) -> Console:
        """Return the console for stdout or stderr. Without a terminal, or with NO_COLOR, it prints plain text."""
        stderr = stderr or self._stdout_is_left
        if stderr not in self._consoles:
            from aiflow._terminal.console import SafeConsole

            color_system: Literal["auto"] | None = None if no_color() else "auto"
            self._consoles[stderr] = SafeConsole(
                stderr=stderr, highlight=False, soft_wrap=True, color_system=color_system
            )
        return self._consoles[stderr]

    def say(self, text: str, style: str = "") -> None:
        """Print a line to stderr. Control and format characters are escaped."""
        self._print(text, style, stderr=True)

    def tell(self, text: str, style: str = "") -> None:
        """Print a line of the result to stdout. Control and format characters are escaped."""
        self._print(text, style, stderr=False)

    def _print(self, text: str, style: str, *, stderr: bool) -> None:
        from rich.text import Text

        # A Text, because rich parses markup and emoji names in a str. Escaped here: Text drops carriage returns.
        self.console(stderr=stderr).print(Text(printable(text, keep="\n"), style=style))

    @contextlib.contextmanager
    def outcome(self, command: str) -> Iterator[Outcome]:
        """Run the body of a command. Always exit with its exit code and, with ``--json``, print its document."""
        outcome = Outcome(self, command)
        with _end_as_interrupt():
            try:
                yield outcome
            except KeyboardInterrupt as error:
                outcome.fail(". ".join(["interrupted", *getattr(error, "__notes__", ())]), INTERRUPTED)
            except (ConfigError, click.UsageError) as error:
                outcome.fail(error, BAD_USAGE)
            except click.ClickException as error:
                outcome.fail(error, error.exit_code)
            except (AiflowError, CommandError, OSError) as error:
                outcome.fail(error)
            except Exception as error:
                advised = _advice_on(error) if isinstance(error, ImportError) else None
                if advised is None:
                    self.say(traceback.format_exc().rstrip())
                outcome.fail(advised or error)
        outcome.document["exit_code"] = outcome.exit_code
        if self.as_json:
            self._write(outcome.document)
        raise click.exceptions.Exit(outcome.exit_code)

    def refuse(self, message: str, exit_code: int) -> None:
        """Print the document of a command line that could not be parsed."""
        error = {"type": "UsageError", "message": message}
        self._write({"command": None, "version": version(), "exit_code": exit_code, "error": error})

    @staticmethod
    def _write(document: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(jsonable(document), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def bar(self, text: str, total: int | None, *, in_bytes: bool = True) -> Iterator[Bar]:
        """Show a progress bar on stderr while the body runs, if stderr is a terminal that can redraw a line."""
        if self.as_json or no_color() or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty():
            yield Bar(None, None)
            return
        from rich import progress as rich

        measures = [rich.DownloadColumn(), rich.TransferSpeedColumn()] if in_bytes else [rich.MofNCompleteColumn()]
        columns = rich.TextColumn("{task.description}"), rich.BarColumn(None), *measures, rich.TimeElapsedColumn()
        with rich.Progress(*columns, console=self.console(stderr=True), expand=True) as progress:
            bar = Bar(progress, progress.add_task(text, total=total))
            try:
                yield bar
            finally:
                bar.stop()


class Bar:
    """A progress bar; it shows nothing with ``--json``, and without a terminal."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task
        self._stopping = threading.Event()
        self._sampler: threading.Thread | None = None

    def show(self, done: float, total: float | None = None) -> None:
        """Move the bar to `done` of `total`."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def follow(self, sample: Callable[[], float]) -> None:
        """Move the bar ten times a second to the value that `sample` returns, from a separate thread."""
        if self._progress is not None:
            self._sampler = threading.Thread(target=self._run, args=(sample,), name="aiflow-progress", daemon=True)
            self._sampler.start()

    def stop(self) -> None:
        """Stop calling `sample`. Afterwards the caller may close the objects that `sample` reads."""
        self._stopping.set()
        if self._sampler is not None:
            with contextlib.suppress(RuntimeError):  # interrupted during start: the thread ends before its first sample
                self._sampler.join()

    def _run(self, sample: Callable[[], float]) -> None:
        while not self._stopping.wait(_SAMPLE_SECONDS):
            self.show(sample())


@contextlib.contextmanager
def _end_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C: files are removed, ports closed, namespaces deleted.

    A closing terminal sends SIGHUP twice, a service manager SIGTERM and SIGHUP. Only the first signal counts, so that
    the cleanup is not interrupted. A SIGHUP that ``nohup`` ignores stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ending = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def interrupt(_signal: int, _frame: object) -> None:
        for number in ending:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ending:
        signal.signal(number, interrupt)
    try:
        with interrupts_repeated():
            yield
    finally:
        for number in ending:
            signal.signal(number, before[number])
