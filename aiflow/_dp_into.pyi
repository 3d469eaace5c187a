"""Arrays that slices are received into."""

from collections.abc import Callable
from typing import Any

from aiflow._dp_incoming import Store

MOST_STREAMS: int

class Offer:
    key: object
    caller: Callable[[], object] | None
    wanted: bool
    def __init__(
        self, store: Store, streams: list[tuple[bytes, bytes, bytes, int, int, int]], arrays: list[Any]
    ) -> None: ...
    @property
    def kept(self) -> list[Any]: ...
    @property
    def bound(self) -> bool: ...

class Block:
    def __init__(self, store: Store, nbytes: int) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
