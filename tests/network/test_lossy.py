"""Four shaped ports through one switch that loses a hundredth of the frames: it costs time, never data."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest
from subprocesses import environment, run

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

PORTS = 4

# The same content on both sides, from a seed: what arrives is compared, not only hashed.
CONTENT = """
    import sys, time, numpy as np, aiflow
    NB_IMAGES, NBYTES, SLICES = map(int, sys.argv[2:])
    def images(number):
        rng = np.random.default_rng(number)
        return [rng.integers(0, 256, NBYTES + NBYTES // 8 * (k % 5 - 2), dtype=np.uint8) for k in range(NB_IMAGES)]
"""

RECEIVE = (
    CONTENT
    + """
    with aiflow.Receiver(sys.argv[1].split(","), name="sink") as rx:
        print("ready", flush=True)
        for number in range(SLICES):
            with rx.recv(timeout=100) as time_slice:
                assert time_slice.slice_id == number + 1
                sent = images(number)
                assert len(time_slice) == len(sent)
                assert all(np.array_equal(element.array, image) for element, image in zip(time_slice, sent))
        print("identical", number + 1, flush=True)
        sys.stdin.read()
"""
)

SEND = (
    CONTENT
    + """
    with aiflow.Sender(sys.argv[1].split(",")) as tx:
        slices = [images(number) for number in range(SLICES)]
        seconds, again, frames, nbytes = [], 0, 0, 0
        for elements in slices:
            report = tx.send(elements, timeout=100)
            seconds.append(report.seconds)
            again += report.frames_retransmitted
            frames += report.frames_sent
            nbytes += report.nbytes
        print(sum(seconds[1:]), again, frames, nbytes, tx.counters["spurious"])
"""
)


def endpoints(letter: str) -> str:
    return ",".join(f"af_packet:{letter}{i}" for i in range(PORTS))


def transfer(net, per_mille: int, nb_images: int, nbytes: int, slices: int) -> tuple[float, int, int, int, int]:
    """Seconds of all slices but the first (discovery), frames retransmitted, frames, lost at the switch, spurious."""
    source, switch, sink = net.switched(PORTS, rate="100mbit")
    arguments = [str(nb_images), str(nbytes), str(slices)]
    receiver = subprocess.Popen(
        [*sink.prefix, sys.executable, "-c", textwrap.dedent(RECEIVE), endpoints("r"), *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        switch.lose(per_mille)
        out = run(SEND, endpoints("s"), *arguments, prefix=source.prefix, timeout=400)
        lost = switch.lost() if per_mille else 0
        got, errors = receiver.communicate(timeout=100)
        assert got == f"identical {slices}\n", errors
    finally:
        receiver.kill()
        receiver.wait()
    seconds, again, frames, _, spurious = map(float, re.findall(r"[\d.e-]+", out))
    return seconds, int(again), int(frames), lost, int(spurious)


def test_one_percent_loss_costs_at_most_half_the_time_again(net) -> None:
    """20 slices of 128 images, all identical."""
    clean, again_clean, _, _, _ = transfer(net, 0, 128, 265_000, 20)
    for _ in range(3):  # what the machine takes from one run it need not take from another
        lossy, again, frames, lost, spurious = transfer(net, 10, 128, 265_000, 20)
        assert lost > frames * 0.005  # the fault took place
        assert again >= lost / 2
        if lossy <= 1.5 * clean:
            return
    raise AssertionError((clean, lossy, again_clean, again, lost, spurious))


@pytest.mark.parametrize(("per_mille", "nbytes"), [(1, 60_000), (50, 10_000), (300, 10_000)])
def test_fault_24_random_loss_at_the_switch(net, per_mille, nbytes) -> None:
    _, again, _, lost, _ = transfer(net, per_mille, 64, nbytes, 6)
    assert lost > 0
    assert again > 0
