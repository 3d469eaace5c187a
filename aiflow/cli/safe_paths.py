"""Convert the name of a stream to a path that is safe to create under a directory.

For any name, :func:`safe_path` returns a relative path without ``..`` and NUL, within the length limits of Linux. Valid
file names are not changed. A name has no further meaning: :class:`aiflow._transfer.filemarks.FileMark` marks parts of
files, and directories.
"""

from __future__ import annotations

import hashlib
import re
import secrets

MAX_COMPONENT = 255  # bytes of a name in one directory (NAME_MAX)
MAX_PATH = 2048  # bytes of the whole path: PATH_MAX is 4096, and the output directory needs a part of it
UNNAMED = "unnamed"

_TEMPORARY = re.compile(r"\.aiflow-[0-9a-f]{16}\.part")


def temporary_name() -> str:
    """Return a name for a file that is being written. `safe_path` never returns such a name."""
    return f".aiflow-{secrets.token_hex(8)}.part"


def is_temporary(component: str) -> bool:
    """Return whether a name was made by `temporary_name`."""
    return _TEMPORARY.fullmatch(component) is not None


def safe_path(stream: str) -> tuple[str, ...]:
    """Return the components of the path that a stream is written to.

    Parameters
    ----------
    stream : str
        Any string.

    Returns
    -------
    tuple of str
        At least one component. None is empty, ``.`` or ``..``, contains ``/`` or NUL, or exceeds 255 bytes. Equals
        ``tuple(stream.split("/"))`` if that is a valid path.
    """
    components = [_component(text) for text in stream.split("/") if text not in ("", ".")]
    if not components:
        return (UNNAMED,)
    if sum(len(text.encode()) + 1 for text in components) > MAX_PATH:
        return (_shorten(components[-1], stream, always=True),)
    return tuple(components)


def numbered(component: str, number: int) -> str:
    """Return an alternative to a name that is taken: ``a.jpg``, 2 → ``a~2.jpg``. It has at most 255 bytes."""
    stem, suffix = _split(component)
    mark = f"~{number}"
    return _cut(stem, MAX_COMPONENT - len((mark + suffix).encode())) + mark + suffix


def _component(text: str) -> str:
    if text == "..":
        return "%2E%2E"
    if is_temporary(text):  # a later run would remove it as the file of a killed run
        return f"%2E{text[1:]}"
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "%00")
    return _shorten(text, text)


def _shorten(component: str, whole: str, *, always: bool = False) -> str:
    """Shorten `component` to the limit of a directory. A digest of `whole` keeps different names different."""
    if not always and len(component.encode()) <= MAX_COMPONENT:
        return component
    stem, suffix = _split(component)
    digest = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{_cut(stem, 200 - len(suffix.encode()))}~{digest}{suffix}"


def _split(component: str) -> tuple[str, str]:
    """Split into stem and suffix, with its dot. A suffix above 16 bytes, or a leading dot, does not count."""
    stem, dot, suffix = component.rpartition(".")
    if not stem or len(suffix.encode()) > 15:
        return component, ""
    return stem, dot + suffix


def _cut(text: str, nbytes: int) -> str:
    """Return the longest prefix of `text` with at most `nbytes` bytes in UTF-8, without a partial character."""
    return text.encode()[:nbytes].decode("utf-8", "ignore")
