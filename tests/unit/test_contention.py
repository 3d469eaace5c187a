"""The handoff of a loop under contention (tests/core/contend.c): threads with drawn pauses between its steps.

Two drivers at a time, or a post, request, frame or event that is not seen, end the program with an error.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from core import compiled, run

pytestmark = pytest.mark.unit

SEEDS = 4


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def contend(request, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("core") / "contend"
    return compiled("contend.c", target, "-fno-sanitize=all", f"-fsanitize={request.param}")


def test_one_thread_drives_and_no_wake_up_is_lost(contend) -> None:
    outcomes = [run(contend, "rounds=10000", f"seed={seed}") for seed in range(1, SEEDS + 1)]
    assert sum(outcome["moves"] for outcome in outcomes) > 1_000_000
    for what in ("drives", "dozes", "sleeps", "refusals", "calls"):
        assert any(outcome[what] for outcome in outcomes), what
