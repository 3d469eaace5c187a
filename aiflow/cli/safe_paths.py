"""From the name of a stream to a path that is safe to create under a directory, and to a text that is safe to print.

Whatever a peer calls its streams, :func:`safe_path` gives a relative path without ``..``, without NUL, within the
lengths Linux allows. Names that a file can have come through unchanged. A name says nothing else: that an element is a
part of a file, or a directory, its :class:`aiflow._transfer.filemarks.FileMark` says.
"""

from __future__ import annotations

import hashlib
import re
import secrets

MAX_COMPONENT = 255  # bytes a name may have in one directory (NAME_MAX)
MAX_PATH = 2048  # bytes the whole may have: PATH_MAX is 4096, and the directory above needs its share
UNNAMED = "unnamed"

_TEMPORARY = re.compile(r"\.aiflow-[0-9a-f]{16}\.part")


def temporary_name() -> str:
    """Name a file that is being written. No stream is ever written under such a name."""
    return f".aiflow-{secrets.token_hex(8)}.part"


def is_temporary(component: str) -> bool:
    """Tell whether a file of that name was being written by a run like ours."""
    return _TEMPORARY.fullmatch(component) is not None


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
    if is_temporary(text):  # a later run would take it for what a killed one left
        return f"%2E{text[1:]}"
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
