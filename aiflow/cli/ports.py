"""``aiflow ports``: which endpoints can be used here, and why the others cannot."""

from __future__ import annotations

import contextlib

from aiflow._terminal.outcome import NOT_DELIVERED, Outcome


def show_ports(outcome: Outcome) -> None:
    """Print a table of endpoints. Nothing is started.

    Parameters
    ----------
    outcome : Outcome
        Receives ``endpoints``: a list of ``endpoint``, ``usable`` and ``note``; ``runtime_directory``: the directory of
        names, or None; ``live_names``: the names of receivers, a list of ``endpoint``, ``process`` (its pid in the
        receiver's container) and ``owner`` (in words). The exit code is 1 if no endpoint is usable.
    """
    from aiflow._ports.inventory import available
    from aiflow._ports.registry import live
    from aiflow._ports.runtime_dir import runtime_directory
    from aiflow.errors import PortError

    rows = [{"endpoint": pattern, "usable": usable, "note": note} for pattern, usable, note in available()]
    outcome.document.update(endpoints=rows, runtime_directory=None, live_names=[])
    with contextlib.suppress(PortError):  # the table contains the reason
        outcome.document["runtime_directory"] = str(runtime_directory())
        outcome.document["live_names"] = [
            {"endpoint": name.endpoint, "process": name.pid, "owner": name.owner} for name in live()
        ]
    if not any(row["usable"] for row in rows):
        outcome.fail("no endpoint can be used here; the notes contain the reasons", NOT_DELIVERED)
    if outcome.terminal.as_json:
        return

    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("endpoint", no_wrap=True)
    table.add_column("usable")
    table.add_column("note", overflow="fold")
    for row in rows:
        mark = Text("yes", style="green") if row["usable"] else Text("no", style="red")
        table.add_row(Text(str(row["endpoint"])), mark, Text(str(row["note"])))
    outcome.terminal.console().print(table, soft_wrap=False)
    if directory := outcome.document["runtime_directory"]:
        outcome.terminal.console().print(Text(f"  Directory of local endpoint names: {directory}"))
