"""A plot for notebooks: the rate of each port, drawn while it changes. The extra ``notebook`` has what it needs."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aiflow.config import parse_seconds
from aiflow.report import PortTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LivePlot", "live"]

NEEDS = "a live plot needs IPython and matplotlib: pip install 'aiflow-dpdk[notebook]'"


class HasPorts(Protocol):
    """A `Sender` or a `Receiver`."""

    name: str

    @property
    def port_table(self) -> PortTable:
        """A snapshot of its ports."""


class LivePlot:
    """The rates of ports over time, as `live` returns them.

    Attributes
    ----------
    times : list of float
        Seconds since the plot began, one for each sample.
    rates : dict of str to list of float
        Label of each port → bits per second, headers included, at `times`. NaN before the port came up.
    """

    def __init__(self, sides: tuple[HasPorts, ...], span: float, interval: float) -> None:
        self._sides = list(zip(_told_apart([side.name for side in sides]), sides, strict=True))
        self._interval = interval
        self._samples: deque[tuple[float, dict[str, float]]] = deque(maxlen=max(2, round(span / interval)))
        self._before: dict[str, tuple[float, int]] = {}  # label → when, and the port's bytes then
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="aiflow-live", daemon=True)
        self._handle: Any = None

    @property
    def times(self) -> list[float]:
        """Seconds since the plot began, one for each sample."""
        return self._lines()[0]

    @property
    def rates(self) -> dict[str, list[float]]:
        """Label of each port → bits per second at `times`."""
        return self._lines()[1]

    def _lines(self) -> tuple[list[float], dict[str, list[float]]]:
        """Return `times` and `rates` of the same samples: the thread may add one between the two."""
        samples = list(self._samples)
        labels = dict.fromkeys(label for _, rates in samples for label in rates)
        rates = {label: [rates.get(label, float("nan")) for _, rates in samples] for label in labels}
        return [at for at, _ in samples], rates

    def _sample(self) -> None:
        """Take one sample: the bytes of each port since the sample before."""
        rates = {}
        now = time.monotonic()  # one for all ports: rates times times are the bytes that went over them
        for name, side in self._sides:
            for row in side.port_table:
                label = f"{row.name} of {name}" if len(self._sides) > 1 else row.name
                then, nbytes = self._before.get(label, (now, row.nbytes))
                self._before[label] = now, row.nbytes
                if now > then:  # a port that was opened again counts from 0
                    rates[label] = 8 * max(0, row.nbytes - nbytes) / (now - then)
        self._samples.append((now - self._began, rates))

    def figure(self) -> Figure:
        """Draw what was sampled.

        Returns
        -------
        matplotlib.figure.Figure
            It is yours: change it, or save it.
        """
        from matplotlib.figure import Figure  # no pyplot: it keeps figures, and is not for threads

        times, rates = self._lines()
        top = max((rate for line in rates.values() for rate in line if rate == rate), default=0.0)
        power, unit = next(
            (p, u) for p, u in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")) if top >= p or p == 1e3
        )
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for label, line in rates.items():
            axes.plot(times, [rate / power for rate in line], label=label, linewidth=1.6)
        axes.set_xlabel("seconds")
        axes.set_ylabel(unit)
        axes.set_ylim(0, 1.3 * top / power or 1.0)  # the legend stands above the lines
        axes.grid(alpha=0.3)
        if rates:
            axes.legend(loc="upper left", fontsize="small", ncols=2)
        return figure

    def _picture(self) -> Any:
        from IPython.display import Image

        self.figure().savefig(file := io.BytesIO(), format="png", dpi=110)
        return Image(file.getvalue(), alt="rate of each port over time")

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()
            self._handle.update(self._picture())

    def __enter__(self) -> LivePlot:
        from IPython.display import DisplayHandle

        self._began = time.monotonic()
        self._sample()
        self._handle = DisplayHandle()
        self._handle.display(self._picture())
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self._handle.update(self._picture())


def _told_apart(names: list[str]) -> list[str]:
    """Number names that occur before: names need not differ, and may be those of a port's two ends."""
    return [
        f"{name} ({number})" if (number := names[: at + 1].count(name)) > 1 else name for at, name in enumerate(names)
    ]


def live(*sides: HasPorts, span: float = 60.0, interval: float = 0.5) -> LivePlot:
    """Draw the rate of each port in the cell, while the ``with`` block runs.

    Parameters
    ----------
    *sides : Sender or Receiver
        Whose ports to draw.
    span : float
        Seconds that the plot shows, the newest ones.
    interval : float
        Seconds from one drawing to the next. A drawing takes some 50 ms of a core, in a thread of its own.

    Returns
    -------
    LivePlot
        A context manager. The last drawing stays in the cell.

    Raises
    ------
    ImportError
        IPython or matplotlib is not installed.
    ConfigError
        A time is not a positive number.

    Examples
    --------
    >>> with aiflow.notebook.live(tx):          # doctest: +SKIP
    ...     for images in source:
    ...         tx.send(images)
    """
    try:
        import IPython.display  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return LivePlot(sides, parse_seconds(span, "span"), parse_seconds(interval, "interval"))
