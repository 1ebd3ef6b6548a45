"""What PICTURES and QUERY mean on the command line: files, folders, patterns, lists, tables."""

import csv
import dataclasses
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgfl_jax.errors import UserError
from pgfl_jax.preprocessing import SUFFIXES, list_pictures

TABLES = (".csv", ".jsonl")
_MISSING = frozenset({"nan", "none", "<na>", "nat", "null", "n/a"})  # in any case


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to embed.

    Attributes:
        path: absolute; links in it are kept.
        identity: who is seen, as a table says; None if unknown.
        camera: by which camera, likewise.
    """

    path: Path
    identity: str | None = None
    camera: str | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The pictures of a command line.

    Attributes:
        pictures: each file once, in the order given; those of a folder by path.
        others: how many files of folders are no pictures by their names.
        repeated: how many pictures were given again.
    """

    pictures: Sequence[Picture]
    others: int = 0
    repeated: int = 0


def find_pictures(given: Iterable[Path]) -> Found:
    """The pictures that arguments stand for.

    Args:
        given: each a folder; a pattern such as ``shots/**/*.jpg``; a list, ``.txt``, of one path a
            line; a table, ``.csv`` or ``.jsonl``, with the column ``path``, and ``identity`` and
            ``camera`` if known; or anything else, which is taken for a picture. Paths in lists and
            tables are relative to their folder.

    A picture that is given again with an identity or a camera gets these.

    Raises:
        UserError: a folder without pictures, a pattern that nothing matches, a list or table that
            is missing, empty or broken, a picture given as two people or by two cameras, or one
            whose name is not UTF-8, as a gallery's are; names it.
    """
    pictures: dict[Path, Picture] = {}
    count = others = 0
    for one in given:
        found, rest = _expand(one)
        others += rest
        for picture in found:
            count += 1
            before = pictures.get(picture.path)
            pictures[picture.path] = _joined(before, picture) if before else _encodable(picture)
    return Found([*pictures.values()], others, count - len(pictures))


def _joined(one: Picture, other: Picture) -> Picture:
    """What two mentions of a picture say about it."""
    for name in ("identity", "camera"):
        labels = {getattr(one, name), getattr(other, name)} - {None}
        if len(labels) > 1:
            words = " and ".join(sorted(labels))
            raise UserError(f"{one.path}: given twice, with {name} {words}; leave one")
    return Picture(one.path, one.identity or other.identity, one.camera or other.camera)


def _encodable(picture: Picture) -> Picture:
    try:
        str(picture.path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{str(picture.path)!a}: its name is not UTF-8; rename the file or folder"
        ) from error
    return picture


def _expand(given: Path) -> tuple[Sequence[Picture], int]:
    """The pictures of one argument, and the number of its other files."""
    if given.is_dir():
        paths, others = list_pictures(given)
        return [_picture(path) for path in paths], len(others)
    suffix = given.suffix.lower()
    if suffix == ".txt":
        lines = _read(given).splitlines()
        return _listed(given, [{"path": line.strip()} for line in lines if line.strip()]), 0
    if suffix in TABLES:
        return _listed(given, [*(_csv_rows if suffix == ".csv" else _json_rows)(given)]), 0
    if glob.has_magic(str(given)) and not os.path.lexists(given):
        return _matches(given)
    return [_picture(given)], 0


def _matches(pattern: Path) -> tuple[Sequence[Picture], int]:
    """The pictures among the files and in the folders that a pattern matches."""
    matched = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    # Of `**`, which also matches every folder, the files alone.
    files = [path for path in matched if not path.is_dir()]
    if not files:
        raise UserError(f"{pattern}: matches no file")
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES or not path.exists()]
    if not pictures:
        raise UserError(f"{pattern}: matches no pictures ({', '.join(SUFFIXES)})")
    return [_picture(path) for path in pictures], len(files) - len(pictures)


def _listed(source: Path, rows: Sequence[Mapping[str, Any]]) -> Sequence[Picture]:
    """The pictures of a list or table."""
    if not rows:
        raise UserError(f"{source}: lists no pictures")
    return [
        _picture(
            source.parent / str(row["path"]),
            *(_label(source, name, row.get(name)) for name in ("identity", "camera")),
        )
        for row in rows
    ]


def _picture(path: Path, identity: str | None = None, camera: str | None = None) -> Picture:
    return Picture(Path(os.path.abspath(path)), identity, camera)  # without ./ and ../, links kept


def _label(source: Path, name: str, value: Any) -> str | None:
    """An identity or camera as text; None where the table has none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{source}: {name} {value!r} is neither text nor a whole number")
    if str(value).casefold() in _MISSING:
        raise UserError(
            f"{source}: {name} is {str(value)!r}, as tools write a missing value; leave it empty"
        )
    return str(value)


def _csv_rows(table: Path) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read(table), newline=""), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    if "path" not in columns:
        raise UserError(f"{table}: no column path; it has {', '.join(columns) or 'none'}")
    if twice := [name for name in ("path", "identity", "camera") if columns.count(name) > 1]:
        raise UserError(f"{table}: the column {twice[0]} occurs twice; leave one")
    reader.fieldnames = columns
    for row in reader:
        cells = {name: text.strip() for name, text in row.items() if isinstance(text, str)}
        if not cells.get("path"):
            raise UserError(f"{table}, line {reader.line_num}: no path")
        yield cells


def _json_rows(table: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_read(table).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{table}, line {number}: broken JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
            raise UserError(f'{table}, line {number}: not an object with a path: {{"path": "…"}}')
        yield row


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8; save the file as UTF-8") from error
