"""Command-line parameters that several commands have, and callbacks that parse option values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from aiflow.config import parse_size
from aiflow.errors import ConfigError

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout, nothing else.")


class DirectoryOrStream(click.Path):
    """A directory, or ``-`` for a standard stream."""

    def __init__(self, *, exists: bool = False) -> None:
        super().__init__(exists=exists, file_okay=False, readable=exists, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a Path. ``./-`` is a directory of that name."""
        if value == "-":
            return Path("-")
        path: Any = super().convert(value, param, ctx)
        return path.absolute() if str(path) == "-" else path


def size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Parse a number of bytes: ``4096``, ``256MiB``, ``1GB``. Other text is a usage error."""
    try:
        return parse_size(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def utf8(_context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Decode names as UTF-8, independent of the locale. Other bytes are a usage error."""
    if isinstance(value, tuple):
        return tuple(utf8(_context, parameter, each) for each in value)
    try:
        return value and os.fsencode(value).decode()
    except UnicodeError as error:
        raise click.BadParameter(f"{value!r} is not UTF-8", param=parameter) from error
