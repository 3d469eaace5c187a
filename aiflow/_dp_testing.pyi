from collections.abc import Iterable

from aiflow._eal import Port

def inject(
    port: Port,
    frames: Iterable[bytes],
    nb_segs: int = 1,
    *,
    cuts: Iterable[int] | None = None,
    vlan_tci: int | None = None,
) -> int: ...
def drain(port: Port) -> list[bytes]: ...
