"""The picture of docs/report.md: the first query of a page, opened.

``python -m tests.browser.screenshot runs/demo/report/index.html docs/images/report.jpg``
"""

import sys
from pathlib import Path

from tests.browser.program import launched


def shoot(page: Path, out: Path) -> None:
    """Write a JPEG of the page's first query."""
    with launched() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 1180})
        tab.goto(page.absolute().as_uri())
        tab.click("#list .query a")
        tab.screenshot(path=out, type="jpeg", quality=80)


if __name__ == "__main__":
    shoot(*map(Path, sys.argv[1:]))
