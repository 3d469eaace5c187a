"""Spread one time slice over two receivers, even by bytes. The receivers are processes of their own.

Run it with::

    python examples/several_receivers.py
"""

import multiprocessing

import numpy as np

import aiflow

NAMES = ["node-0", "node-1"]


def receive(name: str) -> None:
    """Print each slice's part for this receiver, until the sender has closed."""
    with aiflow.Receiver(f"local:{name}", until="bye") as rx:
        for part in rx:
            print(name, "received", len(part), "of 8 images,", part.nbytes, "bytes", flush=True)


if __name__ == "__main__":
    processes = [multiprocessing.get_context("spawn").Process(target=receive, args=(name,)) for name in NAMES]
    for process in processes:
        process.start()
    images = {f"cam-{number}": np.full((480, 640, 3), number, np.uint8) for number in range(8)}
    with aiflow.Sender([f"local:{name}" for name in NAMES], to=NAMES, peer_timeout=60) as tx:
        report = tx.send(images)  # returns once both receivers hold their parts
    for receiver in report.receivers:
        print(receiver.name, "holds", receiver.elements, "images")
    for process in processes:
        process.join()
