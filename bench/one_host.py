"""One copy on a host: `local:` beside iceoryx2, zenoh, TCP, pyzmq and memcpy, in pairs, as four tables.

    python bench/one_host.py [copy cpu senders small] [--pairs 10] [--before TREE] [--out bench-results] [--judge]

| Table | |
|---|---|
| copy | the demo slice from arrays to arrays, and loans from `send` to the array in hand |
| cpu | CPU seconds per GB of that slice, of both sides and of the receiver; `--before`: beside another built tree |
| senders | several senders into one receiver, beside one sender |
| small | rows of 64 B and 4 KB, and 1 KB there and back with both sides polling |

All contestants of a case are open at the same time and take turns in changing order, so each turn is a pair with every
peer. Ratios are medians of pairs, for latencies quantiles of all calls. Their 95 % intervals come from pairs drawn with
replacement. `--judge` ends with 1 when a target is missed. `--tiny` shows only that everything runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from contest import IN_A_ROW, BusyMeter, Conversation, Handover, Link, Round
from intervals import Median, of_pairs, of_quantiles
from loads import Load, demo, rows
from many_senders import Senders
from other_tree import Tree, TreeRound
from peers import missing

ROOT = Path(__file__).resolve().parents[1]
OURS = "aiflow"
TABLES = {
    "copy": "1. One copy: the demo slice, and loans",
    "cpu": "2. CPU seconds per GB of the demo slice",
    "senders": "3. Several senders into one receiver, elements of 2 MB",
    "small": "4. Small elements, and calls",
}
WAITS = {
    OURS: "spins for 20 µs, yields for 80 µs, then sleeps; polls only in the loans and the calls",
    "iceoryx2": "polls and yields the core between two looks",
    "zenoh": "sleeps; threads of the library carry",
    "TCP sockets": "sleeps in the system calls",
    "pyzmq ipc": "sleeps; a thread of the library carries",
    "Arrow Flight": "sleeps; threads of the library carry; the receiver keeps the library's memory",
    "memcpy": "nothing to wait for: the sender's core copies",
}
COPY_TARGETS = {"iceoryx2": 1.2, "zenoh": 2.0, "TCP sockets": 2.5, "pyzmq ipc": None, "memcpy": 0.9}
ROW_PEERS = ("pyzmq ipc", "iceoryx2", "TCP sockets", "zenoh", "Arrow Flight")
LOAN_TARGET, LOAN_GROWTH = 1.0, 2.0  # p50 beside iceoryx2's; p50 of the largest loan ÷ that of the smallest
CPU_TARGET, BEFORE_TARGET = 0.7, 0.3
SENDERS_TARGET = 0.95
SLOW_S = 0.5  # seconds of a slice from which a peer has fewer in a row
BUSY = 0.05  # share of the machine used by others that makes the figures weak
KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Sizes:
    """What is carried. `loans` has, for each size, the calls of a round, with caches warm and of filled loans."""

    images: int
    loans: dict[int, tuple[int, int]]
    senders: tuple[int, ...]
    element: int
    elements: int
    rows: dict[int, int]
    calls: int


FULL = Sizes(
    images=512,
    loans={4 * KB: (300, 100), MB: (100, 30), 136_000_000: (20, 4)},
    senders=(2, 4, 8),
    element=2 * MB,
    elements=16,
    rows={64: 12_800_000, 4096: 1 << 27},
    calls=1000,
)
TINY = Sizes(
    images=4,
    loans={4 * KB: (20, 5), 64 * KB: (10, 5), MB: (5, 2)},
    senders=(2,),
    element=2 * MB,
    elements=1,
    rows={64: 64_000, 4096: MB},
    calls=50,
)
SLICES = 16  # of a round, of all senders together


@dataclass(frozen=True)
class Line:
    """A line of a table: both sides' medians, and their ratio. `least` says which way the target is meant."""

    what: str
    beside: str
    ours: float
    theirs: float
    unit: str
    ratio: Median
    target: float | None = None
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether the ratio is on the right side of its target."""
        if self.target is None:
            return True
        return self.ratio.median >= self.target if self.least else self.ratio.median <= self.target

    def cells(self) -> list[str]:
        """Return the cells of the table's row."""
        ratio, target = self.ratio, "—"
        if self.target is not None:
            target = f"{'≥' if self.least else '≤'} {self.target:g}, {'met' if self.met else 'MISSED'}"
        values = [f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in (self.ours, self.theirs)]
        interval = f"{ratio.low:.3g} – {ratio.high:.3g}"
        return [self.what, self.beside, *values, self.unit, f"**{ratio.median:.3g}**", interval, target]


@dataclass(frozen=True)
class Setting:
    """What holds for every case."""

    sizes: Sizes
    pairs: int
    cores: tuple[int, int]
    before: Path | None


Shares = dict[str, float]
"""Case → share of the machine that others used."""


def available(names: Iterable[str]) -> list[str]:
    """Return the peers that are installed, and say which are not."""
    found = []
    for name in names:
        if why := missing(name):
            print(f"{name} is left out: {why}", file=sys.stderr)
        else:
            found.append(name)
    return found


def in_turn(rounds: Sequence[Callable[[], object]], pairs: int, pids: list[int]) -> float:
    """Run all rounds, `pairs` times, in changing order. Return the share of the machine that others used."""
    busy = BusyMeter(pids)
    for number in range(pairs):
        for one in rounds if number % 2 else reversed(rounds):
            one()
    return busy.others()


def carried(load: Load, names: Sequence[str], setting: Setting) -> tuple[dict[str, list[Round]], float]:
    """Return the rounds of each contestant, and the share of others."""
    with contextlib.ExitStack() as life:
        links = [life.enter_context(Link(name, load, setting.cores)) for name in names]
        rounds = [_settled(link) for link in links]
        others = in_turn(rounds, setting.pairs, [pid for link in links for pid in link.pids])
        return {link.name: link.rounds for link in links}, others


def _settled(link: Link) -> Callable[[], object]:
    """Warm a link up, three slices. Return its round."""
    link.round(2)
    begin = time.monotonic()
    link.round(1)
    in_a_row = IN_A_ROW if time.monotonic() - begin < SLOW_S else 2
    link.rounds.clear()
    return partial(link.round, in_a_row)


def _faster(what: str, peer: str, found: dict[str, list[Round]], amount: float, unit: str, target: Any) -> Line:
    """Return the line of our rate beside a peer's."""
    ours, theirs = ([one.seconds for one in found[name]] for name in (OURS, peer))
    our_rate, rate = (amount / statistics.median(seconds) for seconds in (ours, theirs))
    return Line(what, peer, our_rate, rate, unit, of_pairs(theirs, ours), target)


def _cheaper(
    what: str, peer: str, ours: Sequence[Round | TreeRound], theirs: Sequence[Round | TreeRound], gb: float, end: str
) -> Line:
    """Return the line of our CPU time beside a peer's. `end` is an attribute of a round."""
    our_cpu, cpu = ([getattr(one, end) / gb for one in rounds] for rounds in (ours, theirs))
    medians = statistics.median(our_cpu), statistics.median(cpu)
    return Line(what, peer, medians[0], medians[1], "CPU s/GB", of_pairs(our_cpu, cpu), least=False)


class Demo:
    """The demo slice's rounds, which two tables share: carried once."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.load = setting, demo(setting.sizes.images)
        self._found: tuple[dict[str, list[Round]], float] | None = None

    def carried(self) -> tuple[dict[str, list[Round]], float]:
        """Return the rounds of each contestant, and the share of others."""
        if self._found is None:
            self._found = carried(self.load, [OURS, *available(COPY_TARGETS)], self.setting)
        return self._found


def copy(setting: Setting, slices: Demo) -> tuple[list[Line], Shares]:
    """Return the lines of the first table."""
    found, others = slices.carried()
    gb = slices.load.nbytes / 1e9
    what = f"{setting.sizes.images} images, {slices.load.nbytes / 1e6:.0f} MB, arrays to arrays"
    lines = [_faster(what, peer, found, gb, "GB/s", COPY_TARGETS[peer]) for peer in found if peer != OURS]
    loaned, shares = loans(setting)
    return lines + loaned, {"slice": others, "loans": shares}


def loans(setting: Setting) -> tuple[list[Line], float]:
    """Return the lines of the loans, and the share of others."""
    names, calls = [OURS, *available(["iceoryx2"])], setting.sizes.loans
    with contextlib.ExitStack() as life:
        pairs = {
            (name, nbytes): life.enter_context(Handover(name, nbytes, setting.cores))
            for nbytes in calls
            for name in names
        }

        def both_kinds(pair: Handover, warm: int, filled: int) -> None:
            pair.round(filled, True)
            pair.round(warm, False)

        rounds = [partial(both_kinds, pair, *calls[nbytes]) for (_, nbytes), pair in pairs.items()]
        for one in rounds:
            one()
        for pair in pairs.values():
            pair.rounds.clear()
            pair.filled.clear()
        others = in_turn(rounds, setting.pairs, [pid for pair in pairs.values() for pid in pair.pids])
    small, large = min(calls), max(calls)
    ours = "loan" if pairs[OURS, small].about["lends"] else "array, copied (no loans here)"
    lines = []
    for name in names[1:]:
        for nbytes in calls:
            mine, its = pairs[OURS, nbytes], pairs[name, nbytes]
            what = f"{ours}, {_size(nbytes)}, p50"
            lines.append(_sooner(f"{what}, caches warm", name, mine.rounds, its.rounds))
            lines.append(_sooner(f"{what}, just filled", name, mine.filled, its.filled))
    for name in names:
        what = f"{ours if name == OURS else name}, {_size(large)}, p50, caches warm"
        target = LOAN_GROWTH if name == OURS else None
        lines.append(
            _sooner(what, f"its own {_size(small)}", pairs[name, large].rounds, pairs[name, small].rounds, target)
        )
    return lines, others


def _size(nbytes: int) -> str:
    return f"{nbytes // KB} KB" if nbytes < MB else f"{nbytes / MB if nbytes % MB == 0 else nbytes / 1e6:.0f} MB"


def _sooner(
    what: str,
    beside: str,
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    target: float | None = LOAN_TARGET,
) -> Line:
    """Return the line of two latencies at p50."""
    a, b, ratio = of_quantiles(ours, theirs, 0.5)
    return Line(what, beside, a * 1e6, b * 1e6, "µs", ratio, target, least=False)


def cpu(setting: Setting, slices: Demo) -> tuple[list[Line], Shares]:
    """Return the lines of the second table."""
    gb = slices.load.nbytes / 1e9
    lines, shares = [], {}
    if setting.before:
        lines, shares["before"] = beside_before(setting.before, setting, gb)
    found, shares["slice"] = slices.carried()
    libraries = [name for name in found if name not in (OURS, "memcpy")]
    libraries.sort(key=lambda name: statistics.median(one.cpu for one in found[name]))
    for place, name in enumerate(libraries):
        both = _cheaper("both sides", name, found[OURS], found[name], gb, "cpu")
        if place == 0:
            both = replace(both, beside=f"{name}, the best", target=CPU_TARGET)
        lines += [both, _cheaper("receiver", name, found[OURS], found[name], gb, "cpu_sink")]
    return lines, shares


def beside_before(before: Path, setting: Setting, gb: float) -> tuple[list[Line], float]:
    """Return the lines of this tree's CPU time beside that of the tree before, and the share of others."""
    with contextlib.ExitStack() as life:
        then, now = (life.enter_context(Tree(tree, setting.sizes.images, setting.cores)) for tree in (before, ROOT))
        for tree in (then, now):
            tree.round()
            tree.rounds.clear()
        others = in_turn([then.round, now.round], setting.pairs, [*then.pids, *now.pids])
    beside = "the tree before"
    receiver = _cheaper("receiver", beside, now.rounds, then.rounds, gb, "cpu_sink")
    both = _cheaper("both sides", beside, now.rounds, then.rounds, gb, "cpu")
    return [replace(receiver, target=BEFORE_TARGET), both], others


def senders(setting: Setting, _slices: Demo) -> tuple[list[Line], Shares]:
    """Return the lines of the third table. One sender and several send the same slices, in turn."""
    sizes = setting.sizes
    load = Load("elements of 2 MB", (sizes.element,) * sizes.elements)
    lines, shares = [], {}
    for count in sizes.senders:
        with (
            Senders(1, load, SLICES, setting.cores) as one,
            Senders(count, load, SLICES, setting.cores) as several,
        ):
            for side in (one, several):
                side.round()
                side.rounds.clear()
                side.cpu.clear()
            shares[f"{count} senders"] = in_turn([one.round, several.round], setting.pairs, [*one.pids, *several.pids])
        gb = SLICES * load.nbytes / 1e9
        total, alone = (gb / statistics.median(side.rounds) for side in (several, one))
        ratio = of_pairs(one.rounds, several.rounds)
        lines.append(Line(f"{count} senders, total", "one sender", total, alone, "GB/s", ratio, SENDERS_TARGET))
        used, used_alone = (statistics.median(side.cpu) / gb for side in (several, one))
        ratio = of_pairs(several.cpu, one.cpu)
        lines.append(Line(f"{count} senders, all processes", "one sender", used, used_alone, "CPU s/GB", ratio))
    return lines, shares


def small(setting: Setting, _slices: Demo) -> tuple[list[Line], Shares]:
    """Return the lines of the fourth table."""
    lines, shares = [], {}
    for nbytes, total in setting.sizes.rows.items():
        load = rows(nbytes, total)
        found, shares[f"{nbytes} B"] = carried(load, [OURS, *available(ROW_PEERS)], setting)
        peers = [name for name in found if name != OURS]
        peers.sort(key=lambda name: statistics.median(one.seconds for one in found[name]))
        for name in peers:
            line = _faster(f"rows of {nbytes} B", name, found, len(load.sizes) / 1e6, "M rows/s", None)
            lines.append(replace(line, beside=f"{name}, the best") if name == peers[0] else line)
    names = [OURS, *available(["iceoryx2"])]
    with contextlib.ExitStack() as life:
        pairs = [life.enter_context(Conversation(name, KB, True, setting.cores)) for name in names]
        for pair in pairs:
            pair.round(setting.sizes.calls)
            pair.rounds.clear()
        rounds = [partial(pair.round, setting.sizes.calls) for pair in pairs]
        shares["calls"] = in_turn(rounds, setting.pairs, [pid for pair in pairs for pid in pair.pids])
        seconds = [[one.seconds for one in pair.rounds] for pair in pairs]
    for theirs in seconds[1:]:
        lines.append(_sooner("1 KB there and back, polling, p50", "iceoryx2", seconds[0], theirs, None))
    return lines, shares


CASES: dict[str, Callable[[Setting, Demo], tuple[list[Line], Shares]]] = {
    "copy": copy,
    "cpu": cpu,
    "senders": senders,
    "small": small,
}


def table(title: str, lines: Sequence[Line], shares: Shares) -> str:
    """Return a table in Markdown."""
    text = [
        f"### {title}\n",
        "| what | beside | aiflow | it | unit | aiflow ÷ it | 95 % | target |",
        "|---|---|--:|--:|---|--:|---|---|",
        *(f"| {' | '.join(line.cells())} |" for line in lines),
    ]
    others = ", ".join(f"{case} {share:.0%}" for case, share in shares.items())
    weak = "; above 5 % the figures are weak" if max(shares.values()) > BUSY else ""
    return "\n".join([*text, f"\nothers: {others}{weak}\n"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: {', '.join(TABLES)}")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout, built in place, for the table cpu")
    parser.add_argument("--out", type=Path, help="directory for one_host.json and .md")
    parser.add_argument("--judge", action="store_true", help="end with 1 when a target is missed")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: figures mean nothing")
    options = parser.parse_args(arguments)
    for name in options.tables:
        if name not in TABLES:
            parser.error(f"{name!r} is not one of {', '.join(TABLES)}")
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    numbers = sorted(os.sched_getaffinity(0))
    setting = Setting(TINY if options.tiny else FULL, options.pairs, (numbers[0], numbers[-1]), options.before)
    slices, document, texts = Demo(setting), {}, []
    for name in options.tables or TABLES:
        lines, shares = CASES[name](setting, slices)
        texts.append(table(TABLES[name], lines, shares))
        print(texts[-1], flush=True)
        document[name] = {"lines": [{**asdict(line), "met": line.met} for line in lines], "others": shares}
    texts.append("\n".join(["How each waits:", *(f"- {name}: {how}" for name, how in WAITS.items())]))
    print(texts[-1])
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "one_host.json").write_text(json.dumps(document, indent=1) + "\n")
        (options.out / "one_host.md").write_text("\n".join(texts) + "\n")
    met = all(line["met"] for found in document.values() for line in found["lines"])
    return 1 if options.judge and not met else 0


if __name__ == "__main__":
    sys.exit(main())
