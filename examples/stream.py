"""Stream two cameras: `put` collects 40 ms of frames into a time slice and sends it in the background.

Start the receiver first, then this program in another terminal::

    python examples/recv_array.py
    python examples/stream.py
"""

import sys
import time

import numpy as np

import aiflow

endpoint = sys.argv[1] if len(sys.argv) > 1 else "local:arrays"

with aiflow.Sender(endpoint, slice_ms=40) as tx:
    for number in range(30):
        frame = np.full((480, 640, 3), number, np.uint8)
        for camera in ("cam-0", "cam-1"):
            tx.put(camera, frame)  # copies the frame; blocks while the receiver is too slow
        time.sleep(0.01)  # the time to the next frame
    tx.flush()  # returns once the receiver holds everything; an error of the background raises here
print("delivered 60 frames")
