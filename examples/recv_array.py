"""Receive time slices and print each array, until every sender has closed.

Start this program first, then a sender in another terminal::

    python examples/recv_array.py
    python examples/send_array.py

``examples/stream.py`` is a sender for it, too. Both sides take another endpoint as argument.
"""

import sys

import aiflow

endpoint = sys.argv[1] if len(sys.argv) > 1 else "local:arrays"

with aiflow.Receiver(endpoint, until="bye") as rx:
    print("receiving on", endpoint, flush=True)
    for time_slice in rx:  # whole slices only; the next step releases this one
        for element in time_slice:
            array = element.array  # dtype and shape as sent
            print(element.stream, array.dtype, array.shape, "mean", round(array.mean(), 3), flush=True)
