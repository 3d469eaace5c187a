"""The command ``aiflow``. Nothing here is imported by the library."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit: 0 all delivered, 1 not delivered, 2 bad usage, 130 interrupted."""
    from aiflow.cli.app import run

    raise SystemExit(run())
