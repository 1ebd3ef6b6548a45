"""Files that are written whole or not at all, and files that are not what they seem."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its name when the context ends well.

    After an error it is deleted, and what was at ``path`` stays. Its name holds the number of the
    process, since other processes may write the same file.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, a folder beside ``path``, which is made.

    A folder that is at ``path`` is deleted when the other takes its name.
    """
    beside, old = (path.with_name(f"{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        beside.mkdir()
        yield beside
        if path.exists():
            path.rename(old)
        beside.rename(path)
    finally:
        for rest in (beside, old):
            shutil.rmtree(rest, ignore_errors=True)


def stand_in(head: bytes) -> str:
    """What a file is and what to do, if a download left something else in its place; or empty.

    Args:
        head: the first bytes of the file; 512 suffice.

    >>> stand_in(b"<!DOCTYPE html><html>").partition(",")[0]
    'a saved web page'
    """
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a saved web page, not the file itself; use the page's download button or link"
    return ""
