from typing import Final, NamedTuple, TypedDict, Unpack

from _typeshed import ReadableBuffer

HEADER: Final[int]
MAX_FRAME: Final[int]
MIN_PATH_FRAME: Final[int]
VERSION: Final[int]
ETHERTYPE: Final[int]
KINDS: Final[dict[str, int]]
DROPS: Final[tuple[str, ...]]

class Frame(NamedTuple):
    kind: int
    element: int
    seq: int
    timestamp_ns: int
    end: int
    session: int
    slice: int
    path: int
    number: int
    payload: bytes
    src: bytes
    crc: int

def parse(frame: ReadableBuffer, mac: bytes, max_frame: int = ...) -> Frame | str: ...

class _Fields(TypedDict, total=False):
    element: int
    seq: int
    timestamp_ns: int
    end: int
    session: int
    slice: int
    path: int
    number: int

def seal(kind: int, payload: ReadableBuffer = b"", *, dst: bytes, src: bytes, **fields: Unpack[_Fields]) -> bytes: ...
def crc32c(buffer: ReadableBuffer, crc: int = 0) -> int: ...
def crc32c_shift(crc: int, nbytes: int) -> int: ...
