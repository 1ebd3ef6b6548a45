"""The lists of MSMT17, with lines such as ``0000/0000_000_01_0303morning_0015_0.jpg 0``."""

import dataclasses
import types

from input_pipeline.builders.base import Survey
from input_pipeline.builders.folders import ImageSetBuilder, match_image
from input_pipeline.builders.records import Record
from input_pipeline.builders.text import missing_files, read_lines
from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree, join

LISTS = types.MappingProxyType(
    {
        "train": ("list_train.txt", "list_val.txt"),
        "query": ("list_query.txt",),
        "gallery": ("list_gallery.txt",),
    }
)
_PATTERN = r"(?:.*/)?[^_/]+_[^_/]+_(?P<camera>\d+)_[^/]*"  # the camera is the third field
_EXAMPLE = "0000/0000_000_01_0303morning_0015_0.jpg 0"


def survey_lists(
    builder: ImageSetBuilder, tree: FileTree, root: str, train: str, test: str
) -> Survey:
    """The images that the lists name.

    The lists count training and test identities from 0. The test identities are moved behind the
    training ones, so that each number means one person.

    Args:
        builder: checks the cameras.
        tree: the user's files.
        root: the data set's folder in the tree.
        train: name of the folder with the training images.
        test: name of the folder with the other images.

    Raises:
        DataError: a list cannot be read, names files that do not exist, or gives an image another
            identity than its folder.
    """
    names = [name for lists in LISTS.values() for name in lists]
    survey = Survey(lists=[tree.files[join(root, name)] for name in names])
    offset = 0
    for split, lists in LISTS.items():
        folder = train if split == "train" else test
        records = [
            dataclasses.replace(record, identity=record.identity + offset)
            for name in lists
            for record in _read_list(builder, tree, root, name, folder)
        ]
        if split == "train":
            offset = 1 + max(record.identity for record in records)
        survey.records[split] = records
    listed = {record.filename for records in survey.records.values() for record in records}
    for folder in (train, test):
        files = [join(folder, path) for path in tree.files_in(join(root, folder))]
        survey.unmatched += [path for path in files if path not in listed]
    return survey


def _read_list(
    builder: ImageSetBuilder, tree: FileTree, root: str, name: str, folder: str
) -> list[Record]:
    """The images of one list, in its order."""
    path = join(root, name)
    records, missing = [], []
    for number, line in read_lines(tree, path):
        image, _, identity = line.rpartition(" ")
        match = match_image(_PATTERN, image.strip())
        if match is None or not identity.isdecimal():
            raise DataError(f"{tree.display(path)}, line {number}: not like {_EXAMPLE!r}")
        person = image.strip().rpartition("/")[0].rpartition("/")[2]
        if person.isdecimal() and int(person) != int(identity):
            raise DataError(
                f"{tree.display(path)}, line {number}: identity {identity}, but the image is in "
                f"the folder {person}; get the list again"
            )
        filename = join(folder, image.strip())
        file = join(root, filename)
        if file not in tree.files:
            missing.append(filename)
            continue
        camera = builder.checked_camera(int(match["camera"]), tree.display(file))
        records.append(Record(tree.files[file], filename, int(identity), camera))
    if missing or not records:
        raise missing_files(tree, path, missing, tree.display(root))
    return records
