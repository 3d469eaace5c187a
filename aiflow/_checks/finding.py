"""A finding of a check: its state, what was found, and the command that turns it to ok."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BETTER", "BROKEN", "OK", "Finding", "better", "broken", "ok"]

OK, BETTER, BROKEN = "ok", "could be better", "broken"


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes
    ----------
    state : str
        `OK`, `BETTER` or `BROKEN`. Broken: something that was set up, or that every run needs, cannot work.
    text : str
        What was found, and what it means.
    command : str
        A command for a shell that turns the state to ok; "" if there is none. If the state is ok, it tells more.
    as_root : bool
        Whether the command needs root.
    fix : callable or None
        Does the same safely in this process, for ``--fix``. Returns what it has done, in words.
    """

    state: str
    text: str
    command: str = ""
    as_root: bool = False
    fix: Callable[[], str] | None = None


def ok(text: str, command: str = "") -> Finding:
    """Nothing to do."""
    return Finding(OK, text, command)


def better(text: str, command: str = "", *, as_root: bool = False, fix: Callable[[], str] | None = None) -> Finding:
    """It works, but slower or with fewer endpoints than it could."""
    return Finding(BETTER, text, command, as_root, fix)


def broken(text: str, command: str = "", *, as_root: bool = False, fix: Callable[[], str] | None = None) -> Finding:
    """It cannot work like this."""
    return Finding(BROKEN, text, command, as_root, fix)
