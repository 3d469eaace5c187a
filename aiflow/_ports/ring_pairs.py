"""``ring:NAME``: the two ends of net_ring pairs within one process.

The same mbufs go from end to end: never to be reported as bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiflow import _eal
from aiflow._system import threads
from aiflow.config import Endpoint
from aiflow.errors import ConfigError, PortError

__all__ = ["give_back", "take"]

_SIDES = ("receiver", "sender")
_RING_SIZE = 512


@dataclass
class _Ring:
    """All pairs of one name, and who has which side."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    taken: dict[str, bool] = field(default_factory=dict)


_rings: dict[str, _Ring] = {}
_lock = threads.unpatched("threading").Lock()


def take(endpoint: Endpoint, role: str, mempool: Any) -> list[Any]:
    """The ends of `role`; whoever comes first makes the rings.

    Parameters
    ----------
    endpoint : Endpoint
    role : {"sender", "receiver"}
    mempool : Mempool
        Of the side that takes.

    Raises
    ------
    PortError
        If that side is taken.
    ConfigError
        If the other side has another number of ports.
    """
    side = _SIDES.index(role)
    with _lock:
        ring = _rings.setdefault(endpoint.target, _Ring())
        if ring.taken.get(role):
            raise PortError(
                f"{endpoint}: another {role} of this process has it; close that one, or choose another name"
            )
        if ring.pairs and len(ring.pairs) != endpoint.nb_ports:
            raise ConfigError(f"{endpoint}: the other end has {len(ring.pairs)} ports; ask for as many")
        try:
            while len(ring.pairs) < endpoint.nb_ports:
                label = f"ring:{endpoint.target}#{len(ring.pairs)}"
                ring.pairs.append(_eal.Port.open_ring_pair(label, mempool, nb_rxd=_RING_SIZE))
        except BaseException:
            _close(endpoint.target)
            raise
        ring.taken[role] = True
        for pair in ring.pairs:
            pair[side].adopt(mempool)
        return [pair[side] for pair in ring.pairs]


def give_back(endpoint: Endpoint, role: str) -> None:
    """Undo `take`: what waits to be received is dropped; the rings go when both sides have been given back.

    Ours last: what an interrupt leaves undone, the next call does.
    """
    with _lock:
        ring = _rings.get(endpoint.target)
        if ring is None or not ring.taken.get(role):
            return
        for pair in ring.pairs:
            pair[_SIDES.index(role)].drain()
        if not any(taken for other, taken in ring.taken.items() if other != role):
            _close(endpoint.target)
        ring.taken[role] = False


def _close(name: str) -> None:
    for pair in _rings[name].pairs:
        for port in pair:
            port.close()
    del _rings[name]
