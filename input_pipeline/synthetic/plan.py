"""The pictures of a data set: which person, which camera, occluded or not."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.synthetic.settings import Preset, Stream, random_stream

SPLITS = ("train", "query", "query_holistic", "gallery")


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture to take.

    Attributes:
        split: one of ``SPLITS``.
        index: position in the split, from the plan's first index on.
        person: index into the people of the data set; also the identity label.
        camera: 0-based camera.
        occluded: whether something is in front of the person.
        filename: as in Market-1501: identity, 1-based camera, running number.
    """

    split: str
    index: int
    person: int
    camera: int
    occluded: bool
    filename: str


def _cameras_of(preset: Preset, person: int) -> np.ndarray:
    """The cameras that see a person, in order of appearance."""
    rng = random_stream(preset.seed, Stream.PLAN, len(SPLITS), person)
    return rng.permutation(preset.cameras)[: preset.cameras_per_identity]


def _occluded(preset: Preset, split: str, count: int) -> np.ndarray:
    """Which pictures of a split are occluded, (count,) bool; their number is exact."""
    shares = {
        "train": preset.scene.train_occluded,
        "query": 1.0,
        "query_holistic": 0.0,
        "gallery": preset.scene.gallery_occluded,
    }
    rng = random_stream(preset.seed, Stream.PLAN, SPLITS.index(split))
    return rng.permutation(count) < round(shares[split] * count)


def plan_split(preset: Preset, split: str) -> list[Shot]:
    """All pictures of a split, grouped by person.

    Pictures are spread evenly over people, and a person's pictures over their cameras in turn. So a
    person with two or more gallery pictures is in the gallery under at least two cameras.
    """
    first_test = preset.train_identities
    persons, images = {
        "train": (range(first_test), preset.train_images),
        "query": (range(first_test, first_test + preset.test_identities), preset.query_images),
        "query_holistic": (
            range(first_test, first_test + preset.test_identities),
            preset.query_holistic_images,
        ),
        "gallery": (
            range(first_test, first_test + preset.gallery_identities),
            preset.gallery_images,
        ),
    }[split]
    who = _evenly(persons, images)
    cameras = {person: _cameras_of(preset, person) for person in persons}
    occluded = _occluded(preset, split, images)
    # A set for validation has the cameras and the seed of another, but must not repeat its scenes.
    first = 0 if preset.train_images else 1_000_000
    shots: list[Shot] = []
    taken = 0
    for index, person in enumerate(who):
        taken = taken + 1 if index and who[index - 1] == person else 0
        camera = int(cameras[person][taken % preset.cameras_per_identity])
        name = f"{person:04d}_c{camera + 1}_{SPLITS.index(split)}{index:05d}.jpg"
        shots.append(Shot(split, first + index, person, camera, bool(occluded[index]), name))
    return shots


def _evenly(persons: Sequence[int], images: int) -> list[int]:
    """``images`` entries grouped by person, with numbers that differ by at most one.

    >>> _evenly([7, 8], 5)
    [7, 7, 7, 8, 8]
    """
    each, more = divmod(images, len(persons))
    return [p for i, p in enumerate(persons) for _ in range(each + (i < more))]
