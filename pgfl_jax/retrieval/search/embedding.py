"""Embed pictures into a gallery file, by batches of which a crash costs one at most."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
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
        known: pictures that the file held before, and whose embeddings are kept.
        changed: those whose pictures are newer than the file, so that they were embedded again.
        count: pictures that it holds now.
        unreadable: why the others cannot be read, by name.
    """

    resumed: int
    known: int
    changed: int
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
    if done.changed:
        yield f"embedded again: {done.changed} that are newer than the file"
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
        held: what is at ``out``; its pictures are kept, and embedded again only if they are newer.
        batch_size: pictures per batch; None: the embedder's choice.

    Raises:
        UserError: ``held`` is of another network, ``out.part`` of other pictures or options, or
            no picture can be read.
    """
    known: set[Path] = set()
    changed: set[Path] = set()
    if held is not None:
        held.origin.require_same(origin, str(held.path), "the new pictures are")
        known = held.pictures()
        changed = {one.path for one in pictures if one.path in known and _newer(one.path, out)}
        pictures = _with_labels(pictures, held, changed)
        known -= changed
    new = [picture for picture in pictures if picture.path not in known]
    if not new:
        return Embedded(0, len(known), 0, len(known), [])
    size = embedder.batch_size(batch_size)
    request = _request(embedder, origin, new, size)
    part = out.with_name(f"{out.name}.part")
    with open_journal(part, request, origin.channels) as journal:
        resumed = journal.count
        _embed_rest(embedder, new, journal, size)
        unreadable = [word for batch in journal.batches() for word in _errors(batch)]
        if len(unreadable) < len(new):
            tables = _tables(journal, new, out.parent.absolute())
            old = _kept(held, changed) if held else iter(())
            write_gallery(out, held.origin if held else origin, itertools.chain(old, tables))
        journal.remove()
    if len(unreadable) == len(new) and not known:
        raise UserError(f"none of {len(new)} pictures can be read; the first: {unreadable[0]}")
    count = len(known) + len(new) - len(unreadable)
    return Embedded(resumed, len(known), len(changed), count, unreadable)


def _newer(picture: Path, file: Path) -> bool:
    """Whether a picture was written after a gallery, which may hold the embedding of another."""
    try:
        return picture.stat().st_mtime_ns > file.stat().st_mtime_ns
    except OSError:
        return False


def _with_labels(
    pictures: Sequence[Picture], held: Gallery, changed: Collection[Path]
) -> Sequence[Picture]:
    """The pictures; those that changed have the labels of the gallery where none are given."""
    if not changed:
        return pictures
    before = {one.path: one for one in map(held.picture, range(len(held))) if one.path in changed}
    return [
        dataclasses.replace(
            one,
            identity=one.identity or before[one.path].identity,
            camera=one.camera or before[one.path].camera,
        )
        if one.path in changed
        else one
        for one in pictures
    ]


def _kept(held: Gallery, changed: Collection[Path]) -> Iterator[pa.Table]:
    """What a gallery holds, without the pictures that changed."""
    folder = held.path.parent.absolute()
    for table in held.tables():
        if changed:
            kept = [folder / path not in changed for path in table["path"].to_pylist()]
            table = table.filter(pa.array(kept))
        yield table


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
