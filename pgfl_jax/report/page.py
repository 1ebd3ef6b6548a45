"""What the pages have in common: the doctor's, and the report's. One file, nothing fetched."""

import base64
import dataclasses
from collections.abc import Sequence
from html import escape
from importlib import resources

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
# The browser itself refuses to fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows.

    Attributes:
        header: the names of the columns.
        rows: the cells.
        texts: how many columns, from the left, hold words rather than numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def template(name: str) -> str:
    """The text of a file of ``templates``."""
    folder = resources.files("pgfl_jax.report").joinpath("templates")
    return folder.joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str, *, style: str, scripts: bool = False) -> str:
    """A page in the house style.

    Args:
        title: as text.
        body: as HTML.
        style: what is added to the house style.
        scripts: whether scripts of the body run.
    """
    policy = _POLICY.format(scripts="'unsafe-inline'" if scripts else "'none'")
    style = template("house.css") + style
    return _DOCUMENT.format(policy=policy, title=escape(title), style=style, body=body)


def html_table(table: Table) -> str:
    """A table as HTML.

    >>> print(html_table(Table(["split", "images"], [["train", "12"]])))
    <div class="table" tabindex="0"><table>
    <tr><th scope="col">split</th><th scope="col">images</th></tr>
    <tr><td>train</td><td>12</td></tr>
    </table></div>
    """

    def row(cells: Sequence[str], tag: str, scope: str = "") -> str:
        # The style sheet aligns the first column by itself.
        words = [""] + [' class="words"'] * (table.texts - 1) + [""] * len(cells)
        marked = zip(words, cells, strict=False)
        return "".join(f"<{tag}{scope}{mark}>{escape(cell)}</{tag}>" for mark, cell in marked)

    head = row(table.header, "th", ' scope="col"')
    lines = [head, *(row(cells, "td") for cells in table.rows)]
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    # What scrolls must be reachable by keyboard.
    return f'<div class="table" tabindex="0"><table>\n{rows}\n</table></div>'


def data_uri(jpeg: bytes) -> str:
    """A picture inside the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
