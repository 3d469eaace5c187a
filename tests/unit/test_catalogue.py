"""The table of figures, and the pages that repeat it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiflow._observe.catalogue import markdown
from aiflow._observe.diagnosis import CAUSES

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs/observe.md"


def test_the_page_has_the_table() -> None:
    """When this fails, paste what `markdown` returns."""
    assert markdown() in PAGE.read_text()


def test_the_page_explains_each_verdict() -> None:
    for cause in (*CAUSES, "unclear", "idle"):
        assert f"`{cause}`" in PAGE.read_text()
