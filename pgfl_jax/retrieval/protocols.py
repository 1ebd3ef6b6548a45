"""What is evaluated: splits of images, and which of them queries which."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from pgfl_jax.errors import UserError

Batch = Mapping[str, np.ndarray]

CAMERA_RULE = "a match has the query's identity and another camera"
JUNK_RULE = "the query's identity and camera: leaves the ranking"


class Limb(NamedTuple):
    """A line of a skeleton.

    Attributes:
        part: number of its body part.
        start: x, y in [0, 1] of the image's width and height, for a joint inside it.
        end: likewise.
    """

    part: int
    start: tuple[float, float]
    end: tuple[float, float]


class EvaluationError(UserError):
    """An evaluation that would be meaningless; the message names the cause."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """What is known about N images.

    Attributes:
        filenames: (N,) names.
        identities: (N,) identities.
        cameras: (N,) cameras.
        occlusion: (N,) hidden share of the person in [0, 1]; NaN where unknown.
    """

    filenames: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    occlusion: np.ndarray

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.filenames)

    def select(self, chosen: Bool[np.ndarray, " images"]) -> "Images":
        """The images where ``chosen`` is true."""
        known = self.filenames, self.identities, self.cameras, self.occlusion
        return Images(*(values[chosen] for values in known))


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSplit(Images):
    """Images to embed.

    Attributes:
        batches: starts an iteration over the images in their order, in batches of one static
            shape: ``images``, ``part_maps``, ``visibility``, and ``valid``, 0 for padding rows.
        encoded: the image files, for those who decode them another way.
        image_sha256: (N,) hex digests of the image files; empty if they are not known.
        limbs: the skeleton of an image by its row; None if poses were not read.
    """

    batches: Callable[[], Iterator[Batch]]
    encoded: Sequence[bytes] | np.ndarray = ()
    image_sha256: Sequence[str] | np.ndarray = ()
    limbs: Callable[[int], list[Limb]] | None = None


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which split of a data set queries which; every result carries the names."""

    name: str
    dataset: str
    query: str
    gallery: str


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Splits by name, and the protocols over them; the first protocol selects the best step.

    Attributes:
        splits: by name.
        protocols: over these splits.
        dry_run: a few images of each protocol, to see early what cannot work.
        parts: names of the body parts, in the order of part maps and limbs.
        pictures: reads a few query images, with part maps if poses are trained with, to watch
            during training: ``images``, ``part_maps``, ``visibility``; None: none are watched.
    """

    splits: dict[str, EvaluationSplit]
    protocols: list[Protocol]
    dry_run: "EvaluationData | None" = None
    parts: Sequence[str] = ()
    pictures: Callable[[], Batch] | None = None

    @property
    def selection_protocol(self) -> str:
        """What selects the best step, for the manifest."""
        return f"{self.protocols[0].query} in {self.protocols[0].gallery}"

    @property
    def selection_digests(self) -> dict[str, str]:
        """Digests of the images that select the best step, by their names in the manifest.

        ``best_by_sha256`` is that of names, identities and cameras; ``best_by_images_sha256`` that
        of the files.
        """
        protocol = self.protocols[0]
        splits = [self.splits[name] for name in (protocol.query, protocol.gallery)]
        return {
            "best_by_sha256": _digest([_known(split) for split in splits]),
            "best_by_images_sha256": _digest([_files(split) for split in splits]),
        }

    def facts(self) -> dict[str, Any]:
        """What must be equal in all processes, by the name that an error gives it."""
        splits = {
            f"evaluation data {name}": [*_known(split), _files(split)]
            for name, split in self.splits.items()
        }
        return {"protocols": [dataclasses.astuple(p) for p in self.protocols]} | splits


def fingerprint(protocol: Protocol, splits: Mapping[str, Images]) -> dict[str, Any]:
    """What a score was computed on and by which rules; equal for scores that can be compared.

    Args:
        protocol: names the two splits.
        splits: by name; of these images.

    Returns:
        The rules in words; ``num_query`` and ``num_gallery``; ``query_sha256`` and
        ``gallery_sha256`` of the names, identities and cameras in their order; and ``sha256`` of
        all of these.
    """
    query, gallery = splits[protocol.query], splits[protocol.gallery]
    facts = {
        "camera_rule": CAMERA_RULE,
        "junk_rule": JUNK_RULE,
        "num_query": len(query),
        "num_gallery": len(gallery),
        "query_sha256": _digest(_known(query)),
        "gallery_sha256": _digest(_known(gallery)),
    }
    return facts | {"sha256": _digest(facts)}


def _digest(values: Any) -> str:
    """SHA-256 of values in JSON's types."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _known(images: Images) -> list[list[Any]]:
    """Names, identities and cameras, in JSON's types."""
    filenames = [str(filename) for filename in images.filenames]
    return [filenames, images.identities.tolist(), images.cameras.tolist()]


def _files(split: EvaluationSplit) -> list[str]:
    """The digests of the image files, in JSON's types."""
    return [str(digest) for digest in split.image_sha256]
