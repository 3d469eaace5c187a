"""tools/newcomer.py: a terminal keeps its state from block to block, and a page that leads into an error is found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="needs PyYAML")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import newcomer  # noqa: E402
from code_blocks import blocks_of  # noqa: E402

pytestmark = pytest.mark.unit


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[newcomer.Terminal]:
    made = newcomer.Terminal(tmp_path, None, "/usr/bin:/bin")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[newcomer.Newcomer]:
    """A user whose clone has the pages of a test, and whose installed aiflow is any Python."""
    (tmp_path / "aiflow/docs").mkdir(parents=True)
    (tmp_path / "aiflow-env/bin").mkdir(parents=True)
    (tmp_path / "aiflow-env/bin/activate").write_text(f'python() {{ {sys.executable} "$@"; }}\n')
    made = newcomer.Newcomer(tmp_path, None)
    try:
        yield made
    finally:
        made.close()


def test_a_terminal_keeps_directory_and_variables(terminal: newcomer.Terminal) -> None:
    terminal.paste("mkdir below\ncd below\nexport WORD=hello\n")
    terminal.finish()
    terminal.paste("echo $WORD from $(basename $PWD)\n")
    assert terminal.finish() == "hello from below\n"


def test_a_block_ends_at_the_first_command_that_fails(terminal: newcomer.Terminal) -> None:
    terminal.paste("echo before\ncat missing\necho after\n")
    with pytest.raises(newcomer.Stumbled, match=r"before\n(?s:.*)missing(?s:.*)exit code 1") as error:
        terminal.finish()
    assert "after" not in str(error.value)


def read(user: newcomer.Newcomer, page: str, text: str) -> list[tuple[int, str]]:
    (user.home / "aiflow" / page).write_text(text)
    return list(user.read(page))


def test_a_page_is_pasted_in_two_terminals(user: newcomer.Newcomer) -> None:
    text = """<!-- beside the next -->
```sh
mkfifo pipe
cat pipe
```
```text
sent
```
```sh
while [ ! -p pipe ]; do sleep 0.1; done
echo sent > pipe
```
<!-- not run: needs a network card -->
```sh
false
```
```python
print("from Python")
```
```text
from Python
```
"""
    rows = read(user, "docs/tutorial.md", text)
    assert [line for line, _ in rows] == [2, 9, 14, 17]
    assert rows[2][1] == "not pasted: needs a network card"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```sh\nfalse\n```\n", "exit code 1"),
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "the page shows\n2"),
        ("<!-- beside the next -->\n```sh\nfalse\n```\n```sh\ntrue\n```\n", "exit code 1"),
    ],
)
def test_a_page_that_leads_into_an_error_is_found(user: newcomer.Newcomer, text: str, why: str) -> None:
    with pytest.raises(newcomer.Stumbled) as error:
        read(user, "docs/tutorial.md", text)
    assert why in str(error.value)
    assert "docs/tutorial.md, line" in str(error.value)


def test_every_page_with_blocks_for_it_is_read() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
        if any("newcomer" in block.marks.get("run by", "") for block in blocks_of(path.read_text()))
    }
    assert marked
    assert marked <= set(newcomer.PAGES)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_block_that_fails_leaves_no_namespace(user: newcomer.Newcomer) -> None:
    name = f"aiflow-test-{os.getpid()}"
    with pytest.raises(newcomer.Stumbled):
        user.as_root(f"ip netns add {name}\nsetsid ip netns exec {name} sleep 60 &\nsleep 0.3\nfalse\n")
    assert name not in newcomer.namespaces()
