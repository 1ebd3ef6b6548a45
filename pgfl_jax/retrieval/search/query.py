"""Find the pictures of a gallery that are nearest to queries, and say what the scores mean."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pgfl_jax.embedder import load
from pgfl_jax.errors import UserError
from pgfl_jax.export.verify import RECORD
from pgfl_jax.retrieval.blocks import Ranking
from pgfl_jax.retrieval.search.gallery import SUFFIX, Gallery, Origin, Rows, read_gallery
from pgfl_jax.retrieval.search.pictures import Picture, find_pictures


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """Pictures to search for.

    Attributes:
        pictures: the Q pictures.
        rows: (Q, D) their embeddings.
        unreadable: why others cannot be read, by name.
    """

    pictures: Sequence[Picture]
    rows: Rows
    unreadable: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        picture: of the gallery.
        score: its cosine with the query, in [−1, 1].
        verdict: whether it is the same person, by the calibrated threshold; None without one.
    """

    picture: Picture
    score: float
    verdict: bool | None

    def __str__(self) -> str:
        """Score, verdict and who it is."""
        words = {True: "match", False: "no match", None: ""}[self.verdict]
        known = (("identity", self.picture.identity), ("camera", self.picture.camera))
        who = ", ".join(f"{name} {text}" for name, text in known if text is not None)
        return "  ".join(part for part in (f"{self.score:.3f}", words, who) if part)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Up to which distance two pictures are called the same person.

    Attributes:
        distance: the largest cosine distance of a match.
        far: rate at which pairs of different people were called a match when it was calibrated.
        source: the file that it is from.
    """

    distance: float
    far: float
    source: Path

    def __str__(self) -> str:
        """A line for people."""
        return (
            f"a match scores at least {1 - self.distance:.3f}: {self.far:g} of the pairs of "
            f"different people do ({self.source.name})"
        )


def read_queries(given: Sequence[Path], gallery: Gallery, run: Path | None = None) -> Queries:
    """Embed query pictures by the gallery's network, or read embeddings of them.

    Args:
        given: as :func:`pgfl_jax.retrieval.search.pictures.find_pictures` takes them; also files
            of ``pgfl embed``.
        gallery: what will be searched.
        run: the folder of the run; None: where the gallery's was.

    Raises:
        UserError: the queries' embeddings are of another network than the gallery's, the run is
            no longer there, or no picture can be read.
    """
    files = [read_gallery(path) for path in given if path.suffix == SUFFIX]
    for file in files:
        gallery.origin.require_same(file.origin, str(gallery.path), f"{file.path} holds those")
    pictures = [file.picture(index) for file in files for index in range(len(file))]
    rows = [file.embeddings() for file in files]
    if rest := [path for path in given if path.suffix != SUFFIX]:
        embedded = _embed(find_pictures(rest).pictures, gallery, run)
        pictures += embedded.pictures
        rows.append(embedded.rows)
        return Queries(pictures, np.concatenate(rows), embedded.unreadable)
    return Queries(pictures, np.concatenate(rows))


def _embed(pictures: Sequence[Picture], gallery: Gallery, run: Path | None) -> Queries:
    origin = gallery.origin
    if run is None and not os.path.isdir(origin.run):
        raise UserError(
            f"{gallery.path}: made with the run {origin.run}, which is not there; say where it is "
            "with --run"
        )
    folder = run or Path(origin.run)
    if (folder / RECORD).is_file():
        embedder = load(folder)
    else:
        embedder = load(folder, checkpoint=origin.step, parameters=origin.parameters)
    ours = Origin.of(embedder, folder)
    origin.require_same(ours, str(gallery.path), f"--run={folder} gives those")
    unreadable: list[Exception] = []
    paths = [picture.path for picture in pictures]
    rows = embedder(paths, on_unreadable=unreadable.append)
    readable = ~np.isnan(rows[:, 0])
    if not readable.any():
        raise UserError(f"none of {len(paths)} queries can be read; the first: {unreadable[0]}")
    kept = [picture for picture, keep in zip(pictures, readable, strict=True) if keep]
    return Queries(kept, rows[readable], [str(error) for error in unreadable])


def hits(
    gallery: Gallery, ranking: Ranking, threshold: Threshold | None = None
) -> Iterator[list[Hit]]:
    """The pictures found for each query, the nearest first.

    Args:
        gallery: what was searched.
        ranking: the indices, −1 where an index found less, and their cosine distances.
        threshold: from which score on it is a match.
    """
    for indices, distances in zip(*ranking, strict=True):
        hit = indices >= 0
        found = zip(indices[hit].tolist(), distances[hit].tolist(), strict=True)
        limit = threshold and threshold.distance
        yield [
            Hit(gallery.picture(index), 1 - at, None if limit is None else at <= limit)
            for index, at in found
        ]


def read_threshold(run: Path, origin: Origin, far: float) -> Threshold | None:
    """The strictest threshold of a run's calibrations for a false accept rate; None without any.

    Args:
        run: the run's folder, with ``results/<protocol>.calibration.json``.
        origin: of the embeddings. The calibration of another checkpoint says nothing about them.
        far: the rate; None too, if the run is calibrated for other ones, or on too few pairs.

    Raises:
        UserError: such a file is damaged.
    """
    found = []
    wanted = {
        "step": origin.step,
        "parameters": origin.parameters,
        "embedding": "main",
        "distance": "cosine",
        "flip": False,
    }
    for path in sorted((run / "results").glob("[!.]*.calibration*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if wanted.items() <= content["scored"].items():
                points = {point["far"]: point["threshold"] for point in content["operating_points"]}
                found += [Threshold(points[far], far, path)] if points.get(far) is not None else []
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged; evaluate again (pgfl evaluate)") from error
    return min(found, key=lambda threshold: threshold.distance, default=None)


def shown(path: Path) -> str:
    """A path as short as it can be from the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
