"""Screenshots of the documentation site in a headless Chromium, at two widths, on light and dark.

Usage: tools/screenshots.py [--documents] [--out DIR] [--chromium PATH] [PAGE ...]       after make docs

It needs the extra `docs`, and Debian's package chromium; for --documents prometheus, too. It also looks for what a
picture shows and a build does not: a page that is wider than its window, a picture that did not load, and messages on
the browser's console. Each is printed, and the script ends with 1 where there is one.

--documents makes the pictures in docs/: parts of the site's pages, and a running transfer (live_pictures.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import live_pictures
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build/docs/html"
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
OF_DOCUMENTS = {"notebook.png": ("examples/quickstart", "what-a-slice-looks-like")}
"""Pictures in docs/: name → page, and the section of it that the picture shows."""
PICTURED = (
    "docs/index",
    "docs/tutorial",
    "docs/observe",
    "docs/troubleshooting",
    "docs/api",
    "docs/site/python",
    "docs/site/commands",
    "docs/performance",
    "examples/quickstart",
    "README",
)

TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const clips = node => /auto|scroll|hidden/.test(getComputedStyle(node).overflowX);
    const scrolls = node => node && (clips(node) || scrolls(node.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(node => node.getBoundingClientRect().right > width + 1 && !scrolls(node.parentElement))
        .slice(0, 3).map(node => node.tagName + ": " + node.textContent.trim().slice(0, 60));
}"""
UNLOADED = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"


def faults_of(browser: Browser, path: Path, width: int, scheme: str, picture: Path | None) -> Iterator[str]:
    """Open one page, and yield what is wrong with it. Save its picture, if one is wanted."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.evaluate(f"document.body.dataset.theme = {scheme!r}")
    wide = page.evaluate(TOO_WIDE)
    yield from (f"wider than {width} pixels: {what}" for what in wide)
    yield from (f"a picture did not load: {source}" for source in page.evaluate(UNLOADED))
    yield from (f"the console says: {text}" for text in said)
    if picture is not None:
        page.screenshot(path=picture, full_page=True)
    context.close()


def save_section(browser: Browser, page_name: str, anchor: str, picture: Path) -> None:
    """Save the picture of one section of a page, as it looks on a wide light screen."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", device_scale_factor=1.5
    )
    page = context.new_page()
    page.goto((SITE / f"{page_name}.html").as_uri())
    section = f"section#{anchor}"
    page.add_style_tag(content=f"{section} > :is(h2, p) {{ display: none }}")  # the cells alone
    page.add_style_tag(content=f"{section} {{ padding: 1em; border: 1px solid #bbb; border-radius: 6px }}")
    page.locator(section).screenshot(path=picture)
    context.close()


def look_at_all(browser: Browser, out: Path, pictured: Sequence[str]) -> Iterator[str]:
    """Open every page at both widths, and those of `pictured` on dark, too. Yields what is wrong."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(SITE.rglob("*.html")):
        name = str(path.relative_to(SITE).with_suffix(""))
        if name == "index":  # leads to docs/index
            continue
        for width, scheme in product(WIDTHS, SCHEMES if name in pictured else SCHEMES[:1]):
            picture = out / f"{name.replace('/', '-')}-{width}-{scheme}.png" if name in pictured else None
            yield from (f"{name}, {scheme}: {fault}" for fault in faults_of(browser, path, width, scheme, picture))


def main() -> int:
    """Take the pictures of some pages, and check all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/docs/screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    parser.add_argument("--documents", action="store_true", help="make the pictures in docs/ anew, and no others")
    parser.add_argument("pages", nargs="*", default=PICTURED, metavar="PAGE", help="pages to picture: docs/index …")
    options = parser.parse_args()
    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        if options.documents:
            for name, (page, anchor) in OF_DOCUMENTS.items():
                save_section(browser, page, anchor, ROOT / "docs" / name)
            live_pictures.make(browser, ["top", "prometheus"])
        else:
            faults = list(look_at_all(browser, options.out, options.pages))
        browser.close()
    print("\n".join(faults), end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
