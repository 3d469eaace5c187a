"""The command line: commands, their options, and exit codes. Each command is implemented in a module of its own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from aiflow._terminal.described import GroupWithExamples
from aiflow._terminal.outcome import Terminal, version
from aiflow._terminal.parameters import DirectoryOrStream, json_option, size, utf8
from aiflow._terminal.text import printable

COMMANDS_ELSEWHERE = {"lab": "aiflow.lab.commands:lab"}
"""Commands that other packages provide, as ``module:attribute``. A module is imported when its command is looked up."""

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
    shell_complete=lambda _context, _parameter, incomplete: _endpoints(incomplete),
    help=f"{ENDPOINTS}. Can be given several times.",
)
_name = click.option(
    "--name",
    callback=utf8,
    help="Name of this side. Default for recv: the endpoint's or the host's name; for send: host and process.",
)
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after this time."
)
_cards = click.argument("addresses", nargs=-1, required=True, metavar="DBDF...", callback=utf8)
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print the writes as shell commands, in their order, and change nothing."
)


def _endpoints(incomplete: str) -> list[Any]:
    from aiflow.cli.completion import endpoints

    return endpoints(incomplete)


class CommandGroup(GroupWithExamples):
    """A group that also has the commands in `COMMANDS_ELSEWHERE`."""

    group_class = GroupWithExamples

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; one of another package is imported first."""
        if cmd_name not in COMMANDS_ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS_ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command in `args`; an unknown one ends in an error that names what is like it."""
        self.commands.update({name: click.Command(name) for name in COMMANDS_ELSEWHERE})  # for their names alone
        return super().resolve_command(ctx, args)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(), message="%(prog)s %(version)s")
def app() -> None:
    """Move files and images between processes and nodes over all available NIC ports, without loss.

    Exit codes: 0 all delivered, 1 not delivered, 2 bad usage, 130 interrupted.
    """


@app.command()
@click.argument("directory", type=DirectoryOrStream(exists=True))
@_ports
@click.option("--to", metavar="NAME", callback=utf8, help="Receiver to send to, if several answer.")
@_name
@_timeout
@click.option(
    "--slice-bytes",
    metavar="SIZE",
    callback=size,
    default="256MiB",
    show_default=True,
    help="Maximum size of one slice.",
)
@click.option("--resume", is_flag=True, help="Leave out the files that the receiver has from an earlier run.")
@click.option("--watch", is_flag=True, help="Also send new and changed files as they appear, until Ctrl-C.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: time for which a new file must rest.",
)
@json_option
def send(as_json: bool, **options: Any) -> None:
    """Send every file below DIRECTORY, and its directories, empty ones too. With -, send the bytes of stdin.

    The exit code is 0 only if `aiflow recv` has written and synced every file. Names, permission bits and modification
    times are kept. Owners, setuid, setgid and sticky bits, ACLs, extended attributes and the mode of DIRECTORY itself
    are not kept. A symbolic link to a file is sent as the file, a hard link as a separate file. Other links, sockets,
    pipes and devices are skipped and listed. Holes of sparse files are not sent, and are holes at the receiver.

    Memory use is limited to three times --slice-bytes. Larger files are split into parts, which `aiflow recv` joins.
    The receiver's --memory must hold one slice.

    --resume asks the receiver for each file. It has a file if path, size, permission bits and modification time are the
    same, to the nanosecond, and sets this time only when the file is on its disk.

    --watch sends a file when no process has it open for writing and it has rested for --settle seconds. A file that was
    renamed into place counts like one that was written there. For files of other users and on network file systems,
    where the kernel does not say who has a file open, it must rest for 5 s. Removed files stay at the receiver. If the
    receiver ends, the next one is waited for. Ctrl-C ends with 0 if nothing is in transit.
    """
    from aiflow.cli.send import send_directory

    with Terminal(as_json).outcome("send") as outcome:
        send_directory(outcome, **options)


@app.command()
@click.argument("outdir", type=DirectoryOrStream())
@_ports
@click.option(
    "--slices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after N slices. Default: after all senders have closed.",
)
@_name
@_timeout
@click.option(
    "--memory",
    metavar="SIZE",
    callback=size,
    default="1GiB",
    show_default=True,
    help="Maximum size of the slices held at a time.",
)
@json_option
def recv(as_json: bool, **options: Any) -> None:
    """Write received elements to files in OUTDIR, under the names they were sent with. OUTDIR is created if missing.

    With -, write them to stdout: the stream of `aiflow send -` as it is, files and directories as a tar archive. Then a
    slice is confirmed when stdout has taken it.

    Nothing is written outside OUTDIR: links in it are not followed, and names such as `..` are replaced. An existing
    file is replaced when the new one is complete. A second file of the same name in one run gets a number, unless the
    same sender sends a file once more. An existing directory keeps its mode.

    A slice is confirmed to its sender after its files are written and synced. If a file cannot be written, its sender
    is told and the transfer continues; the exit code is then 1. Long runs of zeros become holes.
    """
    from aiflow.cli.recv import receive_into

    with Terminal(as_json).outcome("recv") as outcome:
        receive_into(outcome, **options)


@app.group(invoke_without_command=True)
@json_option
@click.pass_context
def ports(context: click.Context, as_json: bool) -> None:
    """Show which endpoints can be used here, and why the others cannot.

    The document of --json has three keys of its own. "endpoints": a list of "endpoint", "usable" and "note".
    "runtime_directory": the directory with the names of local endpoints, or null if there is none. "live_names": the
    names that receivers use now, a list of "endpoint", "process" and "owner".
    """
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from aiflow.cli.ports import show_ports

    with Terminal(as_json).outcome("ports") as outcome:
        show_ports(outcome)


@ports.command()
@_cards
@click.option(
    "--driver",
    type=click.Choice(["vfio-pci", "uio_pci_generic"]),
    help="Driver to bind to. Default: vfio-pci, or uio_pci_generic for a card without an IOMMU.",
)
@_dry_run
@json_option
@click.pass_context
def bind(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Bind network cards for DPDK, so that pci:DBDF endpoints can use them. The kernel loses their interfaces.

    DBDF is a card's PCI address, such as 0000:3b:00.0. A card is refused while the host needs it: while a route goes
    over its interface, or the interface is up with addresses, or is part of a bridge or bond. All cards are checked
    before the first one is changed. A bind that fails is undone.

    The former driver is noted in /run/aiflow-pci. A restart of the machine undoes the binding. Needs root.

    Exit codes: 0 bound, also if it was before; 1 refused or failed; 2 bad usage.
    """
    from aiflow.cli.binding import bind_cards

    with Terminal(as_json or context.obj).outcome("ports bind") as outcome:
        bind_cards(outcome, **options)


@ports.command()
@_cards
@_dry_run
@json_option
@click.pass_context
def unbind(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Give network cards back to the drivers that they had before `aiflow ports bind`.

    A card is refused while a process uses it. A card that was bound by another program goes to the driver that the
    kernel chooses. Needs root.

    Exit codes: 0 given back, also if it was before; 1 refused or failed; 2 bad usage.
    """
    from aiflow.cli.binding import unbind_cards

    with Terminal(as_json or context.obj).outcome("ports unbind") as outcome:
        unbind_cards(outcome, **options)


@app.command()
@click.option(
    "--fix", is_flag=True, help="Mend what is safe: this user's own files that nothing uses. Says what it does."
)
@json_option
def doctor(as_json: bool, fix: bool) -> None:
    """Look at this machine: what keeps aiflow from running, or from running faster, and the command that mends it.

    The last line is a round trip over local:. Each other line is a check: ok, could be better, or broken.

    The document of --json has six keys of its own: "build", "package", "python", "runtime_directory", "fixed" and
    "checks", a list of "check", "state", "text", "command" and "as_root".

    Exit codes: 0 nothing is broken; 1 something is; 2 bad usage.
    """
    from aiflow.cli.doctor import examine

    with Terminal(as_json).outcome("doctor") as outcome:
        examine(outcome, fix)


@app.command()
@click.option("--once", is_flag=True, help="Print one view and end. Also when stdout is no terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks; rates are those of this time.",
)
@json_option
def top(as_json: bool, **options: Any) -> None:
    """Watch the running Senders and Receivers of this user: rates, loss, windows, memory, and what each waits for.

    Keys: s sorts (by rate, loss, use of the loop, name), p pauses, q ends. NO_COLOR=1 leaves the colours out.

    The document of --json has a key of its own, "sides": a list with the figures and rates of each. Exit codes: 0, or 1
    if no Sender or Receiver is open.
    """
    from aiflow.cli.top import show_top

    with Terminal(as_json).outcome("top") as outcome:
        show_top(outcome, **options)


@app.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 600),
    default=5.0,
    show_default=True,
    help="How long to watch.",
)
@json_option
def diagnose(as_json: bool, **options: Any) -> None:
    """Say what bounds each running transfer of this user, with the numbers behind it and what to change.

    The verdict is one of link, port, sender-cpu, receiver-cpu, reader, memory, disk, application; or unclear, or idle.
    Run it on the host of both ends, or of one: it then knows less, and says "unclear" more often.

    The document of --json has a key of its own, "flows". Exit codes: 0, or 1 if no Sender or Receiver is open.
    """
    from aiflow.cli.diagnose import show_diagnosis

    with Terminal(as_json).outcome("diagnose") as outcome:
        show_diagnosis(outcome, **options)


@app.command()
@click.option(
    "--listen",
    default="127.0.0.1:9105",
    show_default=True,
    metavar="[ADDRESS:]PORT",
    help="Where to serve http://ADDRESS:PORT/metrics. Other hosts need an address that they can reach.",
)
@json_option
def metrics(as_json: bool, **options: Any) -> None:
    """Serve the figures of all Senders and Receivers of this user for Prometheus, until Ctrl-C.

    Needs the extra metrics: pip install 'aiflow-dpdk[metrics]'. The document of --json is printed at the end.
    """
    from aiflow.cli.metrics import serve_metrics

    with Terminal(as_json).outcome("metrics") as outcome:
        serve_metrics(outcome, **options)


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets SHELL complete commands, options and endpoints, names of running receivers included."""
    from aiflow.cli.completion import script

    click.echo(script(shell, app))


@app.command()
@click.option(
    "--images", type=click.IntRange(1, 512), default=512, show_default=True, metavar="N", help="Number of photographs."
)
@click.option(
    "--ports",
    "nb_ports",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    metavar="N",
    help="Number of ports.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 60),
    default=3.0,
    show_default=True,
    help="Time to send further slices after the first one, for the throughput curve.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default="demo-report.png",
    show_default=True,
    help="File name of the report picture.",
)
@json_option
def demo(as_json: bool, **options: Any) -> None:
    """Send one time slice of photographs from one process to another, verify each one, and draw a report.

    The photographs (512, 137 MB) are made once from pictures in Python packages, and cached.
    """
    from aiflow.cli.demo import run_demo

    with Terminal(as_json).outcome("demo") as outcome:
        run_demo(outcome, **options)


def run(arguments: Sequence[str] | None = None, invoke: Callable[..., Any] = app.main) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name. Default: the arguments of this process.

    Returns
    -------
    int
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "_AIFLOW_COMPLETE" in os.environ:
        import_module("aiflow.cli.completion")  # has a bash script of its own
    try:
        try:
            code = int(invoke(arguments, prog_name="aiflow", standalone_mode=False) or 0)
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        sys.stdout.flush()  # now: at interpreter exit a full disk would change the exit code to 120
        return code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aiflow: interrupted", err=True)
        return 130
    except OSError as error:  # stdout is full, or its reader is gone
        click.echo(f"aiflow: the result could not be printed: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # buffered output must not fail again at exit
        return 1
    except click.ClickException as error:
        if "--json" in arguments:
            Terminal(as_json=True).refuse(error.format_message(), error.exit_code)
        shown = io.StringIO()
        error.show(shown)  # contains names as they were typed
        click.echo(printable(shown.getvalue(), keep="\n"), err=True, nl=False)
        return error.exit_code
