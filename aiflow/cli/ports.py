"""``aiflow ports``: which endpoints can be used here, and why the others can't."""

from __future__ import annotations

from aiflow.cli.outcome import NOT_DELIVERED, Outcome


def show_ports(outcome: Outcome) -> None:
    """Ask the library, start nothing, print a table.

    Parameters
    ----------
    outcome : Outcome
        Receives ``endpoints``: a list of ``endpoint``, ``usable`` and ``note``. Exit code 1 when none is usable.
    """
    from aiflow.paths import available

    rows = [{"endpoint": pattern, "usable": usable, "note": note} for pattern, usable, note in available()]
    outcome.document["endpoints"] = rows
    if not any(row["usable"] for row in rows):
        outcome.fail("no endpoint can be used here; the notes say why", NOT_DELIVERED)
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
