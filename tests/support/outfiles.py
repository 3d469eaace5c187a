"""What tests of received files share: two senders, parts of files, and the content of a directory."""

from __future__ import annotations

from pathlib import Path

from aiflow._transfer.filemarks import FileMark

A, B = 0xA, 0xB  # instances of two senders


def part(offset: int, size: int, mode: int | None = 0o644) -> FileMark:
    return FileMark("part", mode, None, offset, size)


def below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
