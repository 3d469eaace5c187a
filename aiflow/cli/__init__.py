"""The command ``aiflow``. Nothing here is imported by the library."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit: 0 all delivered, 1 not delivered, 2 bad usage, 130 interrupted."""
    from aiflow.cli import streams

    streams.provide()
    from aiflow.cli.app import run

    code = run()
    # CPython notes a KeyboardInterrupt that leaves an exec() of source text (dataclasses use it, so any import may) and
    # ends ``python -m`` by SIGINT for it, though it has been caught since. The next exec() forgets it.
    exec("")
    raise SystemExit(code)
