"""Read and check a table of images, as CSV or JSON lines."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from input_pipeline.builders.table.names import plain
from input_pipeline.builders.text import decode_text
from input_pipeline.errors import DataError
from input_pipeline.file_tree import read_file
from input_pipeline.keypoints import NUM_JOINTS
from input_pipeline.progress import progress

REQUIRED = ("path", "identity", "camera", "split")
OPTIONAL = ("keypoints", "occlusion")
# Splits become parts of file names that TFDS parses.
_SPLIT = r"train|gallery|query[\w-]{0,40}"
# What stands for a missing value that became text: in pandas and databases, in any case, and in R.
_MISSING = re.compile(r"(?i:nan|none|<na>|nat|null|n/a)|NA")
# Spreadsheets' errors, in some languages: #N/A, #NV, #REF!, #NAME?, #DIV/0!
_SHEET_ERROR = re.compile(r"#(N/A|NV|[^\W\d][\w/]*[!?])")
# A long number as spreadsheets shorten it: 1.2E+12, or 1,2E+12. Several may have become one.
_SHORTENED = re.compile(r"-?\d+([.,]\d+)?E\+\d+", re.IGNORECASE)
_RECODED = (".tif", ".tiff", ".webp")
_MANY_IMAGES = 10_000  # more than these take seconds to read


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One image, as the table describes it.

    Attributes:
        line: its line in the table, from 1.
        path: as written.
        file: the path on disk; its accents may be encoded otherwise than in ``path``.
        identity: any name, plain (see :func:`input_pipeline.builders.table.names.plain`).
        camera: likewise.
        split: train, gallery, or a name that begins with query.
        keypoints: (17, 3) float32 x, y in pixels and confidence; zeros where there is no pose.
        occlusion: hidden share of the person in [0, 1]; NaN where unknown.
    """

    line: int
    path: str
    file: Path
    identity: str
    camera: str
    split: str
    keypoints: Float32[np.ndarray, "17 3"]
    occlusion: float


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table of images.

    Attributes:
        file: the CSV or JSON lines.
        columns: the optional columns that it has.
        rows: the images, in the order of the file.
        fingerprint: 32 bits that change with the file's text and with any image's contents. They
            are another number if the text is not plain, as its names were once kept as written, and
            if it names TIFF or WebP images, which were once turned by their orientation.
    """

    file: Path
    columns: frozenset[str]
    rows: tuple[Row, ...]
    fingerprint: int


def read_table(file: Path) -> Table:
    """Read and check a table.

    Raises:
        DataError: something is wrong; the message names the file and line.
    """
    data = file.read_bytes()
    text = decode_text(data, str(file))
    entries = list(_csv_entries(file, text) if file.suffix == ".csv" else _json_entries(file, text))
    if not entries:
        raise DataError(f"{file}: lists no images")
    rows = tuple(_row(file, line, entry) for line, entry in entries)
    _check_paths(file, rows)
    columns = frozenset(name for _, entry in entries for name in entry)
    return Table(file, columns & set(OPTIONAL), rows, _fingerprint(data, text, rows))


def _csv_entries(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and cells by column; the first line is the header, or Excel's ``sep=;``."""
    first = text.partition("\n")[0]
    named = re.fullmatch(r'"?sep=([,;\t])"?\r?', first)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=named[1] if named else _delimiter(file, first),
        skipinitialspace=True,  # so that a quote may follow a space
        strict=True,
    )
    try:
        if named:
            next(reader)
        header = [name.strip() for name in next(reader, [])]
        _check_columns(f"{file}, line {reader.line_num}", header)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells, but {len(header)} columns"
                )
            entry = zip(header, (cell.strip() for cell in cells), strict=True)
            yield reader.line_num, dict(entry)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: broken CSV: {error}") from error


def _delimiter(file: Path, header: str) -> str:
    """The delimiter, inferred from the header."""
    try:
        return csv.Sniffer().sniff(header, delimiters=",;\t").delimiter
    except csv.Error:
        raise DataError(
            f"{file}, line 1: not a header of columns separated by commas; "
            f"it must name {', '.join(REQUIRED)}"
        ) from None


def _json_entries(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values by column."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:  # also for thousands of digits or brackets
            raise DataError(f"{file}, line {number}: broken JSON: {error}") from error
        if not isinstance(entry, dict):
            raise DataError(f'{file}, line {number}: not a JSON object, as in {{"path": …}}')
        _check_columns(f"{file}, line {number}", list(entry))
        yield number, entry


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError if it has a key twice."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice; leave one")
    return entry


def _check_columns(place: str, names: list[str]) -> None:
    """DataError for missing, unknown or repeated columns."""
    missing = [name for name in REQUIRED if name not in names]
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL]
    if missing:
        raise DataError(f"{place}: no column {', '.join(missing)}; it has {', '.join(names)}")
    if unknown:
        known = ", ".join(REQUIRED + OPTIONAL)
        raise DataError(
            f"{place}: unknown column {', '.join(map(repr, unknown))}; known: {known}; remove it "
            "(pandas writes an index without index=False)"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{place}: a column occurs twice")


def _row(file: Path, line: int, entry: Mapping[str, Any]) -> Row:
    """One checked row; DataError with file and line."""
    place = f"{file}, line {line}"
    path, *names = (_text(place, name, entry[name]) for name in REQUIRED)
    identity, camera, split = map(plain, names)
    if not re.fullmatch(_SPLIT, split):
        raise DataError(
            f"{place}: unknown split {split!r}; train, gallery or a name that begins with query, "
            "of at most 45 letters, digits, _ and -"
        )
    return Row(
        line=line,
        path=path,
        file=file.parent / _on_disk(file.parent, path),
        identity=identity,
        camera=camera,
        split=split,
        keypoints=_keypoints(place, entry.get("keypoints")),
        occlusion=_occlusion(place, entry.get("occlusion")),
    )


def _on_disk(folder: Path, path: str) -> str:
    """The path, or if no such file exists, its composed or decomposed form (as macOS writes it)."""
    forms = dict.fromkeys([path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))])
    if len(forms) == 1:
        return path
    return next((form for form in forms if os.path.isfile(folder / form)), path)


def _text(place: str, name: str, value: Any) -> str:
    """A name; in JSON it may be a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: {name} must be a string or a whole number, not {value!r}")
    text = str(value).strip()
    if not plain(text):
        raise DataError(f"{place}: {name} is empty")
    if _MISSING.fullmatch(text) or _SHEET_ERROR.fullmatch(text):
        origin = "a spreadsheet marks an error" if text[0] == "#" else "tools write a missing value"
        raise DataError(
            f"{place}: {name} is {text!r}, as {origin}; give its value, or leave the line out"
        )
    if _SHORTENED.fullmatch(text):
        raise DataError(
            f"{place}: {name} is {text!r}, as spreadsheets shorten long numbers, so that different "
            "names become one; take the names from the original, and keep the column as text"
        )
    return text


def _keypoints(place: str, value: Any) -> Float32[np.ndarray, "17 3"]:
    """Keypoints from a list or from text; zeros if there are none."""
    if value is None or (isinstance(value, str | list) and not value):
        return np.zeros((NUM_JOINTS, 3), np.float32)
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else value.split()
        numbers = np.array(value, np.float64).reshape(-1)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{place}: keypoints are not a list of numbers ({error})") from error
    if len(numbers) != NUM_JOINTS * 3:
        raise DataError(
            f"{place}: {len(numbers)} keypoint numbers instead of {NUM_JOINTS * 3} "
            f"(x, y, confidence of {NUM_JOINTS} joints)"
        )
    with np.errstate(over="ignore"):  # too large numbers become infinite, and are refused
        keypoints = numbers.reshape(NUM_JOINTS, 3).astype(np.float32)
    confidence = keypoints[:, 2]
    if not np.isfinite(keypoints).all() or (confidence < 0).any() or (confidence > 1).any():
        raise DataError(f"{place}: keypoints must be finite, with confidences in [0, 1]")
    return keypoints


def _occlusion(place: str, value: Any) -> float:
    """A share; NaN if there is none."""
    if value is None or value == "":
        return math.nan
    try:
        share = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        share = math.nan
    if not 0 <= share <= 1:
        raise DataError(f"{place}: occlusion must be a number in [0, 1], not {value!r}")
    return share


def _check_paths(file: Path, rows: tuple[Row, ...]) -> None:
    """DataError for images that do not exist, or are listed twice in a split."""
    missing = [row for row in rows if not os.path.isfile(row.file)]  # False for odd paths, too
    if missing:
        raise DataError(
            f"{file}: images missing: {len(missing)}, the first is {missing[0].file} (line "
            f"{missing[0].line}); correct the paths (relative to the table, with /) or add files"
        )
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        # One file has many paths: a.jpg, ./a.jpg, ../images/a.jpg, or a link's.
        first = seen.setdefault((row.split, os.path.realpath(row.file)), row)
        if first is not row:
            other = "" if first.path == row.path else f" as {first.path}"
            raise DataError(
                f"{file}, line {row.line}: {row.path} is already in {row.split}{other} "
                f"(line {first.line})"
            )


def _fingerprint(data: bytes, text: str, rows: tuple[Row, ...]) -> int:
    """Checksum over the table and every image: equal contents are equal data."""
    digest = hashlib.sha256(data)
    if plain(text) != text:
        digest.update(b"plain names")
    if any(row.path.lower().endswith(_RECODED) for row in rows):
        digest.update(b"pixels as stored")
    files = list(dict.fromkeys(str(row.file) for row in rows))
    shown = progress(files, "comparing images") if len(files) > _MANY_IMAGES else files
    for file in shown:
        digest.update(hashlib.sha256(read_file((file,))).digest())
    return int.from_bytes(digest.digest()[:4], "big")
