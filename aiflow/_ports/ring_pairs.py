"""``ring:NAME``: the two ends of net_ring pairs within one process.

The mbufs themselves move from end to end, without a copy: never report their rate as bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiflow import _eal
from aiflow._system import threads
from aiflow.config import Endpoint
from aiflow.errors import ConfigError, PortError

__all__ = ["free_side", "give_back", "take"]

_SIDES = ("receiver", "sender")
_RING_SIZE = 512


@dataclass
class _Pairs:
    """All pairs of one name, and which sides are taken."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    taken: dict[str, bool] = field(default_factory=dict)


_by_name: dict[str, _Pairs] = {}
_lock = threads.unpatched("threading").Lock()


def take(endpoint: Endpoint, role: str, mempool: Any) -> list[Any]:
    """Take the ends of `role`; the first side of a name creates the rings.

    Parameters
    ----------
    endpoint : Endpoint
    role : {"sender", "receiver"}
    mempool : Mempool
        Pool of this side.

    Raises
    ------
    PortError
        If that side is taken.
    ConfigError
        If the other side has a different number of ports.
    """
    side = _SIDES.index(role)
    with _lock:
        named = _by_name.setdefault(endpoint.target, _Pairs())
        if named.taken.get(role):
            raise PortError(
                f"{endpoint}: another {role} of this process has it; close that one, or choose another name"
            )
        if named.pairs and len(named.pairs) != endpoint.nb_ports:
            raise ConfigError(f"{endpoint}: the other end has {len(named.pairs)} ports; ask for the same number")
        try:
            while len(named.pairs) < endpoint.nb_ports:
                label = f"ring:{endpoint.target}#{len(named.pairs)}"
                named.pairs.append(_eal.Port.open_ring_pair(label, mempool, nb_rxd=_RING_SIZE))
        except BaseException:
            _close(endpoint.target)
            raise
        named.taken[role] = True
        for pair in named.pairs:
            pair[side].adopt(mempool)
        return [pair[side] for pair in named.pairs]


def free_side(endpoint: Endpoint) -> str:
    """A side of the name that nothing has: the receiver's, else the sender's."""
    with _lock:
        named = _by_name.get(endpoint.target)
        return next((side for side in _SIDES if named is None or not named.taken.get(side)), _SIDES[0])


def give_back(endpoint: Endpoint, role: str) -> None:
    """Undo `take`: drop the frames that wait in this side; close the ports once both sides are given back.

    An interrupted call can be repeated: the side counts as taken until the end.
    """
    with _lock:
        named = _by_name.get(endpoint.target)
        if named is None or not named.taken.get(role):
            return
        for pair in named.pairs:
            pair[_SIDES.index(role)].drain()
        if not any(taken for other, taken in named.taken.items() if other != role):
            _close(endpoint.target)
        named.taken[role] = False


def _close(name: str) -> None:
    for pair in _by_name[name].pairs:
        for port in pair:
            port.close()
    del _by_name[name]
