"""Fabricate small data sets in the published layouts of the real ones."""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

Image = tuple[str, int, int]  # path below the set's folder, identity, camera


@dataclasses.dataclass(frozen=True)
class Tree:
    """A data set as it is published, and how it should be read.

    Attributes:
        root: the folder that the authors' archive holds.
        splits: the images of each split.
        left_out: images of identity -1.
        lists: text files by path.
        protocols: names of the protocols that score it.
        by_name: whether files of one name are one picture, whatever their folders.
    """

    root: str
    splits: Mapping[str, list[Image]]
    left_out: tuple[str, ...] = ()
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)
    protocols: tuple[str, ...] = ("query",)
    by_name: bool = False

    def image(self, path: str) -> bytes:
        """The contents of an image file."""
        return encoded_picture(path.rpartition("/")[2] if self.by_name else path)


def picture(path: str, height: int = 64, width: int = 32) -> np.ndarray:
    """Coloured blocks, (height, width, 3) uint8 BGR, that depend only on the path."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def encoded_picture(path: str) -> bytes:
    """The picture of a path, encoded in the format of its suffix."""
    suffix = "." + path.rpartition(".")[2].lower()
    return cv2.imencode(suffix, picture(path))[1].tobytes()


def write_tree(name: str, folder: Path) -> None:
    """Write a data set's folder into ``folder``; ``name`` is a key of ``TREES``."""
    tree = TREES[name]
    images = [path for split in tree.splits.values() for path, _, _ in split]
    for path in {*images, *tree.left_out}:
        write_bytes(folder / tree.root / path, tree.image(path))
    for path, text in tree.lists.items():
        write_bytes(folder / tree.root / path, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _market1501() -> Tree:
    train = [
        (f"bounding_box_train/{i:04}_c{c}s1_{n:06}_00.jpg", i, c)
        for i in (2, 7, 10, 1500)
        for c, n in ((1, 451), (1, 476), (3, 2), (6, 33))
    ]
    return Tree(
        "Market-1501-v15.09.15",
        {
            "train": train,
            "query": [
                ("query/0001_c1s1_001051_00.jpg", 1, 1),
                ("query/0003_c5s3_015240_00.jpg", 3, 5),
            ],
            "gallery": [
                ("bounding_box_test/0000_c2s1_000551_04.jpg", 0, 2),
                ("bounding_box_test/0001_c1s1_001051_03.jpg", 1, 1),
                ("bounding_box_test/0001_c4s6_016316_01.jpg", 1, 4),
                ("bounding_box_test/0003_c2s1_000901_02.jpg", 3, 2),
            ],
        },
        left_out=(
            "bounding_box_test/-1_c1s1_000401_03.jpg",
            "bounding_box_test/-1_c6s3_097467_02.jpg",
        ),
    )


_DUKE_TRAIN = [
    (f"bounding_box_train/{i:04}_c{c}_f{n:07}.jpg", i, c)
    for i in (1, 5, 8, 2013)
    for c, n in ((1, 44158), (1, 44278), (2, 44018), (8, 134067))
]


def _dukemtmc_reid() -> Tree:
    return Tree(
        "DukeMTMC-reID",
        {
            "train": _DUKE_TRAIN,
            "query": [
                ("query/0003_c1_f0044158.jpg", 3, 1),
                ("query/0004_c8_f0134067.jpg", 4, 8),
            ],
            "gallery": [
                ("bounding_box_test/0003_c2_f0044278.jpg", 3, 2),
                ("bounding_box_test/0004_c1_f0044018.jpg", 4, 1),
                ("bounding_box_test/0004_c7_f0044019.jpg", 4, 7),
                ("bounding_box_test/7139_c2_f0160000.jpg", 7139, 2),
            ],
        },
        by_name=True,
    )


def _occluded_duke() -> Tree:
    """DukeMTMC-reID in a new split: two gallery images are queries, one of them in both."""
    return Tree(
        "Occluded_Duke",
        {
            "train": _DUKE_TRAIN[:12],
            "query": [
                ("query/0003_c2_f0044278.jpg", 3, 2),
                ("query/0004_c7_f0044019.jpg", 4, 7),
            ],
            "gallery": [
                ("bounding_box_test/0003_c1_f0044158.jpg", 3, 1),
                ("bounding_box_test/0004_c1_f0044018.jpg", 4, 1),
                ("bounding_box_test/0004_c7_f0044019.jpg", 4, 7),
                ("bounding_box_test/7139_c2_f0160000.jpg", 7139, 2),
            ],
        },
        by_name=True,
    )


def occluded_duke_lists() -> dict[str, str]:
    """The three public lists, by name: one file name per line, some with a folder."""
    splits = TREES["occluded_duke"].splits
    names = {split: [path.rpartition("/")[2] for path, _, _ in splits[split]] for split in splits}
    names["query"] = [f"Occluded_Duke/query/{name}" for name in names["query"]]
    return {f"{split}.list": "\n".join(names[split]) + "\n" for split in names}


def _occluded_reid() -> Tree:
    return Tree(
        "Occluded_REID",
        {
            "query": [
                (f"occluded_body_images/{i:03}/{i:03}_{n:02}.tif", i, 0)
                for i in (1, 200)
                for n in (1, 2)
            ],
            "gallery": [
                (f"whole_body_images/{i:03}/{i:03}_{n:02}.tif", i, 1)
                for i in (1, 200)
                for n in (1, 6)
            ],
        },
    )


def _partial_reid() -> Tree:
    parts = {
        "query_partial": ("partial", 0),
        "query_occluded": ("occluded", 0),
        "gallery": ("whole", 1),
    }
    splits = {
        split: [(f"{kind}_body_images/{i:03}_001.jpg", i, camera) for i in (1, 2, 60)]
        for split, (kind, camera) in parts.items()
    }
    return Tree("PartialREID", splits, protocols=("partial", "occluded"))


def _partial_ilids() -> Tree:
    splits = {
        "query": [(f"Probe/{i}.jpg", i, 0) for i in (1, 2, 119)],
        "gallery": [(f"Gallery/{i}.jpg", i, 1) for i in (1, 2, 119)],
    }
    return Tree("Partial_iLIDS", splits)


def _p_dukemtmc_reid() -> Tree:
    def images(folder: str, identities: tuple[int, ...], camera: int) -> list[Image]:
        return [
            (f"{folder}/{i:04}/{i:04}_c{c}_f{c:07}.jpg", i, camera)
            for i in identities
            for c in (1, 2)
        ]

    return Tree(
        "P-DukeMTMC-reid",
        {
            "train": images("train/occluded_body_images", (1, 2, 3, 9), 0)
            + images("train/whole_body_images", (1, 2, 3, 9), 1),
            "query": images("test/occluded_body_images", (4, 6), 0),
            "gallery": images("test/whole_body_images", (4, 6), 1),
        },
    )


def _msmt17(root: str, train: str, test: str) -> Tree:
    """Identities 0 … 3 are trained on; 0 and 1 of the test lists become 4 and 5."""

    def image(identity: int, number: int, camera: int) -> str:
        return f"{identity:04}/{identity:04}_{number:03}_{camera:02}_0303morning_0015_{number}.jpg"

    shots = {
        "list_train.txt": [(i, n, c) for i in range(4) for n, c in ((0, 1), (1, 1), (2, 15))],
        "list_val.txt": [(i, 3, 7) for i in range(4)],
        "list_query.txt": [(0, 0, 14), (1, 0, 3)],
        "list_gallery.txt": [(0, 1, 14), (0, 2, 1), (1, 1, 2)],
    }
    lists = {name: "".join(f"{image(*shot)} {shot[0]}\n" for shot in shots[name]) for name in shots}

    def split(folder: str, offset: int, *names: str) -> list[Image]:
        return [
            (f"{folder}/{image(*shot)}", shot[0] + offset, shot[2])
            for name in names
            for shot in shots[name]
        ]

    return Tree(
        root,
        {
            "train": split(train, 0, "list_train.txt", "list_val.txt"),
            "query": split(test, 4, "list_query.txt"),
            "gallery": split(test, 4, "list_gallery.txt"),
        },
        lists=lists,
    )


# By the data set's name in a configuration.
TREES: dict[str, Tree] = {
    "market1501": _market1501(),
    "dukemtmc_reid": _dukemtmc_reid(),
    "occluded_duke": _occluded_duke(),
    "occluded_reid": _occluded_reid(),
    "partial_reid": _partial_reid(),
    "partial_ilids": _partial_ilids(),
    "p_dukemtmc_reid": _p_dukemtmc_reid(),
    "msmt17/v1": _msmt17("MSMT17_V1", "train", "test"),
    "msmt17/v2": _msmt17("MSMT17_V2", "mask_train_v2", "mask_test_v2"),
}
