"""Text that is safe to print, and values that fit into JSON."""

from __future__ import annotations

import math
import os
import unicodedata
from typing import Any

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories that a terminal may obey or cannot show


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape every character that a terminal may obey (``\x1b``, ``\u202e``), except those in `keep`.

    These are control characters, format characters such as those that change the writing direction, line and paragraph
    separators, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _OBEYED and each not in keep else each
        for each in text
    )


def shown_path(path: str | bytes | os.PathLike[str]) -> str:
    r"""Return a local path as text, independent of the locale; bytes that are not UTF-8 appear as ``\xe9``."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def jsonable(value: Any) -> Any:
    """Convert numpy scalars and paths to JSON types; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
