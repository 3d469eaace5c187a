"""Fixtures of the tests that write files."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from aiflow.cli.outdir import OutDirectory


@pytest.fixture(params=["unnamed until whole", "under temporary names"])
def both_ways_to_write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no O_TMPFILE."""
    if request.param.startswith("under"):
        monkeypatch.setattr(OutDirectory, "_can_link_unnamed", lambda _: False)


@pytest.fixture(params=[0o022, 0o077, 0], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)
