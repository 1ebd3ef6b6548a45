"""Embed pictures into a gallery file, by batches of which a crash costs one at most."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.preprocessing import PictureError
from pgfl_jax.retrieval.search.gallery import (
    SUFFIX,
    Gallery,
    Origin,
    as_rows,
    gallery_table,
    read_gallery,
    write_gallery,
)
from pgfl_jax.retrieval.search.journal import Journal, open_journal
from pgfl_jax.retrieval.search.pictures import Found, Picture


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What :func:`embed_gallery` did.

    Attributes:
        resumed: pictures that an earlier, interrupted process had done.
        known: pictures that the file held before.
        count: pictures that it holds now.
        unreadable: why the others cannot be read, by name.
    """

    resumed: int
    known: int
    count: int
    unreadable: Sequence[str]


def notes(found: Found, done: Embedded) -> Iterator[str]:
    """What was not embedded, and why, a line each."""
    if found.others:
        one, many = (
            "file that is no picture by its name",
            "files that are no pictures by their names",
        )
        yield f"left out: {found.others} {one if found.others == 1 else many}"
    if found.repeated:
        yield f"left out: {found.repeated} given twice"
    if done.known:
        yield f"kept: {done.known} that the file held before"
    if done.resumed:
        yield f"kept: {done.resumed} that were embedded before the interruption"
    yield from (f"warning: left out: {words}" for words in done.unreadable)


def check_output(out: Path, *, add: bool) -> Gallery | None:
    """The gallery that is to be added to; None for a new one. Called before any work is done.

    Raises:
        UserError: the file cannot be written, or exists without ``add``.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out={out}: must end in {SUFFIX}")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"--out={out}: is a folder; give a file")
    if not out.exists():
        return None
    if not add:
        raise UserError(
            f"--out={out}: exists; --add embeds the pictures that it lacks. To embed all of them "
            "again, remove it or give another name"
        )
    return read_gallery(out)


def embed_gallery(
    embedder: Embedder,
    pictures: Sequence[Picture],
    out: Path,
    origin: Origin,
    *,
    held: Gallery | None = None,
    batch_size: int | None = None,
) -> Embedded:
    """Embed pictures and write them to a gallery file.

    Each batch is kept in ``out.part`` as soon as it is computed. The same call goes on from there
    and ends with the same file, to the last digit where the device computes equal batches alike.

    Args:
        embedder: the network.
        pictures: what to embed.
        out: the file, see :func:`check_output`.
        origin: of the embeddings.
        held: what is at ``out``; its pictures are kept, and not embedded again.
        batch_size: pictures per batch; None: the embedder's choice.

    Raises:
        UserError: ``held`` is of another network, ``out.part`` of other pictures or options, or
            no picture can be read.
    """
    known: set[Path] = set()
    if held is not None:
        held.origin.require_same(origin, str(held.path), "the new pictures are")
        known = held.pictures()
    new = [picture for picture in pictures if picture.path not in known]
    if not new:
        return Embedded(0, len(known), len(known), [])
    size = embedder.batch_size(batch_size)
    request = _request(embedder, origin, new, size)
    part = out.with_name(f"{out.name}.part")
    with open_journal(part, request, origin.channels) as journal:
        resumed = journal.count
        _embed_rest(embedder, new, journal, size)
        unreadable = [word for batch in journal.batches() for word in _errors(batch)]
        if len(unreadable) < len(new):
            tables = _tables(journal, new, out.parent.absolute())
            old = held.tables() if held else iter(())
            write_gallery(out, held.origin if held else origin, itertools.chain(old, tables))
        journal.remove()
    if len(unreadable) == len(new) and not known:
        raise UserError(f"none of {len(new)} pictures can be read; the first: {unreadable[0]}")
    count = len(known) + len(new) - len(unreadable)
    return Embedded(resumed, len(known), count, unreadable)


def _request(
    embedder: Embedder, origin: Origin, pictures: Sequence[Picture], size: int
) -> dict[str, Any]:
    """What decides over every digit of the result, by the words of an error message."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            found = picture.path.stat()
            state = found.st_size, found.st_mtime_ns
        except OSError:
            state = None
        digest.update(repr((str(picture.path), picture.identity, picture.camera, state)).encode())
    return {
        "run": [origin.sha256, origin.parameters],
        "arithmetic": embedder.config.model.dtype,
        "pictures": digest.hexdigest(),
        "batch size": size,
    }


def _embed_rest(
    embedder: Embedder, pictures: Sequence[Picture], journal: Journal, size: int
) -> None:
    """Embed what the journal lacks; a progress bar appears when it takes long."""
    errors: collections.deque[PictureError] = collections.deque()
    rest = [picture.path for picture in pictures[journal.count :]]
    batches = embedder.batches(rest, batch_size=size, on_unreadable=errors.append)
    total, done = len(pictures), journal.count
    with tqdm(total=total, initial=done, unit=" pictures", delay=2) as bar:
        for rows in batches:
            lacking = int(np.isnan(rows[:, 0]).sum())
            journal.append(rows, [str(errors.popleft()) for _ in range(lacking)])
            bar.update(len(rows))


def _tables(journal: Journal, pictures: Sequence[Picture], folder: Path) -> Iterator[pa.Table]:
    """The readable pictures, a batch at a time."""
    at = 0
    for batch in journal.batches():
        readable = batch["embedding"].is_valid().to_numpy(zero_copy_only=False)
        listed = pictures[at : at + len(readable)]
        at += len(readable)
        if readable.any():
            kept = [picture for picture, keep in zip(listed, readable, strict=True) if keep]
            rows = as_rows(pa.chunked_array([batch["embedding"].drop_null()]))
            yield gallery_table(kept, rows, folder)


def _errors(batch: pa.RecordBatch) -> list[str]:
    return batch["error"].drop_null().to_pylist()
