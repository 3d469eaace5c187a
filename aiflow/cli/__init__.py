"""The command ``aiflow``. The library imports nothing from here."""

from __future__ import annotations

import signal
import sys

import aiflow


def main() -> None:
    """Run the command line and exit: 0 all delivered, 1 not delivered, 2 bad usage, 130 interrupted."""
    if "build_info" not in getattr(aiflow, "__all__", ()):
        raise SystemExit(
            f"aiflow: {aiflow.__path__[0]} has files of another project called aiflow, which have overwritten those of "
            "aiflow-dpdk: pip uninstall aiflow aiflow-dpdk, then install aiflow-dpdk alone"
        )
    try:
        from aiflow.cli import streams

        streams.provide()
        from aiflow.cli.app import run

        code = run()
    except KeyboardInterrupt:  # during the imports
        sys.stderr.write("aiflow: interrupted\n")
        code = 130
    # CPython records a KeyboardInterrupt that leaves an exec() of source text. Any import may use it: dataclasses do.
    # It then ends ``python -m`` by SIGINT, even if the interrupt was caught. The next exec() resets the record.
    exec("")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while the interpreter ends shows no traceback
    raise SystemExit(code)
