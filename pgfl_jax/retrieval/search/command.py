"""``pgfl search``."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.ranking import rank
from pgfl_jax.retrieval.search.gallery import read_gallery
from pgfl_jax.retrieval.search.index import search_index
from pgfl_jax.retrieval.search.query import hits, read_queries, read_threshold, shown
from pgfl_jax.retrieval.search.sheet import check_sheet, write_sheet


def search_gallery(
    given: Sequence[Path],
    gallery_path: Path,
    *,
    run: Path | None = None,
    top: int = 10,
    far: float = 1e-3,
    index: bool = False,
    out: Path | None = None,
) -> int:
    """Search, print, and draw; returns the exit status, 1 if a query cannot be read.

    Args:
        given: the queries, see :func:`read_queries`.
        gallery_path: a file of ``pgfl embed``.
        run: the folder of the run; None: where the gallery's was.
        top: pictures per query.
        far: false accept rate that verdicts are for.
        index: search the gallery's index, not all its pictures.
        out: contact sheet, ``.html`` or ``.png``.

    Raises:
        UserError: what is given does not exist, does not fit together, or cannot be written.
    """
    if top < 1:
        raise UserError(f"--top={top}: must be at least 1")
    if out is not None:
        check_sheet(out)
    gallery = read_gallery(gallery_path)
    queries = read_queries(given, gallery, run)
    if out is not None and out.exists():
        _check_no_picture(out, {one.path for one in queries.pictures} | gallery.pictures())
    threshold = read_threshold(run or Path(gallery.origin.run), gallery.origin, far)
    if index:
        ranking, description = search_index(gallery, queries.rows, top)
        print(description)
    else:
        ranking = rank(queries.rows, gallery.embeddings(), top=top)
    found = [*zip(queries.pictures, hits(gallery, ranking, threshold), strict=True)]
    for picture, nearest in found:
        print(shown(picture.path))
        for place, hit in enumerate(nearest, 1):
            print(f"{place:>4}  {hit}  {shown(hit.picture.path)}")
    note = f"no verdicts: the run has no calibration of this checkpoint for a rate of {far:g}"
    note = str(threshold) if threshold else note
    print(note)
    if out is not None:
        write_sheet(out, found, note)
        print(f"wrote {out}")
    for words in queries.unreadable:
        print(f"warning: left out: {words}", file=sys.stderr)
    return 1 if queries.unreadable else 0


def _check_no_picture(out: Path, pictures: Iterable[Path]) -> None:
    """UserError if a sheet would overwrite a picture that it shows."""
    for picture in pictures:
        if picture.name == out.name and picture.exists() and picture.samefile(out):
            raise UserError(f"--out={out}: is a picture of the search; give another name")
