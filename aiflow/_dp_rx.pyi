"""Data plane of a Receiver."""

from typing import Any

from aiflow._dp_agent import Agent
from aiflow._dp_incoming import Incoming, Store

class RxAgent(Agent):
    mbuf_bytes: int
    pools: Any
    def __init__(
        self,
        name: str,
        store: Store,
        keeps_mbufs: bool,
        peer_timeout: float,
        interval: float = 0.1,
        confirms: bool = False,
    ) -> None: ...
    def samples(self) -> tuple[tuple[int, list[dict[str, int]]], tuple[int, list[dict[str, int]]]] | None: ...
    @property
    def store(self) -> Store: ...
    @property
    def slices(self) -> list[Incoming]: ...
    @property
    def finished(self) -> bool: ...
    @property
    def starving(self) -> tuple[int, float]: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    @property
    def nb_sessions(self) -> int: ...
    def pop(self, into: list[Incoming] | None = None) -> Incoming | None: ...
    def close(self, reason: bytes = ...) -> None: ...
