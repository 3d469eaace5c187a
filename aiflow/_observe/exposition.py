"""The figures as Prometheus metrics: a collector over the same table, and an HTTP server for it.

The package prometheus_client does both. It comes with the extra ``metrics``, and is imported here only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from aiflow._observe.catalogue import FIGURES, Figure, of_level
from aiflow._observe.snapshot import snapshot
from aiflow._system import log, threads
from aiflow.config import parse_listen
from aiflow.errors import ConfigError

__all__ = ["INSTALL", "Collector", "Exporter", "forget", "note", "samples"]

INSTALL = "install with: pip install 'aiflow-dpdk[metrics]'"
"""Advice for error messages."""

_SIDE = ("pid", "role", "name", "number")
_LABELS = {"side": _SIDE, "peer": (*_SIDE, "peer"), "port": (*_SIDE, "port", "driver")}


class Collector:
    """A collector for prometheus_client: each scrape takes one snapshot.

    Parameters
    ----------
    documents : callable
        Returns the snapshots of the processes to show.
    """

    def __init__(self, documents: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self._documents = documents

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        documents = list(self._documents())
        for figure in FIGURES:
            family = _family(figure)
            for document in documents:
                for labels, value in samples(figure, document):
                    family.add_metric([labels.get(key, "") for key in _keys(figure)], value)  # an empty label is none
            if family.samples:
                yield family

    def describe(self) -> Iterator[Any]:
        """Yield the families without samples: registering takes no snapshot."""
        return map(_family, FIGURES)


def _family(figure: Figure) -> Any:
    from prometheus_client import core

    kind = core.CounterMetricFamily if figure.kind == "counter" else core.GaugeMetricFamily
    return kind(f"aiflow_{figure.name}", f"{figure.help}.", labels=_keys(figure))


def _keys(figure: Figure) -> list[str]:
    return [*_LABELS[figure.level], *([figure.label] if figure.label else [])]


def samples(figure: Figure, document: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], float]]:
    """The values of a figure in a snapshot, with their labels.

    Parameters
    ----------
    figure : Figure
    document : mapping
        A snapshot.
    """
    for side in document["sides"]:
        role: str = side["role"]
        whose = {"pid": str(document["pid"]), "role": role, "name": side["name"]}
        if side["number"] > 1:
            whose["number"] = str(side["number"])
        if figure not in of_level(figure.level, role):
            continue
        views = [side] if figure.level == "side" else side[f"{figure.level}s"]
        for view in views:
            labels = dict(whose)
            if figure.level != "side":
                labels[figure.level] = view["name"]
            if figure.level == "port":
                labels["driver"] = view["driver"]
            value = view["figures"].get(figure.name)
            if isinstance(value, Mapping):
                yield from (({**labels, figure.label: str(key)}, each) for key, each in value.items())
            elif value is not None:
                yield labels, value


class Exporter:
    """An HTTP server for Prometheus, with a registry of its own: only aiflow's figures are in it.

    Parameters
    ----------
    listen : int or str
        See `aiflow.config.parse_listen`. Port 0 takes a free one.
    documents : callable
        Returns the snapshots to show.
    what : str
        The option that `listen` comes from, for errors.

    Raises
    ------
    ConfigError
        prometheus_client is not installed, or the address cannot be used.

    Attributes
    ----------
    address : str
    port : int
    """

    def __init__(
        self, listen: int | str, documents: Callable[[], Iterable[dict[str, Any]]], what: str = "metrics_port="
    ) -> None:
        self.address, port = parse_listen(listen, what)
        try:
            import prometheus_client
        except ImportError:
            raise ConfigError(f"metrics need prometheus_client; {INSTALL}") from None
        registry = prometheus_client.CollectorRegistry(auto_describe=False)
        registry.register(Collector(documents))
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, self.address, registry)
        except OSError as exc:
            raise ConfigError(
                f"{what}{listen!r}: {exc.strerror or exc}; choose a free port, and an address of this host"
            ) from exc
        self.port: int = self._server.server_address[1]
        log.logger("observe").info("metrics at http://%s:%d/metrics", self.address, self.port)

    def close(self) -> None:
        """Stop serving. Idempotent, also after an interrupt."""
        if self._thread.native_id == threads.unpatched("threading").get_native_id():
            # It collects a Sender. A shutdown here would wait for itself.
            threads.start(self.close, "aiflow-metrics-end")
            return
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def is_closed(self) -> bool:
        """Whether its port is free. After `close` in the server's own thread, that takes a moment."""
        return not self._thread.is_alive() and self._server.socket.fileno() < 0

    def abandon(self) -> None:
        """Close a forked child's copy of the socket: its parent goes on."""
        self._server.socket.close()


_exporters: dict[tuple[str, int], Exporter] = {}
_users: dict[tuple[str, int], set[int]] = {}
_closing: list[Exporter] = []  # not needed any more; an interrupt may leave one here, which the next call closes
_lock = threads.unpatched("threading").RLock()


def note(engine: Any, listen: int | str | None) -> None:
    """Serve this process's figures while the Sender or Receiver is open; several share one server.

    Parameters
    ----------
    engine : aiflow._engine.Engine
    listen : int or str, optional
        ``metrics_port=``; None does nothing.

    Raises
    ------
    ConfigError
        As `Exporter`.
    """
    if listen is None:
        return
    key = parse_listen(listen)
    _close_ended()  # another thread may be at it, and the port is taken until then
    with _lock:
        _users.setdefault(key, set()).add(id(engine))  # first: after an error or interrupt, `forget` finds it
        if key not in _exporters:
            _exporters[key] = Exporter(listen, lambda: [snapshot()])


def forget(engine: Any) -> None:
    """The last user of a server closes it. Idempotent, also after an interrupt."""
    with _lock:
        for key, users in list(_users.items()):
            users.discard(id(engine))
            if not users:
                if key in _exporters:
                    _closing.append(_exporters[key])
                    del _exporters[key]
                del _users[key]
    _close_ended()


def _close_ended() -> None:
    for exporter in list(_closing):  # without the lock: a thread of the server may collect a Sender and come here
        exporter.close()
        if exporter.is_closed:  # else the next call waits for that
            with contextlib.suppress(ValueError):
                _closing.remove(exporter)


def _forked() -> None:
    """Runs in every forked child: the server is the parent's."""
    global _lock
    _lock = threads.unpatched("threading").RLock()
    for exporter in (*_exporters.values(), *_closing):
        exporter.abandon()
    _exporters.clear()
    _closing.clear()
    _users.clear()


os.register_at_fork(after_in_child=_forked)
