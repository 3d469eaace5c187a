"""aiflow: time slices of AI data from node to node, over every NIC port, losing nothing.

>>> import aiflow, numpy as np
>>> with aiflow.pair() as (tx, rx):
...     ticket = tx.send({"cam-0": np.zeros((480, 640, 3), np.uint8)}, wait=False)
...     print(rx.recv(timeout=5)["cam-0"].array.shape)
(480, 640, 3)
"""

from .errors import (
    AiflowError,
    ConfigError,
    DemandWarning,
    EalError,
    IntegrityError,
    PeerLost,
    PoolExhausted,
    PortError,
    SliceTimeout,
)
from .memory import empty
from .pair import Pair, pair
from .receiver import Receiver
from .report import PortTable, SliceReport
from .sender import Sender
from .slices import Element, Shard, TimeSlice
from .ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "AiflowError",
    "ConfigError",
    "DemandWarning",
    "EalError",
    "Element",
    "IntegrityError",
    "Pair",
    "PeerLost",
    "PoolExhausted",
    "PortError",
    "PortTable",
    "Receiver",
    "Sender",
    "Shard",
    "SliceReport",
    "SliceTimeout",
    "Ticket",
    "TimeSlice",
    "empty",
    "pair",
]
