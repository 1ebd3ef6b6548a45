"""Which data set a folder or archive is named for.

Market-1501, DukeMTMC-reID and Occluded-Duke have the same three folders, and Occluded-REID shares
its two with other sets: only their names tell them apart.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree, join

# The first match decides, so longer names come before the names that they contain.
_PATTERNS = {
    "occluded_duke": r"occ(luded)?[-_ ]?duke",
    "p_dukemtmc_reid": r"(?<![a-z])p[-_ ]?duke",
    "dukemtmc_reid": r"duke",
    "market1501": r"market",
    "msmt17": r"msmt",
    "occluded_reid": r"occ(luded)?[-_ ]?re-?id",
    "partial_ilids": r"ilids",
    "partial_reid": r"partial[-_ ]?re-?id",
}


class MissingSetError(DataError):
    """The tree does not contain the data set."""


def named_set(path: str) -> str | None:
    """The data set named by the innermost part of a posix path that names one.

    >>> named_set("duke/Occluded_Duke.zip/Occluded_Duke/data")
    'occluded_duke'
    """
    for part in reversed(path.split("/")):
        for name, pattern in _PATTERNS.items():
            if re.search(pattern, part.lower()):
                return name
    return None


def scan_for(names: Collection[str | None], source: Path) -> FileTree:
    """The files of a folder or archive, with the archives in it that are named for ``names``.

    Args:
        names: the data sets; None stands for archives that are not named for any set.
        source: the folder or archive.
    """
    return FileTree.scan(source, lambda path: named_set(path) in names)


def find_root(tree: FileTree, name: str, entries: Collection[str]) -> str | None:
    """The folder of a data set: it has all ``entries``, and its path names this set or none.

    A path that names the set is preferred to one that names none, and a folder to an archive.

    Returns:
        The relative path of the folder ("" is the source itself), or None.

    Raises:
        DataError: several folders could be meant.
    """
    complete = [root for root, missing in tree.roots(list(entries)).items() if not missing]
    own = [root for root in complete if named_root(tree, root) == name]
    unnamed = [root for root in complete if named_root(tree, root) is None]
    candidates = own or unnamed
    unpacked = [root for root in candidates if ".zip" not in root.lower()]
    candidates = tree.distinct(unpacked or candidates)
    if len(candidates) > 1:
        shown = ", ".join(tree.display(root) for root in candidates)
        raise DataError(
            f"{tree.source}: several folders could be {name}: {shown}; "
            "give one of them as --config.data.manual_dir"
        )
    return candidates[0] if candidates else None


def explain_missing(
    tree: FileTree, name: str, entries: Collection[str], wanted: str
) -> MissingSetError:
    """The error that says in one line why this set was not found, with the remedy."""
    unread = dict(tree.problems)
    for path, words in tree.other_archives().items():
        unread[path] = f"{tree.display(path)}: {words}"
    roots = tree.roots(list(entries))
    for named in (name, None):  # a folder that is named for the set is the better hint
        near = [root for root in roots if named_root(tree, root) == named]
        near.sort(key=lambda root: len(roots[root]))
        lines = [
            f"{tree.display(root)}: {_fault(tree, root, roots[root])}; "
            f"--config.data.manual_dir must hold {wanted}"
            for root in near
        ]
        if named == name:
            lines += [line for path, line in unread.items() if named_root(tree, path) == name]
        if lines:
            return MissingSetError(lines[0])
    others = sorted({str(named_root(tree, root)) for root in roots})
    found = f" (what it holds is named for {', '.join(others)})" if others else ""
    unnamed = [line for path, line in unread.items() if named_root(tree, path) is None]
    unseen = f" ({len(unnamed)} not looked into; {unnamed[0]})" if unnamed else ""
    return MissingSetError(f"{tree.source}: no {name} in it{found}; it must hold {wanted}{unseen}")


def _fault(tree: FileTree, root: str, missing: list[str]) -> str:
    """Why a folder is not the data set's."""
    if {join(root, "train_all"), join(root, "gallery")} <= tree.folders:
        return (
            "a copy with a folder for each person (train_all/0002/…), as a baseline's prepare.py "
            "makes it; give the original, which is usually the folder above"
        )
    return f"lacks {', '.join(missing)}"


def named_root(tree: FileTree, root: str) -> str | None:
    """The set that a folder's path names, or else the source's name or the target of its link."""
    linked, given = tree.source.resolve().name, os.path.basename(os.path.abspath(tree.source))
    return named_set(f"{linked}/{given}/{root}")
