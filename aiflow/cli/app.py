"""The command line itself: commands, their options, and exit codes. What each command does is in its own module."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from aiflow.cli.lab import lab
from aiflow.cli.outcome import Terminal, size, utf8, version
from aiflow.cli.safe_paths import printable

ENDPOINTS = (
    "local:NAME (local:NAME*4 for four ports), af_packet:IFNAME, pci:ADDRESS …; `aiflow ports` lists what works here"
)

_ports = click.option(
    "--ports",
    "-p",
    multiple=True,
    required=True,
    metavar="ENDPOINT",
    callback=utf8,
    help=f"{ENDPOINTS}. May be given several times.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
_name = click.option(
    "--name", callback=utf8, help="Our own name; default: recv's the endpoint's or host's, send's host and process."
)
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after so long a wait."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(), message="%(prog)s %(version)s")
def app() -> None:
    """Move files and images from one process or node to another over every NIC port there is, losing nothing.

    Exit codes: 0 all delivered, 1 not delivered, 2 bad usage, 130 interrupted.
    """


@app.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, readable=True, path_type=Path))
@_ports
@click.option("--to", metavar="NAME", callback=utf8, help="The receiver meant, when several answer.")
@_name
@_timeout
@click.option(
    "--slice-bytes",
    metavar="SIZE",
    callback=size,
    default="256MiB",
    show_default=True,
    help="Most bytes sent as one slice.",
)
@_json
def send(as_json: bool, **options: Any) -> None:
    """Send every file below DIRECTORY, and its directories, empty ones too.

    Exits with 0 only when `aiflow recv` has written and synced every file. Names, permission bits and times of the last
    change are kept. Not kept: owners, setuid, setgid and sticky bits, ACLs and extended attributes, the mode of
    DIRECTORY itself. A symbolic link to a file is sent as the file, hard links as files of their own. Other links,
    sockets, pipes and devices are left out and listed.

    Three times --slice-bytes of memory are used at most: a larger file is cut into parts, which `aiflow recv` puts
    together again. The receiver's --memory must hold a slice.
    """
    from aiflow.cli.send import send_directory

    with Terminal(as_json).outcome("send") as outcome:
        send_directory(outcome, **options)


@app.command()
@click.argument("outdir", type=click.Path(file_okay=False, path_type=Path))
@_ports
@click.option(
    "--slices", type=click.IntRange(min=1), metavar="N", help="Stop after N slices; default: when all senders closed."
)
@_name
@_timeout
@click.option(
    "--memory",
    metavar="SIZE",
    callback=size,
    default="1GiB",
    show_default=True,
    help="The most that is held at a time.",
)
@_json
def recv(as_json: bool, **options: Any) -> None:
    """Write what arrives to files in OUTDIR, under the names it was sent by; OUTDIR is made if it is missing.

    Nothing is written outside OUTDIR, whatever the names: links in it are not followed, and `..` and the like are
    replaced. A file already there is replaced once the new one is whole; a second one of the same name in one run gets
    a number. A directory already there keeps its mode.

    A slice is confirmed to its sender when its files are written and synced. A file that cannot be written is told to
    its sender, and the rest goes on; the exit code is then 1. Long runs of zeros become holes, in files that fit into
    one slice.
    """
    from aiflow.cli.recv import receive_into

    with Terminal(as_json).outcome("recv") as outcome:
        receive_into(outcome, **options)


@app.command()
@_json
def ports(as_json: bool) -> None:
    """Show which endpoints can be used here, and why the others can't.

    The document of --json has three keys of its own. "endpoints": a list of "endpoint", "usable" and "note".
    "runtime_directory": where the names of local endpoints lie, null if there can be none. "live_names": what receivers
    have now, a list of "endpoint", "process" and "owner".
    """
    from aiflow.cli.ports import show_ports

    with Terminal(as_json).outcome("ports") as outcome:
        show_ports(outcome)


@app.command()
@click.option(
    "--images", type=click.IntRange(1, 512), default=512, show_default=True, metavar="N", help="Photographs to send."
)
@click.option(
    "--ports", "nb_ports", type=click.IntRange(1, 16), default=4, show_default=True, metavar="N", help="Ports."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 60),
    default=3.0,
    show_default=True,
    help="How long to go on with further slices after the first, for the curve of throughput.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default="demo-report.png",
    show_default=True,
    help="The picture to write.",
)
@_json
def demo(as_json: bool, **options: Any) -> None:
    """Send one time slice of photographs from one process to another, compare every one, and draw a report.

    The photographs (512, 137 MB) are made once from pictures that Python packages ship, and cached.
    """
    from aiflow.cli.demo import run_demo

    with Terminal(as_json).outcome("demo") as outcome:
        run_demo(outcome, **options)


app.add_command(lab)


def run(arguments: Sequence[str] | None = None, invoke: Callable[..., Any] = app.main) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; default those of this process.

    Returns
    -------
    int
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            code = int(invoke(arguments, prog_name="aiflow", standalone_mode=False) or 0)
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        sys.stdout.flush()  # here, not at the interpreter's end, where a full disk would make it exit code 120
        return code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aiflow: interrupted", err=True)
        return 130
    except OSError as error:  # stdout is full, or nobody reads it any more
        click.echo(f"aiflow: the result could not be printed: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that what is still buffered does not fail once more at exit
        return 1
    except click.ClickException as error:
        if "--json" in arguments:
            Terminal(as_json=True).refuse(error.format_message(), error.exit_code)
        shown = io.StringIO()
        error.show(shown)  # with names as they were typed
        click.echo(printable(shown.getvalue(), keep="\n"), err=True, nl=False)
        return error.exit_code
