"""``aiflow lab``: the emulated cluster, and the published experiments on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiflow._terminal.described import GroupWithExamples
from aiflow._terminal.outcome import Outcome, Terminal
from aiflow._terminal.parameters import json_option, size
from aiflow.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from aiflow.lab.results import Results
    from aiflow.lab.topology import Layout

_WIDTH = 110  # columns of tables that are not printed to a terminal

_name = click.option("--name", default="lab", show_default=True, help="Name of the cluster.")


def _rate(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    from aiflow.lab.topology import parse_rate

    try:
        return None if value is None else parse_rate(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _rates(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(_rate(context, parameter, each) or 0 for each in value.split(","))


def _faults(_context: click.Context, _parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    from aiflow._faults import parse_faults

    if value is None:
        return None
    try:
        faults = {key: float(number) for key, _, number in (each.partition("=") for each in value.split(","))}
        if "seed" in faults:
            faults["seed"] = int(faults["seed"])
        parse_faults(faults)
    except (ConfigError, ValueError) as error:
        raise click.BadParameter(str(error)) from error
    return faults


_port_rate = click.option(
    "--rate", metavar="RATE", default="100mbit", show_default=True, callback=_rate, help="Rate of each port."
)


@click.group(cls=GroupWithExamples)
def lab() -> None:
    """Emulate a cluster on this machine, and run the published experiments on it. Needs root.

    Nodes and switches are network namespaces called aiflow-lab-…, joined by shaped links. Nothing else on the machine
    is changed. `aiflow lab down` removes everything, even after the process that created it was killed.
    """


@lab.command()
@click.option("--senders", type=int, default=2, show_default=True, metavar="N", help="Number of sending nodes, node0 …")
@click.option("--receivers", type=int, default=2, show_default=True, metavar="N", help="Number of receiving nodes.")
@click.option("--ports", type=int, default=4, show_default=True, metavar="N", help="Number of ports of each node, p0 …")
@click.option(
    "--switches",
    type=int,
    default=2,
    show_default=True,
    metavar="N",
    help="Number of switches; the ports are distributed over them.",
)
@_port_rate
@click.option("--rates", metavar="RATE,…", callback=_rates, help="Rate of each port, such as 100,100,50,10 (Mbit/s).")
@click.option("--link", metavar="RATE", callback=_rate, help="Rate of the nodes' own ends, if they are faster.")
@click.option("--trunk", metavar="RATE", callback=_rate, help="Rate of each switch's backplane. Default: no limit.")
@click.option(
    "--queue", metavar="SIZE", callback=size, default="256KiB", show_default=True, help="Queue size of each port."
)
@click.option("--loss", type=float, default=0.0, metavar="P", help="Probability that a switch drops a frame.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed that selects these frames.")
@_name
@json_option
def up(as_json: bool, name: str, **asked: Any) -> None:
    """Create the cluster, unless it is up with the same layout. Another cluster of the same name is replaced."""
    with Terminal(as_json).outcome("lab up") as outcome:
        from aiflow.lab.cluster import Cluster

        layout = _layout(asked)
        cluster = Cluster(layout, name=name)
        outcome.document.update(made=cluster.up(), name=name, layout=layout.as_dict())
        outcome.document["namespaces"] = [host.name for host in (*cluster.nodes(), *cluster.switches())]
        if not as_json:
            _show_usage(outcome, cluster.node(0).name, cluster.node(layout.senders).name, layout)


def _layout(asked: dict[str, Any]) -> Layout:
    from aiflow.lab.topology import Layout

    return Layout(
        senders=asked["senders"],
        receivers=asked["receivers"],
        ports=asked["ports"],
        switches=asked["switches"],
        rates_bps=asked["rates"] or (asked["rate"],),
        link_bps=asked["link"],
        trunk_bps=asked["trunk"],
        queue_bytes=asked["queue"],
        loss=asked["loss"],
        seed=asked["seed"],
    )


def _show_usage(outcome: Outcome, source: str, target: str, layout: Layout) -> None:
    ports = " ".join(f"-p af_packet:p{i}" for i in range(layout.ports))
    outcome.terminal.console().print(
        f"the cluster is {'up' if outcome.document['made'] else 'already up'}: {layout.senders} senders, "
        f"{layout.receivers} receivers, {layout.ports} ports each, switches: {layout.switches}\n"
        f"  ip netns exec {target} aiflow recv OUTDIR {ports}\n"
        f"  ip netns exec {source} aiflow send DIRECTORY {ports}",
        markup=False,
    )


@lab.command()
@json_option
def status(as_json: bool) -> None:
    """Show every cluster: its ports, and the frames they carried and lost."""
    with Terminal(as_json).outcome("lab status") as outcome:
        from aiflow.lab.cluster import check_rights, clusters

        check_rights()
        outcome.document["clusters"] = [_describe(found) for found in clusters()]
        if not as_json:
            _show_status(outcome)


def _describe(found: Any) -> dict[str, Any]:
    from aiflow.lab.cluster import PREFIX
    from aiflow.lab.namespaces import Namespace

    hosts = {}
    for name in found.namespaces:
        namespace = Namespace(name)
        with contextlib.suppress(FileNotFoundError):  # removed concurrently
            interfaces = {label: row._asdict() for label, row in namespace.counters().items()}
            hosts[name.removeprefix(f"{PREFIX}{found.name}-")] = {
                "processes": namespace.processes(),
                "interfaces": interfaces,
            }
    return {
        "name": found.name,
        "layout": found.layout.as_dict() if found.layout else None,
        "owner": found.owner,
        "owner_lives": found.alive,
        "hosts": hosts,
    }


def _console(outcome: Outcome) -> Console:
    """Return the console of stdout. For a file it is wide enough for the tables."""
    console = outcome.terminal.console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console


def _show_status(outcome: Outcome) -> None:
    from rich import box
    from rich.table import Table

    console = _console(outcome)
    if not outcome.document["clusters"]:
        console.print("no cluster is up; `aiflow lab up` creates one")
    for cluster in outcome.document["clusters"]:
        owner = "kept until `aiflow lab down`"
        if cluster["owner"]:
            owner = f"owned by process {cluster['owner']}" + ("" if cluster["owner_lives"] else ", which has ended")
        title = f"{cluster['name']}: {owner}"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        for heading in ("host", "port"):
            table.add_column(heading)
        for heading in ("frames out", "frames in", "lost in its queue"):
            table.add_column(heading, justify="right")
        for label, host in cluster["hosts"].items():
            for port, counters in host["interfaces"].items():
                if not port.startswith("bridge"):
                    figures = (f"{counters[key]:,}" for key in ("tx_frames", "rx_frames", "queue_drops"))
                    table.add_row(label, port, *figures)
                    label = ""
        console.print(table)


@lab.command()
@click.option("--all", "running", is_flag=True, help="Also remove the cluster of a running experiment.")
@click.option("--name", help="Only the cluster of this name.")
@json_option
def down(as_json: bool, running: bool, name: str | None) -> None:
    """Remove every cluster, including its processes and sockets, and the remains of killed experiments."""
    with Terminal(as_json).outcome("lab down") as outcome:
        from aiflow.lab.cluster import remove_all

        removed: list[str] = []
        kept: list[str] = []
        for found, gone in remove_all(name, running=running):
            (removed if gone else kept).append(found.name)
            if not gone:
                outcome.terminal.say(
                    f"{found.name} belongs to the running process {found.owner} and is kept (--all removes it)"
                )
        outcome.document.update(removed=removed, kept=kept)
        if not as_json:
            outcome.terminal.console().print(f"removed: {', '.join(removed)}" if removed else "nothing to remove")


@lab.command()
@click.argument("experiment", type=click.Choice(["fig6", "fig7", "fig8", "policies", "loss", "cut", "relay", "all"]))
@_port_rate
@click.option(
    "--repeats", type=click.IntRange(1, 99), metavar="N", help="Runs of each measurement. Default: 3, with --quick 1."
)
@click.option("--quick", is_flag=True, help="Use small slices: a functional check, not a measurement.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="lab-results",
    show_default=True,
    help="Directory for the JSON, CSV and PNG files.",
)
@click.option(
    "--faults",
    metavar="KEY=VALUE,…",
    callback=_faults,
    help="Faults to inject at aiflow's senders, such as drop=0.01,corrupt=0.001,seed=7 (`aiflow.config.FAULTS`).",
)
@click.option("--strict", is_flag=True, help="Also exit with code 1 if a figure misses its limit.")
@json_option
def run(
    as_json: bool, experiment: str, rate: int, repeats: int | None, quick: bool, out: Path, strict: bool,
    faults: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Run an experiment on a separate cluster, most with TCP and ZeroMQ for comparison, and plot the results.

    fig6: parallel ports. fig7: flow control. fig8: one and two switches. policies: ports of different speed. loss:
    random loss at the switch. cut: a port, then a switch, fails in the middle of a slice. relay: a node that sends on
    what it receives, over the same ports.
    """
    terminal = Terminal(as_json)
    with terminal.outcome("lab run") as outcome:
        from aiflow.lab import experiments
        from aiflow.lab.runs import Bench

        experiments.check_packages()
        with terminal.bar("photographs", 512, in_bytes=False) as bar:
            images = experiments.images(quick=quick, progress=bar.show)
            bar.show(512)

        @contextlib.contextmanager
        def progress(text: str, total: int) -> Iterator[Any]:
            with terminal.bar(text, total, in_bytes=False) as bar:
                yield bar

        bench = Bench(images, rate, repeats or (1 if quick else 3), quick, progress, faults)
        names = list(experiments.EXPERIMENTS) if experiment == "all" else [experiment]
        outcome.document["experiments"] = {}
        for results, paths in experiments.run(names, bench, out):
            outcome.document["experiments"][results.name] = {
                "checks": [vars(check) for check in results.checks],
                "medians": results.medians,
                "files": [str(path.absolute()) for path in paths],
                "seconds": results.seconds,
            }
            if not as_json:
                _show(outcome, results, paths)
            if not all(row["delivered"] for row in results.rows):
                outcome.fail(f"{results.name}: an element was lost or changed in transit")
            if strict and not all(check.met for check in results.checks):
                outcome.fail(f"{results.name}: at least one figure misses its limit")


def _show(outcome: Outcome, results: Results, paths: list[Path]) -> None:
    from rich import box
    from rich.table import Table

    console = _console(outcome)
    keys = [name for name in results.medians[0] if name in ("scenario", "ports", "switches", "elements", "system")]
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{results.name}: {results.title.lower()}, medians", title_justify="left",
        title_style="bold",
    )  # fmt: skip
    for heading in keys:
        table.add_column(heading, justify="right" if heading != "system" else "left")
    for heading in ("seconds", "share of line", "lost in the network", "retransmitted", "runs", "load"):
        table.add_column(heading, justify="right")
    for each in results.medians:
        table.add_row(
            *(str(each[key]) for key in keys),
            f"{each['seconds']:.3f}", f"{each['share']:.4f}", f"{each['lost']:,.0f}", f"{each['retransmitted']:,.0f}",
            str(each["runs"]), f"{each['load']:.1f}",
        )  # fmt: skip
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for heading, justify in (("", "left"), ("limit", "right"), ("measured", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for check in results.checks:
        met = "[green]met[/]" if check.met else "[red]missed[/]"
        table.add_row(check.what, check.limit, f"{check.value:.4g}", met)
    console.print(table)
    console.print(f"{', '.join(map(str, paths))} ({results.seconds:.0f} s)", markup=False)
