"""Memory of receivers that local peers share."""

MOST_SHARED: int

def new_writer() -> int: ...

class Sharing:
    writer: int
    def take(self, fd: int, epoch: int, nbytes: int, warm: int) -> bool: ...
    @property
    def epochs(self) -> list[int]: ...
