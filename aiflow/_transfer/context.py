"""What the parts of one Sender share about its transfers: its loop, its ports' state, and what to say of a slice.

A context never holds the Sender: a Sender that is dropped can go while its parts still run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiflow._transfer import holdings, result
from aiflow._transfer.waiter import Waiter
from aiflow.errors import AiflowError, ConfigError
from aiflow.report import SliceReport

__all__ = ["Context", "Ports", "fresh"]


class Ports(Protocol):
    """The open ports, as far as a transfer asks about them (`aiflow._ports.portset.PortSet`)."""

    @property
    def error(self) -> AiflowError | None:
        """What keeps a port from coming up."""

    def hints(self) -> list[str]:
        """Facts about the ports that may explain a silence."""


class Context:
    """Shared by a Sender's Batcher, flights and Tickets.

    Parameters
    ----------
    agent : aiflow._dp_tx.TxAgent
    waiter : Waiter
    endpoints : sequence
        As typed, for messages.
    peer_timeout : float
        Seconds.
    to : sequence of str
        The receivers that were asked for; empty for the only one that answers.

    Attributes
    ----------
    closed : bool
        The Sender takes no elements: not yet, or no more.
    ports : Ports
        Set when they are open, before the first slice.
    """

    ports: Ports

    def __init__(
        self,
        agent: Any,
        waiter: Waiter,
        endpoints: Sequence[Any],
        peer_timeout: float,
        to: Sequence[str],
    ) -> None:
        self.waiter = waiter
        self.closed = True
        self.check_process: Callable[[], None] = agent.check_process
        self._agent = agent
        self._endpoints = endpoints
        self._peer_timeout = peer_timeout
        self._to = to

    def check_open(self) -> None:
        """Raise unless the Sender takes elements in this process."""
        self.check_process()
        if self.closed:
            raise ConfigError("this Sender is closed: open another one")
        if (error := self.ports.error) is not None:
            raise fresh(error)

    def name_of(self, part: Any) -> str:
        """The name of a part's receiver."""
        return self._to[part.receiver] if len(self._to) > 1 else str(self._agent.last_receiver())

    def report(self, outgoing: Any, waited_for: str = "") -> SliceReport:
        """The report of a slice that has ended; raises if it was not delivered.

        Parameters
        ----------
        outgoing : aiflow._dp_outgoing.Outgoing or aiflow._transfer.fanout.FanOut
        waited_for : str
            Of a slice that was given up: what it waited for then.
        """
        if not outgoing.delivered:
            known = self._known(result.blamed(outgoing).receiver)
            raise result.failure(outgoing, known, self.name_of, waited_for)
        return result.report(outgoing, self._agent.port_names, self.name_of)

    def waits_for(self, outgoing: Any) -> str:
        """What a slice that has not ended waits for, in words."""
        receiver = next((part.receiver for part in outgoing.parts if not part.done), 0)
        return result.waits_for(outgoing, self._known(receiver))

    def _known(self, receiver: int) -> result.Known:
        return result.Known(
            self._endpoints,
            self._peer_timeout,
            self._to[receiver] if self._to else "",
            self._agent.others(receiver),
            self._agent.rivals(receiver),
            self._agent.drops(),
            self._agent.dropped(receiver),
            self.ports.hints(),
            self._memory(receiver),
        )

    def _memory(self, receiver: int) -> result.Memory | None:
        """What is known of the memory that a slice to this receiver waits for, if one does."""
        for outgoing in self._agent.outstanding():
            if outgoing.receiver == receiver and outgoing.waits_for_memory:
                free = self._agent.peer_free_bytes(receiver)
                return result.Memory(self._agent.last_receiver(receiver), free, outgoing.needs, holdings.told())
        return None


def fresh(error: AiflowError) -> AiflowError:
    """A lasting error, as a new exception for each call that meets it."""
    return type(error)(str(error), delivered=False)
