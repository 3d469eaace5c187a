"""A wire between a Sender and a Receiver of this process, on which a test cuts, tags and counts frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from aiflow import _dp_testing, _eal
from aiflow._ports import ring_pairs
from aiflow.config import parse_endpoint

Change = Callable[[bytes], bytes]
ROOM = 9216


class Wiretap:
    """Joins two ``ring:`` endpoints, `sender` and `receiver`; a context manager.

    Parameters
    ----------
    name : str
        Of this test's own.
    change : callable
        Maps each frame, either way, to the frame that goes on.
    cuts : callable, optional
        Offsets that a frame is cut at, for its length: it goes on as a chain of mbufs.
    vlan_tci : int, optional
        The frames go on with this tag taken out, as by a driver.
    """

    def __init__(
        self,
        name: str,
        change: Change = bytes,
        cuts: Callable[[int], Iterable[int]] | None = None,
        vlan_tci: int | None = None,
    ) -> None:
        self.sender, self.receiver = f"ring:{name}-a", f"ring:{name}-b"
        self.change, self.cuts, self.vlan_tci = change, cuts, vlan_tci
        self.passed = 0
        self._ends = [(parse_endpoint(self.sender), "receiver"), (parse_endpoint(self.receiver), "sender")]
        self._pool = _eal.Mempool("wiretap", 4095, ROOM, own_memory=True)
        self._ports = [ring_pairs.take(endpoint, role, self._pool)[0] for endpoint, role in self._ends]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopped.is_set():
            moved = sum(self._pass(*self._ports[::step]) for step in (1, -1))
            if not moved:
                self._stopped.wait(0.0005)

    def _pass(self, come: _eal.Port, go: _eal.Port) -> int:
        frames = _dp_testing.drain(come)
        for frame in frames:
            changed = self.change(frame)
            cuts = None if self.cuts is None else list(self.cuts(len(changed)))
            while not self._stopped.is_set() and not _dp_testing.inject(
                go, [changed], cuts=cuts, vlan_tci=self.vlan_tci
            ):
                self._stopped.wait(0.0005)
        self.passed += len(frames)
        return len(frames)

    def __enter__(self) -> Wiretap:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()
        for endpoint, role in self._ends:
            ring_pairs.give_back(endpoint, role)
        self._ports.clear()
