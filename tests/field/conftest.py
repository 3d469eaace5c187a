"""Programs for the cases from the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from programs import programs


@pytest.fixture
def aiflow() -> Iterator[Any]:
    """Start `aiflow …`; nothing of it survives the test."""
    with programs() as start:
        yield start
