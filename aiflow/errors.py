"""Every exception aiflow raises. Each message says what went wrong and what to do next."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "AiflowError",
    "ConfigError",
    "DeliveryError",
    "DemandWarning",
    "EalError",
    "IntegrityError",
    "PeerLost",
    "PoolExhausted",
    "PortError",
    "SliceTimeout",
    "not_copied",
]


class AiflowError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message : str
        What happened, and what to do next.
    delivered : bool or None, optional
        For errors of `Sender.send`: True if the receiver holds the whole slice, False if it does not, None if that
        cannot be known.
    delivered_by : mapping of str to (bool or None), optional
        The same for each receiver, by name.

    Attributes
    ----------
    delivered : bool or None
    delivered_by : dict of str to (bool or None)
    """

    def __init__(
        self,
        message: str,
        *,
        delivered: bool | None = None,
        delivered_by: Mapping[str, bool | None] | None = None,
    ) -> None:
        super().__init__(message)
        self.delivered = delivered
        self.delivered_by: dict[str, bool | None] = dict(delivered_by or {})

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"delivered": self.delivered, "delivered_by": self.delivered_by}


class ConfigError(AiflowError, ValueError):
    """An argument, an endpoint or an option cannot be used as given."""


class EalError(AiflowError):
    """DPDK's environment abstraction layer cannot be started or used in this process."""


class PortError(AiflowError):
    """A port cannot be opened, or stopped working."""


class PeerLost(AiflowError, ConnectionError):
    """No sign of life from the peer for `peer_timeout` seconds, or it went away, or came back as another."""


class SliceTimeout(AiflowError, TimeoutError):
    """The time given to `send`, `recv`, `flush` or `Ticket.result` ran out, or a slice was given up."""


class PoolExhausted(AiflowError, MemoryError):
    """No memory left for frames or elements, or a slice needs more than there can be."""


class IntegrityError(AiflowError):
    """The data that arrived differs from the data that was sent, and was not shown."""


class DeliveryError(AiflowError):
    """The receiver had all of the slice, but its user could not use it: a disk was full, for instance.

    Attributes
    ----------
    failed : dict of str to str
        Stream → why. The streams of the slice that are not in it are where the receiver's user wants them.
    failed_elements : dict of int to str
        The same by the element's number in the slice.
    """

    def __init__(
        self,
        message: str,
        *,
        failed: Mapping[str, str] | None = None,
        failed_elements: Mapping[int, str] | None = None,
        delivered: bool | None = None,
        delivered_by: Mapping[str, bool | None] | None = None,
    ) -> None:
        super().__init__(message, delivered=delivered, delivered_by=delivered_by)
        self.failed: dict[str, str] = dict(failed or {})
        self.failed_elements: dict[int, str] = dict(failed_elements or {})

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, self.__dict__


class DemandWarning(UserWarning):
    """A slice asks for more bandwidth than the ports can give: B_total = M / T, with ``slice_ms`` for T."""


def not_copied(thing: object, instead: str) -> TypeError:
    """The TypeError of pickle and copy for an object that belongs to ports, threads or memory of this process."""
    return TypeError(f"an aiflow {type(thing).__name__} cannot be pickled or copied: {instead}")
