"""Send one time slice of two arrays.

Start the receiver first, then the sender in another terminal::

    python examples/recv_array.py
    python examples/send_array.py

Both take another endpoint as argument, such as ``af_packet:eth1`` between two hosts.
"""

import sys

import numpy as np

import aiflow

endpoint = sys.argv[1] if len(sys.argv) > 1 else "local:arrays"
image = np.arange(480 * 640 * 3).reshape(480, 640, 3).astype(np.uint8)

with aiflow.Sender(endpoint) as tx:
    report = tx.send({"cam-0": image, "cam-1": 255 - image})  # returns once the receiver holds all of it
print(report)
