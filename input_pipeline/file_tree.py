"""A read-only tree of files over a folder or a zip archive, with the zips inside either.

Data sets come as folders, as archives and as archives within archives. Here they all look the same:
an archive is a folder with the archive's name. Nothing is unpacked to disk, except that an archive
within an archive is copied into an anonymous temporary file.
"""

import dataclasses
import functools
import lzma
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from input_pipeline.errors import DataError
from pgfl_jax.files import stand_in

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
# Archives without random access, or that Python cannot read: the user has to unpack them.
_OTHER_ARCHIVES = {
    r"\.(crdownload|part|partial|filepart|opdownload|download|aria2)":
        "a download that has not ended; get it again",
    r"\.((zip|7z|rar|tar(\.\w+)?)\.\d{2,3}|[zr]\d\d)":
        "part of a split archive; join and unpack the parts with 7-Zip, and give the folder",
    r"\.(tar|t(ar\.)?(gz|bz2|xz|zst|lz4?|z)|tbz2?|rar|7z)":
        "only zip archives can be read; unpack it, give the folder",
}  # fmt: skip
_JUNK_NAMES = frozenset({"__macosx", ".ds_store", "thumbs.db"})
# Published sets are at most zips within a zip. The limit stops an archive that contains itself.
_MAX_NESTING = 3
# Errors from opening or reading a damaged, encrypted or unreadable archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)

# Compressions of zip archives that Python cannot undo.
_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
# Google Drive splits a download into complete archives NAME-001.zip, NAME-002.zip …
_PART = re.compile(r"-\d{3}(?=\.zip$)", re.IGNORECASE)

# The place of a file: a path on disk, then the member's name within each archive along the way.
Location = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FileTree:
    """The files under a folder or within a zip archive.

    Attributes:
        source: the folder or archive.
        files: relative posix path of each file → its location, sorted by path. An archive is a
            folder, as in ``sets.zip/Market-1501.zip/query/a.jpg``. The parts NAME-001.zip,
            NAME-002.zip … of one download are one folder, named for the first.
        folders: relative posix paths of all folders, including archives; "" is the source.
        problems: path of each archive or folder that could not be opened → the reason in one line.
    """

    source: Path
    files: dict[str, Location]
    folders: frozenset[str]
    problems: Mapping[str, str]

    @classmethod
    def scan(cls, source: Path, opens: Callable[[str], bool] = lambda path: True) -> "FileTree":
        """List a folder or zip archive.

        Args:
            source: the folder or archive.
            opens: whether to open the archive at this relative path; an archive that is not opened
                is an ordinary file.

        Raises:
            DataError: ``source`` does not exist, or is neither a folder nor a zip archive.
        """
        listing = _Listing(opens)
        if source.is_dir():
            listing.add_folder(source)
        elif not source.exists():
            raise DataError(f"config.data.manual_dir: no folder or zip archive {source}")
        elif zipfile.is_zipfile(source) or source.suffix.lower() == ".zip":
            listing.add_archive("", (str(source),))
            for part in _other_parts(source):
                listing.add_part("", (str(part),))
        elif words := _other_archive(source.name):
            raise DataError(f"{source}: {words}")
        else:
            raise DataError(f"{source}: neither a folder nor a zip archive")
        files = dict(sorted(listing.files.items()))
        return cls(source, files, frozenset(listing.folders), listing.problems)

    def read(self, path: str) -> bytes:
        """The contents of the file at a relative posix path."""
        return read_file(self.files[path])

    def display(self, path: str) -> str:
        """A relative path as a path that a user can look up."""
        return str(self.source / path) if path else str(self.source)

    def files_in(self, folder: str) -> list[str]:
        """Paths of all files in a folder, at any depth, relative to the folder and sorted."""
        prefix = join(folder, "")
        return [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)]

    def roots(self, entries: Sequence[str]) -> dict[str, list[str]]:
        """Each folder with at least one of the relative ``entries`` → the entries that it lacks.

        Args:
            entries: files or folders, such as ``query`` or ``test/whole_body_images``.

        Returns:
            Sorted by folder; "" is the source itself. A folder with all entries has an empty list.
        """
        present = self.folders | self.files.keys()
        tails = {entry.rpartition("/")[2] for entry in entries}
        roots: set[str] = set()
        for path in present:
            if path.rpartition("/")[2] in tails:
                fitting = [entry for entry in entries if f"/{path}".endswith(f"/{entry}")]
                roots.update(path[: -len(entry)].rstrip("/") for entry in fitting)
        return {
            root: [entry for entry in entries if join(root, entry) not in present]
            for root in sorted(roots)
        }

    def distinct(self, folders: Iterable[str]) -> list[str]:
        """The folders without those that link to an earlier one."""
        places: dict[str, str] = {}
        for folder in folders:
            places.setdefault(os.path.realpath(self.source / folder), folder)
        return list(places.values())

    def other_archives(self) -> dict[str, str]:
        """Paths of the archives that cannot be read as they are, and what to do with each."""
        return {path: words for path in self.files if (words := _other_archive(path))}


def read_file(location: Location) -> bytes:
    """The contents of a file on disk or in an archive.

    Raises:
        DataError: the file cannot be read, or its archive is damaged; the message names both.
    """
    if len(location) == 1:
        try:
            return Path(location[0]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{location[0]}: cannot be read ({_one_line(error)}); repair or remove the file"
            ) from error
    try:
        return _archive(location[:-1]).read(location[-1])
    except _ZIP_ERRORS as error:
        raise DataError(
            _unsupported(location, error)
            or f"{_describe(location)}: cannot be read ({_one_line(error)}); get the archive again"
        ) from error


def join(folder: str, name: str) -> str:
    """A relative posix path; the folder may be "", the source itself.

    >>> join("test", "query"), join("", "query")
    ('test/query', 'query')
    """
    return f"{folder}/{name}" if folder else name


def close_archives() -> None:
    """Close all open archives and delete their temporary files."""
    _archive.cache_clear()


class _Listing:
    """Collects the entries of a tree."""

    def __init__(self, opens: Callable[[str], bool]) -> None:
        self.opens = opens
        self.files: dict[str, Location] = {}
        self.folders: set[str] = {""}
        self.problems: dict[str, str] = {}
        self.first_parts: dict[str, str] = {}

    def add_folder(self, folder: Path, path: str = "", above: frozenset[str] = frozenset()) -> None:
        """Add everything below a folder on disk; links are followed, except to a folder above.

        Args:
            folder: on disk.
            path: the folder relative to the source.
            above: real paths of the folders above this one.
        """
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            self.problems[path] = f"{folder}: cannot be read ({_one_line(error)}); allow it"
            return
        self.folders.add(path)
        for entry in entries:
            # entry.is_dir does not access the disk, but fails for some broken links.
            if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):
                self.add_file(join(path, entry.name), (entry.path,))
            elif not _is_junk(entry.name):
                self.add_folder(Path(entry.path), join(path, entry.name), above | {real})

    def add_file(self, path: str, location: Location) -> None:
        """Add a file, and its members if it is an archive to be opened."""
        if any(map(_is_junk, path.split("/"))):
            return
        self.files[path] = location
        is_zip = path.lower().endswith(".zip")
        if is_zip and len(location) <= _MAX_NESTING and self.opens(path):
            first = path
            if _PART.search(path):
                first = self.first_parts.setdefault(_PART.sub("", path), path)
            if first == path or not self.add_part(first, location):
                self.add_archive(path, location)

    def add_part(self, path: str, location: Location) -> bool:
        """Add the members of an archive to the folder of another part of the same download.

        Returns:
            Whether it is one: it can be opened, and both have no file in common.
        """
        try:
            members = _members(location)
        except DataError:
            return False
        if any(join(path, name) in self.files for name in members):
            return False
        self.add_members(path, location, members)
        return True

    def add_archive(self, path: str, location: Location) -> None:
        """Add the members of an archive; if it cannot be opened, note the reason."""
        try:
            members = _members(location)
        except DataError as error:
            self.problems[path] = str(error)
        else:
            self.add_members(path, location, members)

    def add_members(
        self, path: str, location: Location, members: Mapping[str, zipfile.ZipInfo]
    ) -> None:
        """Add the members of an archive, by their names, to a folder."""
        self.folders.add(path)
        for name, member in members.items():
            name = join(path, name)
            if member.is_dir():
                self.folders.update(_with_ancestors(name))
            else:
                self.folders.update(_with_ancestors(name.rpartition("/")[0]))
                self.add_file(name, (*location, member.filename))


def _members(location: Location) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by their posix paths; DataError if they cannot be read.

    A member may occur twice if its contents are the same.
    """
    members = _archive(location).infolist()
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{_describe(location)}: encrypted; unpack it and give the folder")
    # Some Windows programs write backslashes, contrary to the standard.
    named = [(member.filename.replace("\\", "/").strip("/"), member) for member in members]
    kept = [pair for pair in named if pair[0] and not any(map(_is_junk, pair[0].split("/")))]
    found = dict(kept)
    for name, member in kept:
        if member.CRC != found[name].CRC:
            raise DataError(
                f"{_describe((*location, name))}: the archive holds it twice, with different "
                "contents; unpack it, keep the right one and give the folder"
            )
    return found


def _other_archive(path: str) -> str:
    """What to do with an archive that cannot be read as it is; empty for any other file.

    >>> _other_archive("duke.zip.001").partition(";")[0], _other_archive("duke.zip")
    ('part of a split archive', '')
    """
    for ending, words in _OTHER_ARCHIVES.items():
        if re.search(f"{ending}$", path, re.IGNORECASE):
            return words
    return ""


def _other_parts(source: Path) -> list[Path]:
    """The other parts of the download that an archive is part of, sorted."""
    if not _PART.search(source.name):
        return []
    whole = _PART.sub("", source.name)
    return [
        path
        for path in sorted(source.parent.iterdir())
        if path.name != source.name
        and _PART.search(path.name)
        and _PART.sub("", path.name) == whole
    ]


def _with_ancestors(folder: str) -> Iterator[str]:
    """A folder and all folders above it, except the source.

    >>> list(_with_ancestors("a/b"))
    ['a/b', 'a']
    """
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


class _Archive(zipfile.ZipFile):
    """A zip archive that closes its stream when it is closed or garbage-collected."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        super().__init__(stream)

    def close(self) -> None:
        super().close()
        self._stream.close()


@functools.lru_cache(maxsize=32)
def _archive(location: Location) -> _Archive:
    """The opened archive; DataError if it is damaged or not a zip archive.

    Archives are cached per process, so that other processes can read locations, too.
    """
    try:
        stream = _stream(location)
        try:
            if found := stand_in(stream.read(512)):
                raise DataError(f"{_describe(location)}: {found}")
            return _Archive(stream)
        except BaseException:
            stream.close()
            raise
    except _ZIP_ERRORS as error:
        raise DataError(
            _unsupported(location, error)
            or f"{_describe(location)}: not a readable zip archive ({_one_line(error)}); "
            "get it again"
        ) from error


def _stream(location: Location) -> IO[bytes]:
    """The bytes of an archive, from their start."""
    if len(location) == 1:
        return open(location[0], "rb")
    stream = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the archive)
    try:
        with _archive(location[:-1]).open(location[-1]) as packed:
            shutil.copyfileobj(packed, stream, 1 << 20)
    except BaseException:
        stream.close()
        raise
    stream.seek(0)
    return stream


def _unsupported(location: Location, error: BaseException) -> str:
    """What to do about a member in a compression that Python lacks; else empty."""
    if not isinstance(error, NotImplementedError) or len(location) == 1:
        return ""
    method = _archive(location[:-1]).getinfo(location[-1]).compress_type
    return (
        f"{_describe(location)}: compressed by {_METHODS.get(method, f'method {method}')}, which "
        f"Python cannot read; unpack {_describe(location[:-1])} with 7-Zip or unzip, and give the "
        "folder"
    )


def _describe(location: Location) -> str:
    """The location from the disk inwards."""
    return "/".join(location)


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join(str(reason or error).split()) or type(error).__name__


def _is_junk(name: str) -> bool:
    """Whether a file or folder is an operating system's by-product."""
    return name.lower() in _JUNK_NAMES or name.startswith("._")
