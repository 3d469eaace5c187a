"""Receive time slices, work on them, and send them on over the same ports: a stage of a pipeline.

The relay owns the name ``relay``; the camera and the display call it. Run all three with::

    python examples/relay.py
"""

import multiprocessing

import numpy as np

import aiflow


def camera() -> None:
    """Send three slices of two images to the relay."""
    with aiflow.Sender("local:relay", to="relay", peer_timeout=60) as tx:
        for number in range(3):
            tx.send({side: np.full((480, 640), number, np.uint8) for side in ("left", "right")})


def display() -> None:
    """Print what the relay sends on, until it has closed."""
    with aiflow.Ports("local:relay") as ports, aiflow.Receiver(ports, name="display", until="bye") as rx:
        for time_slice in rx:
            print({element.stream: float(element.array.mean()) for element in time_slice}, flush=True)


if __name__ == "__main__":
    with aiflow.Ports("local:relay") as ports, aiflow.Receiver(ports, name="relay", until="bye") as rx:
        processes = [multiprocessing.get_context("spawn").Process(target=role) for role in (display, camera)]
        for process in processes:
            process.start()
        with aiflow.Sender(ports, to="display", peer_timeout=60) as tx:
            for time_slice in rx:  # the next step releases this one: the display holds it by then
                mean = np.mean([element.array.mean() for element in time_slice])
                tx.send([*time_slice, ("mean", mean)])  # images are read where they lie
        for process in processes:
            process.join()
