"""From the name of a stream to a path that is safe to create under a directory, and back.

Whatever a peer calls its streams, :func:`safe_path` gives a relative path without ``..``, without NUL, within the
lengths Linux allows. Names that a file can have come through unchanged.

A file too large for one slice travels in parts. A part's stream is called ``path//offset/total``; no walked path
contains ``//``, so the two can't be mistaken for each other.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

MAX_COMPONENT = 255  # bytes a name may have in one directory (NAME_MAX)
MAX_PATH = 2048  # bytes the whole may have: PATH_MAX is 4096, and the directory above needs its share
UNNAMED = "unnamed"

_PART = re.compile(r"(?P<path>.+)//(?P<offset>\d{1,19})/(?P<total>\d{1,19})", re.DOTALL)


class Part(NamedTuple):
    """A piece of a file: the file's path, where the piece begins, how many bytes the file has."""

    path: str
    offset: int
    total: int


def part_name(part: Part) -> str:
    """Name the stream that a part of a file is sent as."""
    return f"{part.path}//{part.offset}/{part.total}"


def parse_part(stream: str) -> Part | None:
    """Give the part a stream's name speaks of, or None when it names a whole file."""
    match = _PART.fullmatch(stream)
    return match and Part(match["path"], int(match["offset"]), int(match["total"]))


def safe_path(stream: str) -> tuple[str, ...]:
    """Choose the path a stream is written to, as its components.

    Parameters
    ----------
    stream : str
        Any string at all.

    Returns
    -------
    tuple of str
        At least one component; none is empty, ``.`` or ``..``, none contains ``/`` or NUL or has more than 255 bytes.
        Equals ``tuple(stream.split("/"))`` when that is already a path a file can have.
    """
    components = [_component(text) for text in stream.split("/") if text not in ("", ".")]
    if not components:
        return (UNNAMED,)
    if sum(len(text.encode()) + 1 for text in components) > MAX_PATH:
        return (_shorten(components[-1], stream, always=True),)
    return tuple(components)


def numbered(component: str, number: int) -> str:
    """Give another name when `component` is taken: ``a.jpg``, 2 → ``a~2.jpg``; still at most 255 bytes."""
    stem, suffix = _split(component)
    mark = f"~{number}"
    return _cut(stem, MAX_COMPONENT - len((mark + suffix).encode())) + mark + suffix


def _component(text: str) -> str:
    if text == "..":
        return "%2E%2E"
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "%00")
    return _shorten(text, text)


def _shorten(component: str, whole: str, *, always: bool = False) -> str:
    """Cut `component` to what a directory takes, marked with a digest of `whole` so that different names stay so."""
    if not always and len(component.encode()) <= MAX_COMPONENT:
        return component
    stem, suffix = _split(component)
    digest = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{_cut(stem, 200 - len(suffix.encode()))}~{digest}{suffix}"


def _split(component: str) -> tuple[str, str]:
    """Divide into stem and suffix (with its dot); a suffix longer than 16 bytes is none, nor is a leading dot."""
    stem, dot, suffix = component.rpartition(".")
    if not stem or len(suffix.encode()) > 15:
        return component, ""
    return stem, dot + suffix


def _cut(text: str, nbytes: int) -> str:
    """Give the longest beginning of `text` that has at most `nbytes` bytes in UTF-8, whole characters only."""
    return text.encode()[:nbytes].decode("utf-8", "ignore")
