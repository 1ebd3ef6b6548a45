"""A contact sheet of what was found: each query with its nearest pictures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pgfl_jax import preprocessing
from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing
from pgfl_jax.preprocessing import PictureError
from pgfl_jax.retrieval.search.pictures import Picture
from pgfl_jax.retrieval.search.query import Hit, shown

SUFFIXES = (".html", ".png")
_SIZE = 96, 192  # of a thumbnail, at most
_MARGIN, _TEXT = 8, 72
_LETTERS = 19  # of a name below a thumbnail

Row = tuple[Picture, Sequence[Hit]]


def check_sheet(path: Path) -> None:
    """UserError if a sheet cannot be written there; called before any work is done for it."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out={path}: must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--out={path}: there is no folder {path.parent}")


def write_sheet(path: Path, rows: Sequence[Row], note: str) -> None:
    """Write a sheet: one page that holds all its pictures, or one picture, by its ending.

    Args:
        path: ``.html`` or ``.png``.
        rows: each query with what was found.
        note: a line about the verdicts.
    """
    with replacing(path) as beside:
        if path.suffix == ".png":
            _draw(rows, note).save(beside, format="PNG")
        else:
            beside.write_text(_page(rows, note), encoding="utf-8")


def _thumbnail(picture: Picture) -> Image.Image | None:
    """None if the picture cannot be read, as when it has been moved."""
    try:
        pixels = preprocessing.decode(picture.path)
    except PictureError:
        return None
    return ImageOps.contain(Image.fromarray(pixels), _SIZE)


_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 1rem; }
table { border-spacing: 0 .75rem; }
th, td { padding: 0 .5rem; text-align: center; vertical-align: top; font-weight: normal; }
th { border-right: 1px solid; }
img, .gone { box-sizing: border-box; border: 4px solid transparent; }
.gone { display: inline-block; width: 96px; height: 192px; border: 1px dashed; }
.match img { border: 4px solid #1a7f37; }
.other img { border: 4px dashed #c4432b; }
small { display: block; max-width: 9rem; overflow-wrap: anywhere; }
"""


def _page(rows: Sequence[Row], note: str) -> str:
    lines = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Search</title><style>{_STYLE}</style></head><body>",
        f"<h1>Queries and their nearest pictures</h1><p>{html.escape(note)}</p><table>",
    ]
    for query, found in rows:
        cells = [f'<th scope="row">{_figure(query, "query")}</th>']
        for rank, hit in enumerate(found, 1):
            kind = {True: "match", False: "other", None: ""}[hit.verdict]
            cells.append(f'<td class="{kind}">{_figure(hit.picture, f"{rank}: {hit}")}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table></body></html>\n"])


def _figure(picture: Picture, words: str) -> str:
    name = html.escape(shown(picture.path))
    image = _thumbnail(picture)
    if image is None:
        drawn = '<span class="gone">cannot be read</span>'
    else:
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=85)
        source = base64.b64encode(data.getvalue()).decode()
        drawn = f'<img alt="{name}" src="data:image/jpeg;base64,{source}">'
    return f"{drawn}<small>{html.escape(words)}</small><small>{name}</small>"


def _draw(rows: Sequence[Row], note: str) -> Image.Image:
    width, height = _SIZE[0] + 3 * _MARGIN, _SIZE[1] + 3 * _MARGIN + _TEXT
    columns = 1 + max(len(found) for _, found in rows)
    sheet = Image.new("RGB", (columns * width, 3 * _MARGIN + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    draw.text((_MARGIN, _MARGIN), note, "black", font)
    for at, (query, found) in enumerate(rows):
        top = 3 * _MARGIN + at * height
        _cell(sheet, (0, top), query, "query", None)
        for rank, hit in enumerate(found, 1):
            words = f"{rank}: {hit}".replace("  ", "\n").replace(", ", "\n")
            _cell(sheet, (rank * width, top), hit.picture, words, hit.verdict)
    return sheet


def _cell(
    sheet: Image.Image, corner: tuple[int, int], picture: Picture, words: str, verdict: bool | None
) -> None:
    """Draw a picture with words below; a match has a frame, anything else a line across."""
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    image = _thumbnail(picture) or Image.new("RGB", _SIZE, "lightgrey")
    place = left + _MARGIN, top + _MARGIN
    sheet.paste(image, place)
    box = (*place, place[0] + image.width, place[1] + image.height)
    if verdict:
        draw.rectangle(box, outline="#1a7f37", width=4)
    elif verdict is not None:
        draw.line((box[0], box[3] - 2, box[2], box[3] - 2), "#c4432b", 4)
    words = f"{words}\n{picture.path.name[-_LETTERS:]}"
    draw.text((place[0], top + 2 * _MARGIN + _SIZE[1]), words, "black", ImageFont.load_default())
