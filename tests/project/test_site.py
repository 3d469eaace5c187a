"""The documentation site: it builds without a warning, has every document, and a link that leads nowhere is found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import site_links  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "myst_nb", "furo", "sphinx_click", "sphinx_copybutton"):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs/site", ROOT, out],
        env={**os.environ, "AIFLOW_DOCS_NOTEBOOKS": "off"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert built.returncode == 0, built.stderr
    return out


def test_every_document_is_a_page_and_no_link_is_dead(site: Path) -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.ipynb")]:
        assert (site / document.relative_to(ROOT)).with_suffix(".html").is_file(), document
    assert list(site_links.dead_links(site)) == []


def test_every_document_is_in_the_table_of_contents(site: Path) -> None:
    home = (site / "docs/index.html").read_text()
    contents = home.partition('class="sidebar-tree"')[2].partition('class="toc-drawer"')[0]
    listed = {Path(f"docs/{link}") for link in re.findall(r'href="([^"#]+\.html)"', contents)}
    names = {os.path.normpath(path) for path in listed}
    missing = [
        path.name
        for path in ROOT.glob("docs/*.md")
        if path.name != "index.md" and f"docs/{path.stem}.html" not in names
    ]
    assert missing == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    import aiflow

    page = (site / "docs/site/python.html").read_text()
    missing = [name for name in aiflow.__all__ if not re.search(rf'id="aiflow\.(\w+\.)*{name}"', page)]
    assert missing == []


def test_the_reference_has_every_command(site: Path) -> None:
    from aiflow.cli.app import COMMANDS_ELSEWHERE, app

    page = (site / "docs/site/commands.html").read_text()
    own = set(app.commands) - set(COMMANDS_ELSEWHERE)  # completion enters the names of the others
    assert [name for name in own if f'id="aiflow-{name}"' not in page] == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("link", "why"),
    [
        ('<a href="b.html">', "no such file"),
        ('<a href="a.html#there">', "no such anchor"),
        ('<a href="#there">', "no such anchor"),
        ('<img src="x.png">', "no such file"),
        ('<link href="style.css?v=1">', "no such file"),
    ],
)
def test_a_dead_link_is_found(tmp_path: Path, link: str, why: str) -> None:
    (tmp_path / "a.html").write_text(f'<h1 id="here">A</h1><a href="#here"><a href="https://example.org/x">{link}')
    (found,) = site_links.dead_links(tmp_path)
    assert found.endswith(why)
