"""Every code block of README.md and docs/ runs and prints what the page shows, or says why it is not run.

`code_blocks` says how a page marks a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="needs PyYAML")

import yaml
from code_blocks import Failed, Shell, blocks_of, complaints

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
WITH_BLOCKS = [page for page in PAGES if any(block.is_run for block in blocks_of(page.read_text()))]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_can_be_read(page: Path) -> None:
    assert [why for block in blocks_of(page.read_text()) for why in complaints(block, ROOT)] == []


@pytest.mark.unit
def test_a_pod_with_added_capabilities_is_root_s_on_the_page_of_containers() -> None:
    """Kubernetes gives them to root only, and the image has another user. Root has a directory of names of its own."""
    docs = ROOT / "docs"
    assert re.search(r"^USER aiflow$", (docs / "Containerfile").read_text(), re.M)
    blocks = [block for block in blocks_of((docs / "containers.md").read_text()) if block.language == "yaml"]
    with_rights = 0
    for pod in (pod for block in blocks for pod in yaml.safe_load_all(block.code)):
        for container in pod["spec"]["containers"]:
            context = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
            if context.get("capabilities", {}).get("add"):
                with_rights += 1
                assert context.get("runAsUser") == 0
                assert "AIFLOW_RUNTIME_DIR" in [variable["name"] for variable in container.get("env", [])]
    assert with_rights


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, shell: Shell) -> None:
    shell.run(blocks_of(page.read_text()))


@pytest.mark.unit
def test_a_file_that_runs_blocks_names_the_page() -> None:
    for page in PAGES:
        for block in blocks_of(page.read_text()):
            if "run by" in block.marks:
                assert page.stem in (ROOT / block.marks["run by"].split()[0]).read_text(), (page.name, block.line)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "the page shows\n2"),
        ("```python\nprint(1)\n```\n", "does not show that it prints"),
        ("```python\nraise SystemExit(3)\n```\n", "exit code 3"),
        ("```python\nimport sys; sys.stderr.write('oh')\n```\n", "it complains"),
        ("```sh\ntrue\nfalse\n```\n", "exit code 1"),
        ("<!-- beside the next -->\n```sh\ntrue\n```\n", "no block is next to it"),
        ("<!-- beside the next -->\n```sh\necho a\n```\n```text\nb\n```\n```sh\ntrue\n```\n", "the page shows\nb"),
    ],
)
def test_a_block_that_lies_is_found(text: str, why: str, shell: Shell) -> None:
    with pytest.raises(Failed) as error:
        shell.run(blocks_of(text))
    assert why in str(error.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- not run: no -->\n```sh\nx\n```\n", "say why"),
        ("<!-- not ran: needs a network card -->\n```sh\nx\n```\n", "unknown mark"),
        ("<!-- run by tests/no_such.py -->\n```sh\nx\n```\n", "is no file"),
        ("```ruby\nx\n```\n", "neither run nor read"),
    ],
)
def test_a_mark_that_says_nothing_is_found(text: str, why: str) -> None:
    (block,) = blocks_of(text)
    assert why in "".join(complaints(block, ROOT))


def test_what_a_block_prints_may_differ_in_times_alone(shell: Shell) -> None:
    program = "<!-- first\nx = 3.25\n-->\n```python\nprint('in 9.9 ms, 7 frames,', x)\n```\n"
    text = program + "\n```text\nin 2.1 ms, 60 frames, {}\n```\n"
    shell.run(blocks_of(text.format("3.25")))
    with pytest.raises(Failed):
        shell.run(blocks_of(text.format("3.26")))
