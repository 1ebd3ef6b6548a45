"""What is embedded so far, in a file that a killed process leaves usable.

``crops.parquet.part`` is an Arrow stream to which each batch is appended: its embeddings, null for
the pictures that cannot be read, and why these cannot. Its header says what is being embedded.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.search.gallery import Rows, schema

_REQUEST = b"pgfl.request"


class Journal:
    """The batches that are embedded; see :func:`open_journal`.

    Attributes:
        count: pictures that it holds.
    """

    def __init__(self, file: BinaryIO, stored: pa.Schema, path: Path) -> None:
        """Find the batches that are complete; what follows them is cut off."""
        self._file, self._schema, self._path = file, stored, path
        self.count, end = _complete(file)
        file.truncate(end)

    def append(self, rows: Rows, errors: Sequence[str]) -> None:
        """Add a batch, which a killed process leaves behind once this has returned.

        Args:
            rows: of the embeddings, NaN for the pictures that cannot be read.
            errors: why these cannot.
        """
        unreadable = np.isnan(rows[:, 0])
        words = np.full(len(rows), None, object)
        words[unreadable] = errors
        numbers = pa.array(rows.ravel())
        columns = [
            pa.FixedSizeListArray.from_arrays(numbers, rows.shape[1], mask=pa.array(unreadable)),
            pa.array(words, pa.string()),
        ]
        self._file.write(pa.record_batch(columns, schema=self._schema).serialize())
        self._file.flush()  # the system has it now, whatever becomes of this process
        self.count += len(rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches, in their order: embeddings and errors."""
        with self._path.open("rb") as file:
            yield from _batches(pa.ipc.open_stream(file))

    def remove(self) -> None:
        """Delete the file, which is no longer needed."""
        self._path.unlink()


@contextlib.contextmanager
def open_journal(path: Path, request: Mapping[str, Any], channels: int) -> Iterator[Journal]:
    """Begin a journal, or go on with that of a process that ended early.

    Args:
        path: of the file.
        request: what is being embedded and how, ready for JSON.
        channels: length of an embedding.

    Raises:
        UserError: another process is writing the file, or it holds another request.
    """
    wanted = pa.schema(
        [schema(channels).field("embedding").with_nullable(True), pa.field("error", pa.string())],
        metadata={_REQUEST: json.dumps(request)},
    )
    with path.open("a+b") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path}: another process is writing it; wait for it") from None
        _begin(file, wanted, path)
        yield Journal(file, wanted, path)


def _begin(file: BinaryIO, wanted: pa.Schema, path: Path) -> None:
    """Write the header, unless it is there; a UserError if the file holds something else."""
    header = wanted.serialize().to_pybytes()
    file.seek(0)
    found = file.read(len(header))
    if found == header:
        return
    if not header.startswith(found):  # else a process was killed while it wrote the header
        file.seek(0)
        try:
            stored = pa.ipc.open_stream(pa.PythonFile(file, "r")).schema.metadata[_REQUEST]
            if _complete(file)[0]:
                raise UserError(
                    f"{path}: {_difference(stored, wanted)}; give the same, or remove it"
                )
        except (pa.ArrowException, LookupError, OSError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the beginning of an embedding; move it away") from error
    file.truncate(0)
    file.write(header)
    file.flush()


def _complete(file: BinaryIO) -> tuple[int, int]:
    """The pictures in the complete batches of a stream, and where the last of these ends."""
    file.seek(0)
    reader = pa.ipc.open_stream(pa.PythonFile(file, "r"))
    count, end = 0, file.tell()
    for batch in _batches(reader):
        count, end = count + batch.num_rows, file.tell()
    return count, end


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a stream up to one that was being written."""
    while True:
        try:
            batch = reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return
        yield batch


def _difference(stored: bytes, wanted: pa.Schema) -> str:
    """How a journal's request differs from another one."""
    held, request = json.loads(stored), json.loads(wanted.metadata[_REQUEST])
    names = [name for name, value in request.items() if held.get(name) != value]
    return f"holds the beginning of another embedding ({', '.join(names) or 'version'} differ)"
