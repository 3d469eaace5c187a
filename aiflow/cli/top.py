"""``aiflow top``: a live view of this user's Senders and Receivers, from outside their processes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aiflow._observe.readers import Seen, changes, look, per_second
from aiflow._terminal.outcome import NOT_DELIVERED, Outcome
from aiflow.cli.figures import count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SORTS = ("rate", "loss", "use", "name")
"""What the key s goes through."""

LOG_COLUMNS = 160
"""Width of a view that goes to no terminal."""

_PATIENCE = 0.5  # seconds for answers, while keys wait

Rows = list[dict[str, Any]]


def show_top(outcome: Outcome, *, once: bool, interval: float) -> None:
    """Print one view, or refresh it until the key q or Ctrl-C.

    Parameters
    ----------
    outcome : Outcome
        Receives ``sides``: see `rows_of`. The exit code is 1 if there is none. And ``silent``: why other processes are
        missing. Only with ``--once`` or ``--json``.
    once : bool
        Print one view without colours, for a log.
    interval : float
        Seconds between two snapshots.
    """
    terminal = outcome.terminal
    if once or terminal.as_json or not sys.stdout.isatty():
        older = look()
        time.sleep(interval)
        newer = look()
        rows = rows_of(older.documents, newer.documents)
        outcome.document |= {"sides": rows, "silent": newer.silent}
        if not rows and newer.silent:
            outcome.fail(f"no figures of any process: {'; '.join(newer.silent)}", NOT_DELIVERED)
        elif not rows:
            outcome.fail("no Sender or Receiver of this user is open", NOT_DELIVERED)
        elif not terminal.as_json:
            console = terminal.console()
            if not console.is_terminal and "COLUMNS" not in os.environ:
                console.width = LOG_COLUMNS
            console.print(view(rows, "rate"), soft_wrap=False)
            for line in newer.silent:
                terminal.tell(line)
        return
    _live(terminal, interval)


def rows_of(older: list[dict[str, Any]], newer: list[dict[str, Any]]) -> Rows:
    """The Senders and Receivers of two lists of snapshots, with rates.

    Returns
    -------
    list of dict
        ``pid``, ``program``, ``role``, ``name``, ``number``, ``endpoints``, ``figures`` (of the newer snapshot),
        ``rates`` (of the counters, by second), and lists ``peers``, ``ports`` (with ``rates``, too) and ``held``.
    """
    before = {document["pid"]: document for document in older}
    rows = []
    for document in newer:
        for then, side, seconds in changes(before.get(document["pid"], document), document):
            role = side["role"]
            row = {"pid": document["pid"], "program": document["program"], **side}
            row["rates"] = per_second(then["figures"], side["figures"], "side", role, seconds)
            were = {port["name"]: port["figures"] for port in then["ports"]}  # one that came since counts from zero
            row["ports"] = [
                {**port, "rates": per_second(were.get(port["name"], {}), port["figures"], "port", role, seconds)}
                for port in side["ports"]
            ]
            row["peers"] = [  # in the order of to=; a name is not known before one joins
                {**peer, "rates": per_second(was["figures"], peer["figures"], "peer", role, seconds)}
                for was, peer in zip(then["peers"], side["peers"], strict=True)
            ]
            rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------------- one view


def _bits(rate: float | None) -> str:
    """A rate in bit/s, short."""
    if rate is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}bit/s"
    return f"{rate:.0f} bit/s"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _share(part: float, whole: float | None) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _port_rate(port: dict[str, Any], role: str) -> float:
    """Bits per second in the direction of the data."""
    return float(8 * port["rates"]["port_transmit_bytes" if role == "sender" else "port_receive_bytes"])


def _order(row: dict[str, Any], sort: str) -> Any:
    if sort == "name":
        return row["name"]
    if sort == "loss":
        return -sum(port["rates"].get("port_lost_frames", 0) for port in row["ports"])
    if sort == "use":
        return -row["rates"]["loop_busy_seconds"]
    return -row["rates"]["bytes"]


def view(rows: Rows, sort: str) -> RenderableType:
    """All Senders and Receivers, a block each."""
    from rich.console import Group

    blocks: list[RenderableType] = []
    for row in sorted(rows, key=lambda row: _order(row, sort)):
        blocks += [_headline(row), _ports(row)]
    return Group(*blocks)


def _headline(row: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    figures, rates = row["figures"], row["rates"]
    which = f" #{row['number']}" if row["number"] > 1 else ""
    text = Text.assemble(
        (f"{row['role']} ", ""), (row["name"], "bold"), f"{which}  pid {row['pid']}  {row['program']}\n"
    )
    parts = [f"{rates['slices']:.1f} slices/s", f"goodput {_bits(8 * rates['bytes'])}"]
    if row["role"] == "sender":
        again, frames = rates["slice_frames_retransmitted"], rates["slice_frames"]
        parts.append(f"retransmitted {_share(again, frames)}")
        parts.append(f"{figures['slices_in_flight']} in flight")
        for peer in row["peers"]:
            waits = peer["rates"]["wait_seconds"]
            most = max(waits, key=lambda state: float(waits[state]), default="")
            state = f"waits for: {most} ({waits[most]:.0%})" if most else ""
            parts.append(f"→ {peer['name'] or '?'}{'' if peer['figures']['peer_joined'] else ' (not joined)'} {state}")
    else:
        used, limit = figures["memory_bytes"], figures["memory_limit_bytes"]
        parts.append(f"memory {_bytes(used)} of {_bytes(limit)} ({_share(used, limit)})")
        parts.append(f"user holds {figures['slices_held']} ({_bytes(figures['memory_held_bytes'])})")
        parts.append(f"reader waits {min(rates['caller_wait_seconds'], 1):.0%}")
        parts.append(count(figures["senders"], "sender"))
    parts.append(f"loop {rates['loop_busy_seconds']:.0%} busy on CPU {figures.get('loop_cpu', '–')}")
    if dropped := rates.get("frames_dropped"):
        reasons = [f"{reason} {rate:.0f}/s" for reason, rate in dropped.items() if rate]
        parts += [f"dropped {', '.join(reasons)}"] if reasons else []
    text.append("  " + "  ·  ".join(parts))
    return text


def _ports(row: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("port", "driver"):
        table.add_column(column)
    columns = ("rate", "frames/s", "use", "busy", "lost/s", "loss", "window", "score", "interval", "rtt")
    for column in columns:
        table.add_column(column, justify="right")
    role = row["role"]
    for port in row["ports"]:
        figures, rates = port["figures"], port["rates"]
        rate = _port_rate(port, role)
        frames = rates["port_transmit_frames" if role == "sender" else "port_receive_frames"]
        speed = figures.get("port_link_speed_bits_per_second")
        sends = role == "sender"
        fill = _share(figures["port_in_flight_frames"], figures["port_window_frames"]) if sends else "–"
        cells = [
            _bits(rate),
            f"{frames:.0f}",
            _share(rate, speed),
            f"{rates['port_busy_seconds']:.0%}" if sends else "–",
            f"{rates['port_lost_frames']:.0f}" if sends else "–",
            f"{figures['port_loss_ratio']:.1%}",
            fill,
            f"{figures['port_score']:.2f}" if sends else "–",
            f"{figures['port_send_interval_seconds'] * 1e6:.0f} µs" if sends else "–",
            f"{figures['port_rtt_seconds'] * 1e6:.0f} µs" if sends else "–",
        ]
        name = Text(port["name"], style="" if figures["port_usable"] else "red")
        table.add_row(name, Text(port["driver"]), *map(Text, cells))
    return table


# ------------------------------------------------------------------------------------------------------------ live


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Read single keys from the terminal, without an echo; its settings come back at the end."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(seconds: float) -> str:
    """A key that is pressed within this time, or ""."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return ""
    ready, _, _ = select.select([sys.stdin], [], [], max(seconds, 0))
    return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace") if ready else ""


def _instead(seen: Seen) -> str:
    """What is said where there are no rows."""
    if any(document["sides"] for document in seen.documents):
        return "the first rates come with the next look"
    return "" if seen.silent else "no Sender or Receiver of this user is open"


def _live(terminal: Any, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    sort, paused = 0, False
    older = newer = look()
    with _keys(), Live(console=terminal.console(), screen=True, auto_refresh=False) as live:
        due = time.monotonic() + interval
        while True:
            rows = rows_of(older.documents, newer.documents)
            body = view(rows, SORTS[sort]) if rows else Text(_instead(newer))
            state = "paused, " if paused else ""
            foot = f"{state}by {SORTS[sort]}   s: sort   p: pause   q: quit"
            missing = [Text(line, style="red") for line in newer.silent]
            live.update(Group(body, *missing, Text(foot, style="dim")), refresh=True)
            while (left := due - time.monotonic()) > 0:
                key = _key(left)
                if key == "q":
                    return
                if key == "s":
                    sort = (sort + 1) % len(SORTS)
                    break
                if key in ("p", " "):
                    paused = not paused
                    break
            if time.monotonic() >= due:
                if not paused:
                    older, newer = newer, look(patience=_PATIENCE)
                due = max(due, time.monotonic()) + interval
