"""Text files in a tree."""

from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree
from pgfl_jax.files import stand_in


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte-order mark.

    Raises:
        DataError: another encoding (with the line), a Git LFS pointer or a web page.
    """
    if found := stand_in(data[:512]):
        raise DataError(f"{name}: {found}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        raise DataError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from error


def read_lines(tree: FileTree, path: str) -> list[tuple[int, str]]:
    """The non-blank lines of a file, stripped, each with its number from 1."""
    lines = decode_text(tree.read(path), tree.display(path)).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def missing_files(tree: FileTree, path: str, missing: list[str], place: str) -> DataError:
    """The error for a list that names missing files, or no file at all."""
    if not missing:
        return DataError(f"{tree.display(path)}: names no file; get the list again")
    return DataError(
        f"{tree.display(path)}: names {len(missing)} files that {place} does not have, the first "
        f"is {missing[0]}; get the data set or the list again"
    )
