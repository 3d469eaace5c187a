"""The figures of this process for OpenTelemetry: the same table as for Prometheus, as observable instruments.

>>> import aiflow.otel
>>> aiflow.otel.observe()  # doctest: +SKIP

Needs the extra ``otel``. Which exporter sends them where is configured as for the rest of the program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from aiflow._observe.catalogue import FIGURES, Figure
from aiflow._observe.exposition import samples
from aiflow._observe.snapshot import snapshot
from aiflow.errors import ConfigError

__all__ = ["observe"]

_FRESH = 0.2  # seconds: one collection asks for all instruments, one after the other
_UNITS = {"bytes": "By", "seconds": "s", "bits_per_second": "bit/s", "ratio": "1", "": "1"}  # UCUM


def observe(meter_provider: Any = None) -> None:
    """Register an instrument for each figure: ``aiflow.slices``, ``aiflow.port.transmit.bytes`` and so on.

    Call it once in a process. Each collection takes one snapshot of all Senders and Receivers that are open then.

    Parameters
    ----------
    meter_provider : opentelemetry.metrics.MeterProvider, optional
        Default: the global one.

    Raises
    ------
    ConfigError
        OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError:
        raise ConfigError("aiflow.otel needs OpenTelemetry; install with: pip install 'aiflow-dpdk[otel]'") from None
    meter = metrics.get_meter("aiflow", meter_provider=meter_provider)
    taken: tuple[float, dict[str, Any]] | None = None

    def newest() -> dict[str, Any]:
        nonlocal taken
        now = time.monotonic()
        if taken is None or now - taken[0] > _FRESH:
            taken = now, snapshot()
        return taken[1]

    def reader(figure: Figure) -> Callable[[Any], Iterable[metrics.Observation]]:
        return lambda _: [metrics.Observation(value, labels) for labels, value in samples(figure, newest())]

    for figure in FIGURES:
        create = meter.create_observable_counter if figure.kind == "counter" else meter.create_observable_gauge
        name = f"aiflow.{figure.name.replace('_', '.')}"
        create(name, [reader(figure)], unit=_UNITS[figure.unit], description=figure.help)
