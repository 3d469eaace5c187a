"""aiflow: time slices of AI data from node to node, over every NIC port, losing nothing.

>>> import aiflow, numpy as np
>>> with aiflow.pair() as (tx, rx):
...     ticket = tx.send({"cam-0": np.zeros((480, 640, 3), np.uint8)}, wait=False)
...     print(rx.recv(timeout=5)["cam-0"].array.shape)
(480, 640, 3)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiflow._build import build_info
    from aiflow._transfer.ticket import Ticket
    from aiflow.alloc import empty
    from aiflow.errors import (
        AiflowError,
        ConfigError,
        DeliveryError,
        DemandWarning,
        EalError,
        IntegrityError,
        PeerLost,
        PoolExhausted,
        PortError,
        SliceTimeout,
    )
    from aiflow.in_process import Pair, pair
    from aiflow.options import FlowControl, Polling, Scheduling, Telemetry
    from aiflow.receiver import Receiver
    from aiflow.report import PortTable, SliceReport
    from aiflow.sender import Sender
    from aiflow.shared_ports import Ports
    from aiflow.slices import Element, Shard, TimeSlice

__version__ = "0.1.0"

__all__ = [
    "AiflowError",
    "ConfigError",
    "DeliveryError",
    "DemandWarning",
    "EalError",
    "Element",
    "FlowControl",
    "IntegrityError",
    "Pair",
    "PeerLost",
    "Polling",
    "PoolExhausted",
    "PortError",
    "PortTable",
    "Ports",
    "Receiver",
    "Scheduling",
    "Sender",
    "Shard",
    "SliceReport",
    "SliceTimeout",
    "Telemetry",
    "Ticket",
    "TimeSlice",
    "build_info",
    "empty",
    "pair",
]

if not TYPE_CHECKING:
    # A program pays for DPDK's libraries when it uses them, not when it names us.
    _HOMES = {
        "Element": "slices",
        "FlowControl": "options",
        "Pair": "in_process",
        "Polling": "options",
        "PortTable": "report",
        "Ports": "shared_ports",
        "Receiver": "receiver",
        "Scheduling": "options",
        "Sender": "sender",
        "Shard": "slices",
        "SliceReport": "report",
        "Telemetry": "options",
        "Ticket": "_transfer.ticket",
        "TimeSlice": "slices",
        "build_info": "_build",
        "empty": "alloc",
        "pair": "in_process",
    }

    def _warn_of_the_other_project():
        """Warn if the package index's project called aiflow is installed among our files: each overwrites the other."""
        from os import listdir
        from os.path import dirname

        directory = dirname(__path__[0])
        try:
            names = listdir(directory)
        except OSError:
            return
        found = [name for name in names if name.startswith("aiflow-") and name.endswith((".dist-info", ".egg-info"))]
        if found:
            import warnings

            warnings.warn(
                f"{directory} has files of another project called aiflow ({found[0]}), and it and aiflow-dpdk "
                "overwrite each other: pip uninstall aiflow aiflow-dpdk, then install aiflow-dpdk alone",
                RuntimeWarning,
                stacklevel=3,
            )

    _warn_of_the_other_project()

    def __getattr__(name):
        if name == "flow":  # programs know `aiflow.flow.FlowControl`
            return import_module(".flow", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("aiflow._"):
                raise
            raise ImportError(
                f"{__path__[0]} has aiflow's sources, but not the compiled module {error.name}: start Python in "
                "another directory, so that it finds the installed aiflow, or compile this one: make setup",
                name=error.name,
            ) from error
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
