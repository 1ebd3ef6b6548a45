"""Whether the user's copy of a data set still holds the files that were prepared."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from input_pipeline.file_tree import IMAGE_SUFFIXES, FileTree, Location

_LISTS = frozenset({".txt", ".list"})
_SIZED = IMAGE_SUFFIXES | {".zip"}


def places_of(source: Path, images: Iterable[Location], lists: Iterable[Location]) -> list[str]:
    """Where a data set's files are: archives, lists, and one folder that holds all other files.

    Args:
        source: the user's folder or archive.
        images: the files of the images.
        lists: the files that name images, if any.

    Returns:
        Paths relative to ``source``.
    """
    folders: set[str] = set()
    files = {location[0] for location in lists}
    for location in images:
        if len(location) > 1:
            files.add(location[0])
        else:
            folders.add(os.path.dirname(location[0]))
    found = [*sorted(files), *([os.path.commonpath(folders)] if folders else [])]
    return [os.path.relpath(place, source) for place in found]


def signature(source: Path, places: Sequence[str]) -> str:
    """Digest of the names and sizes of a copy's images and archives, and of its lists' text.

    Times do not count, since a copy of the same files has others.

    Args:
        source: the user's folder or archive.
        places: from :func:`places_of`.

    Returns:
        A hex digest; empty if one of the places no longer exists.
    """
    digest = hashlib.sha256()
    for place in places:
        path = os.path.normpath(source / place)  # the source may be an archive, and its parts ../…
        if not os.path.exists(path):
            return ""
        if os.path.isdir(path):
            tree = FileTree.scan(Path(path), opens=lambda archive: False)
            named = [(name, location[0]) for name, location in tree.files.items()]
        else:
            named = [(place, path)]
        for name, file in named:
            if content := _content(file):
                digest.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _content(file: str) -> str:
    """The size of an image or archive, the digest of a list; empty for any other file."""
    suffix = os.path.splitext(file)[1].lower()
    try:
        if suffix in _LISTS:
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return str(os.path.getsize(file)) if suffix in _SIZED else ""
    except OSError:  # a broken link
        return ""
