"""A million frames over two pairs of ports, while their links come and go."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from consoles import Console
from machine import Monitor

FRAMES = int(float(os.environ.get("AIFLOW_SOAK_FRAMES", "1e6")))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_frames_with_links_that_flap(
    pair: tuple[Console, Console], ports: list[str], monitor: Monitor
) -> None:
    a, b = pair
    b.run(f"rx = aiflow.Receiver({ports[1::2]!r})")
    a.run(f"tx = aiflow.Sender({ports[::2]!r})")
    sent = resent = 0
    for number in itertools.count():
        b.start("with rx.recv(timeout=120) as got: answer = same(got, images)")
        a.start("answer = facts(tx.send(images, timeout=120))")
        card = f"nic{number % 4}"
        if number % 3 == 0:  # one link at a time: the other pair carries the slice
            monitor.link(card, False)
            time.sleep(0.5)
            monitor.link(card, True)
        facts = a.finish(130)
        assert b.finish(130)
        sent += facts["sent"]
        resent += facts["again"]
        if sent >= FRAMES:
            break
    print(f"{sent} frames, {resent} of them again, {number + 1} slices, every image identical")
