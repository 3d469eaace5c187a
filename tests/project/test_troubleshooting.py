"""Every error that aiflow can raise is on docs/troubleshooting.md, and every text there is one that it can raise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from error_texts import Text, error_texts

from aiflow._checks.checks import CHECKS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
TEXTS = error_texts(ROOT / "aiflow")


def entries() -> list[str]:
    """The texts that the page explains: code at the beginning of an item, before its colon."""
    found = []
    for item in re.split(r"^- ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        item = " ".join(item.partition("\n\n")[0].split())
        for span in re.finditer(r"(?:^|(?<=, )|(?<=, or )|(?<= or )|(?<=\. ))`([^`]+)`(?=[:, ]|$)", item):
            found.append(span[1])
            if item[span.end() :].startswith(":"):
                break
    return found


def explains(entry: str, text: Text) -> bool:
    """Whether the pieces of an entry are in a text, in their order."""
    at, whole = 0, " … ".join(text.parts)
    for piece in (piece.strip() for piece in entry.split("…")):
        at = whole.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


ENTRIES = entries()


def test_the_texts_are_found() -> None:
    assert len(TEXTS) > 180
    assert len(ENTRIES) > 150
    assert {"ConfigError", "PortError", "EalError", "PeerLost", "WriteError"} <= {text.kind for text in TEXTS}
    assert {"config.py", "_eal_init.pyx", "_eal.pyx"} <= {text.place.partition(":")[0] for text in TEXTS}


def test_every_error_is_on_the_page() -> None:
    missing = [f"{text.place} {text.kind}: {text.key}" for text in TEXTS if not any(explains(e, text) for e in ENTRIES)]
    assert missing == []


def test_every_text_of_the_page_is_an_error() -> None:
    assert [entry for entry in ENTRIES if not any(explains(entry, text) for text in TEXTS)] == []


def test_the_checks_of_doctor_are_on_the_page() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text().partition("| Check | Looks at |")[2], re.MULTILINE
    )
    assert [row for row in rows if not set(row[0]) <= set("-")] == [(check.name, check.looks_at) for check in CHECKS]


def test_an_entry_is_no_part_that_every_error_has() -> None:
    """A text that explains many errors helps with none; options that are checked alike are the exception."""
    wide = {entry: sum(explains(entry, text) for text in TEXTS) for entry in ENTRIES}
    assert {entry: count for entry, count in wide.items() if count > 6} == {}


def test_a_new_error_would_be_missed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text('raise ConfigError(f"{x}: the moon is in the wrong phase, wait {days} days")\n')
    (tmp_path / "new.pyx").write_text('cdef f():\n    raise PortError(f"{x} has eaten the frames: "\n "feed it")\n')
    (tmp_path / "sun.py").write_text(
        'def f():\n    why = "the sun shines on"\n    why += " the ports"\n    yield broken(why)\n'
    )
    found = error_texts(tmp_path)
    assert [" ".join(text.parts) for text in found if text.place.startswith("sun")] == ["the sun shines on the ports"]
    found = [text for text in found if not text.place.startswith("sun")]
    assert [text.parts[0] for text in found] == [
        "the moon is in the wrong phase, wait",
        "has eaten the frames: feed it",
    ]
    assert not any(explains(entry, text) for entry in ENTRIES for text in found)
