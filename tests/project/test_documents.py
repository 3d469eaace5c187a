"""Links, anchors and names of files in the documents, and the check of their words (tools/words.py)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench" / "README.md"])
ROOMS = ("aiflow", "bench", "docs", "examples", "include", "tests", "tools")
SOURCES = {
    str(path.relative_to(ROOT))
    for room in ROOMS
    for path in (ROOT / room).rglob("*")
    if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".sh")
}


@pytest.fixture(scope="module")
def words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / "tools" / "words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["words"] = module
    spec.loader.exec_module(module)
    return module


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """What a heading is linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path)):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    """Only sources: a document also names files that a run writes."""
    for name in re.findall(r"`([\w./-]+\.(?:pyx|pxd|h|c|sh))`|`((?:[\w-]+/)+[\w-]+\.py)`", without_code(path)):
        wanted = "".join(name)
        if not wanted.startswith("_x."):  # CONTRIBUTING's pattern of names
            assert any(f"/{file}".endswith(f"/{wanted}") for file in SOURCES), wanted


def test_a_long_sentence_is_found(words: ModuleType) -> None:
    text = "# Title\n\nOne. " + "word " * 36 + "\nends here.\n\n| " + "cell " * 50 + "|\n"
    (found,) = words.check_sentences("x.md", text + "Short one. " * 40)
    assert found.startswith("x.md:3: 38 words")
    assert not list(words.check_sentences("x.md", "A b. " * 40 + "word " * 30 + ".\n"))  # one of 41
    assert len(list(words.check_sentences("x.md", "A b. " * 9 + "word " * 30 + ".\n"))) == 2  # one of 10, and the share


def test_code_and_links_count_by_their_text(words: ModuleType) -> None:
    text = (
        "Use `a b c d` and\n[the\nlink](docs/x.md) here, e.g. so. Then `x`.\n```\ncode. code. code.\n```\n- item one\n"
    )
    assert [len(sentence) for _, sentence in words.sentences(text)] == [8, 2, 2]
    assert [number for number, _ in words.sentences(text)] == [1, 3, 7]


@pytest.mark.parametrize(
    "word", ["fl" + "ying", "AF_ASI" + "DE_NS", "some" + "body", "sent" + " again", "so " + "many"]
)
def test_a_retired_word_is_found_in_prose_and_in_names(words: ModuleType, word: str) -> None:
    (found,) = words.check_words("x.py", f"# fine\n# {word} here\n")
    assert found.startswith("x.py:2: ")


def test_what_only_contains_a_retired_word_may_stand(words: ModuleType) -> None:
    assert not list(
        words.check_words("x.py", 'besides = "nobody"; butterflying = besides\ndef test_nobody_came(): ...\n')
    )


def test_a_clause_as_subject_is_found_and_a_question_is_none(words: ModuleType) -> None:
    (found,) = words.check_subjects("x.md", "Who comes late waits.\n\nWhat happens then? It waits.\n")
    assert found.startswith("x.md:1: ")


def test_the_documents_pass() -> None:
    ran = subprocess.run([sys.executable, ROOT / "tools" / "words.py", "--docs"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_the_readme_is_short() -> None:
    shown = [line for line in (ROOT / "README.md").read_text().splitlines() if not line.startswith("<!--")]
    assert len(shown) <= 120
