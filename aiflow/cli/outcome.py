"""What every command ends with: a JSON document or a text for people, and an exit code that says the same."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from aiflow.cli.outdir import WriteError
from aiflow.cli.safe_paths import printable
from aiflow.config import parse_size
from aiflow.errors import AiflowError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

DELIVERED, NOT_DELIVERED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

_SAMPLE_SECONDS = 0.1


def version() -> str:
    """Give the version of the library."""
    import aiflow

    return aiflow.__version__


def size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Read a number of bytes typed as an option: ``4096``, ``256MiB``, ``1GB``. One that is none is bad usage."""
    try:
        return parse_size(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def utf8(_context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Read names typed as an option as UTF-8, whatever the locale says that they are. One that is not is bad usage."""
    if isinstance(value, tuple):
        return tuple(utf8(_context, parameter, each) for each in value)
    try:
        return value and os.fsencode(value).decode()
    except UnicodeError as error:
        raise click.BadParameter(f"{value!r} is not UTF-8", param=parameter) from error


class Outcome:
    """A command's result while it comes about.

    Attributes
    ----------
    terminal : Terminal
    document : dict
        What ``--json`` prints; commands add their own keys.
    exit_code : int
    """

    def __init__(self, terminal: Terminal, command: str) -> None:
        self.terminal = terminal
        self.document: dict[str, Any] = {"command": command, "version": version(), "exit_code": 0, "error": None}
        self.exit_code = DELIVERED

    def fail(self, error: BaseException | str, exit_code: int = NOT_DELIVERED) -> None:
        """Note why the command did not do all it should."""
        self.exit_code = exit_code
        self.document["error"] = {
            "type": type(error).__name__ if isinstance(error, BaseException) else None,
            "message": str(error),
        }
        if isinstance(error, AiflowError):
            self.document["error"]["delivered"] = error.delivered
        self.terminal.say(f"aiflow: {error}", style="bold red")


class Terminal:
    """Where commands speak: JSON on stdout, or text there; progress and complaints on stderr.

    Parameters
    ----------
    as_json : bool
        Nothing but one JSON document on stdout, and no progress.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._consoles: dict[bool, Console] = {}

    def console(self, *, stderr: bool = False) -> Console:
        """Give rich's console for stdout or stderr."""
        if stderr not in self._consoles:
            from aiflow.cli.console import SafeConsole

            self._consoles[stderr] = SafeConsole(stderr=stderr, highlight=False, soft_wrap=True)
        return self._consoles[stderr]

    def say(self, text: str, style: str = "") -> None:
        """Print a line to stderr; control and format characters are spelled out."""
        self._print(text, style, stderr=True)

    def tell(self, text: str, style: str = "") -> None:
        """Print a line of the result to stdout, in the same way."""
        self._print(text, style, stderr=False)

    def _print(self, text: str, style: str, *, stderr: bool) -> None:
        from rich.text import Text

        # A Text, since rich reads markup and emoji names in a str; spelled here, since a Text drops a carriage return.
        self.console(stderr=stderr).print(Text(printable(text, keep="\n"), style=style))

    @contextlib.contextmanager
    def outcome(self, command: str) -> Iterator[Outcome]:
        """Run a command's body; end with its exit code and, if asked, its document, whatever happens."""
        outcome = Outcome(self, command)
        with _end_as_interrupt():
            try:
                yield outcome
            except KeyboardInterrupt:
                outcome.fail("interrupted", INTERRUPTED)
            except (ConfigError, click.UsageError) as error:
                outcome.fail(error, BAD_USAGE)
            except click.ClickException as error:
                outcome.fail(error, error.exit_code)
            except (AiflowError, WriteError, OSError) as error:
                outcome.fail(error)
            except Exception as error:
                self.say(traceback.format_exc().rstrip())
                outcome.fail(error)
        outcome.document["exit_code"] = outcome.exit_code
        if self.as_json:
            self._write(outcome.document)
        raise click.exceptions.Exit(outcome.exit_code)

    def refuse(self, message: str, exit_code: int) -> None:
        """Print the document of a command line that could not be understood."""
        error = {"type": "UsageError", "message": message}
        self._write({"command": None, "version": version(), "exit_code": exit_code, "error": error})

    @staticmethod
    def _write(document: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(jsonable(document), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def bar(self, text: str, total: int | None, *, in_bytes: bool = True) -> Iterator[Bar]:
        """Show a progress bar on stderr while the body runs."""
        if self.as_json:
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
    """A progress bar, or nothing at all with ``--json``."""

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
        """Move the bar ten times a second to what `sample` returns, from a thread of the bar's own."""
        if self._progress is not None:
            self._sampler = threading.Thread(target=self._run, args=(sample,), name="aiflow-progress", daemon=True)
            self._sampler.start()

    def stop(self) -> None:
        """End the following. What `sample` reads may be closed afterwards."""
        self._stopping.set()
        if self._sampler is not None:
            with contextlib.suppress(RuntimeError):  # an interrupt came while it began: it ends before it samples
                self._sampler.join()

    def _run(self, sample: Callable[[], float]) -> None:
        while not self._stopping.wait(_SAMPLE_SECONDS):
            self.show(sample())


def jsonable(value: Any) -> Any:
    """Turn numpy scalars, paths and numbers that JSON lacks into what it has; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@contextlib.contextmanager
def _end_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: files removed, ports closed, namespaces deleted.

    A closing terminal sends SIGHUP twice, a service manager SIGTERM and SIGHUP: only the first of them counts, so that
    the end is not interrupted. ``nohup`` ignores SIGHUP, and it stays ignored.
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
        yield
    finally:
        for number in ending:
            signal.signal(number, before[number])
