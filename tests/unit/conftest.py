"""Programs that several modules of unit tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from core import compiled


@pytest.fixture(scope="session")
def simulate(tmp_path_factory) -> Path:
    return compiled("simulate.c", tmp_path_factory.mktemp("core") / "simulate")
