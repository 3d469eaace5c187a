"""The documentation site: Sphinx reads the Markdown files of the checkout where they are. `make docs` runs it.

The pages have no directives of Sphinx, so they read the same on a code host and in an editor. `CHAPTERS` below is the
table of contents. Only docs/site/ has pages for the site alone: the reference, which is made from docstrings.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import aiflow  # noqa: E402

CHAPTERS = {
    "Start": ["docs/tutorial", "docs/install", "examples/quickstart", "docs/concepts"],
    "How to": ["docs/nic", "docs/containers", "docs/jupyter", "docs/receivers", "docs/shell", "docs/observe"],
    "Reference": [
        "docs/api",
        "docs/site/python",
        "docs/site/commands",
        "docs/site/examples",
        "docs/troubleshooting",
        "docs/drivers",
        "docs/limits",
        "docs/glossary",
    ],
    "Explanation": ["docs/delivery", "docs/design", "docs/wire", "docs/faults"],
    "Figures": ["docs/performance", "docs/experiments", "examples/experiments", "bench/README"],
    "Project": ["README", "CONTRIBUTING", "CHANGELOG", "SECURITY"],
}
HOME = "docs/index"

project = "aiflow"
version = release = aiflow.__version__
author = "the aiflow authors"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
root_doc = HOME
# A reader's own notes beside README are no pages: those of the root are named.
include_patterns = [f"{page}.md" for page in CHAPTERS["Project"]]
include_patterns += ["docs/*.md", "docs/site/*.md", "bench/README.md", "examples/*.ipynb"]
# A page that no chapter names comes last, so that a new document needs no change here.
_named = {HOME, *(page for pages in CHAPTERS.values() for page in pages)}
_more = [f"docs/{path.stem}" for path in sorted(ROOT.glob("docs/*.md")) if f"docs/{path.stem}" not in _named]
CHAPTERS |= {"More": _more} if _more else {}

# ---- Markdown ----
myst_heading_anchors = 4  # as a code host makes them
nb_execution_mode = "force" if os.environ.get("AIFLOW_DOCS_NOTEBOOKS") != "off" else "off"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# ---- docstrings ----
autodoc_typehints = "none"  # numpydoc has the types
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False
default_role = "code"  # `name` in a docstring

# ---- HTML ----
smartquotes = False  # they make one dash of --json
html_theme = "furo"
html_title = f"aiflow {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_permalinks_icon = "#"
pygments_style = "tango"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"


def _contents() -> str:
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {chapter}", "", *(f"/{page}" for page in pages), "```", ""])
        for chapter, pages in CHAPTERS.items()
    )


def _read(_app: Sphinx, docname: str, content: list[str]) -> None:
    """Add the table of contents to the home page, and lead links to directories to pages."""
    if docname == HOME:
        content[0] += "\n" + _contents()
    if not docname.startswith("examples/"):
        content[0] = re.sub(r"\]\((?:\.\./)?examples/?\)", "](/docs/site/examples.md)", content[0])


def _dashes(_app: Sphinx, tree: nodes.document) -> None:
    """Set the dash between a parameter and its text; `smartquotes` would do it, and more."""
    for text in list(tree.findall(nodes.Text)):
        if " -- " in text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ")))


def _redirect(app: Sphinx, error: Exception | None) -> None:
    """The site's own address leads to the home page."""
    if error is None:
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={HOME}.html">'
        Path(app.outdir, "index.html").write_text(f'{page}<title>aiflow</title><a href="{HOME}.html">aiflow</a>\n')


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", _read)
    app.connect("doctree-read", _dashes)
    app.connect("build-finished", _redirect)
