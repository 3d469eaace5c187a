"""``aiflow metrics``: the figures of all processes of this user, for Prometheus."""

from __future__ import annotations

import time

from aiflow._observe.exposition import Exporter
from aiflow._observe.readers import gather
from aiflow._terminal.outcome import Outcome

HOUR = 3600.0


def serve_metrics(outcome: Outcome, *, listen: str) -> None:
    """Serve until Ctrl-C or SIGTERM: that is how it ends well.

    Parameters
    ----------
    outcome : Outcome
        Receives ``listen``: the address and port.
    listen : str
        See `aiflow.config.parse_listen`.
    """
    exporter = Exporter(listen, gather, "--listen ")
    outcome.document["listen"] = f"{exporter.address}:{exporter.port}"
    try:
        if not outcome.terminal.as_json:
            outcome.terminal.tell(f"metrics at http://{exporter.address}:{exporter.port}/metrics; Ctrl-C ends")
        while True:
            time.sleep(HOUR)
    except KeyboardInterrupt:
        pass
    finally:
        exporter.close()
