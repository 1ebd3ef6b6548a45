"""A gallery in a file: paths, who is seen if known, and embeddings, as Parquet.

The columns are ``path`` (relative to the file's folder where the picture is below it, so that both
can be moved together; else absolute), ``identity`` and ``camera`` (null where unknown) and
``embedding`` (D float32 numbers of unit length). The file's metadata say which checkpoint the
embeddings are of, and hold their digest. The same rows give the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export.verify import RECORD, checkpoint_sha256, read_record
from pgfl_jax.files import replacing
from pgfl_jax.retrieval.search.pictures import Picture

SUFFIX = ".parquet"
_GROUP_BYTES = 2**26  # of embeddings in a row group: what is held at once
_ORIGIN, _DIGEST = "pgfl.origin", "pgfl.sha256"

Rows = Float32[np.ndarray, "_ channels"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The network that embeddings are of.

    Attributes:
        run: absolute path of the folder that it was loaded from: of a run or an artifact.
        step: of the checkpoint.
        parameters: ``trained`` or ``average``.
        sha256: the checkpoint's digest.
        channels: length of an embedding, D.
    """

    run: str
    step: int
    parameters: str
    sha256: str
    channels: int

    @classmethod
    def of(cls, embedder: Embedder, folder: Path) -> "Origin":
        """The origin of what an embedder gives that was loaded from ``folder``."""
        if (folder / RECORD).is_file():
            sha256 = read_record(folder, RECORD)["checkpoint"].get("sha256")
            if not sha256:
                raise UserError(f"{folder / RECORD}: names no checkpoint; take the run's folder")
        else:
            sha256 = checkpoint_sha256(folder, embedder.step)
        run = os.path.abspath(folder)
        return cls(run, embedder.step, embedder.parameters, sha256, embedder.dim)

    def __str__(self) -> str:
        """For messages, with the start of the digest, since runs may share a name."""
        kind = "" if self.parameters == "trained" else f", {self.parameters}"
        return f"{self.run} at step {self.step}{kind} ({self.sha256[:12]})"

    def require_same(self, other: "Origin", name: str, other_name: str) -> None:
        """Raise a UserError if the embeddings are of two networks; a copy of a run is the same."""
        if (self.sha256, self.parameters) != (other.sha256, other.parameters):
            raise UserError(
                f"{name} holds embeddings of {self}, {other_name} of {other}; embeddings of two "
                "networks cannot be compared"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """A gallery file. Only its labels are held; the embeddings are read when asked for.

    Attributes:
        path: of the file.
        origin: of the embeddings.
        sha256: digest of the embeddings, in their order.
        labels: the columns path, identity and camera.
    """

    path: Path
    origin: Origin
    sha256: str
    labels: pa.Table

    def __len__(self) -> int:
        """The number of pictures."""
        return self.labels.num_rows

    def picture(self, index: int) -> Picture:
        """A picture; its path is absolute."""
        path, identity, camera = (column[index].as_py() for column in self.labels.columns)
        return Picture(self.path.parent.absolute() / path, identity, camera)

    def pictures(self) -> set[Path]:
        """The absolute paths of all pictures."""
        folder = self.path.parent.absolute()
        return {folder / path for path in self.labels["path"].to_pylist()}

    def embeddings(self) -> Rows:
        """All embeddings, (N, D)."""
        rows = np.empty((len(self), self.origin.channels), np.float32)
        at = 0
        for table in self.tables(["embedding"]):
            rows[at : at + len(table)] = as_rows(table["embedding"])
            at += len(table)
        return rows

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The file in pieces that fit into memory."""
        with _reading(self.path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)


def read_gallery(path: str | os.PathLike) -> Gallery:
    """Open a gallery.

    Raises:
        UserError: there is no such file, or it is no gallery.
    """
    path = Path(path)
    with _reading(path) as file:
        known = {name.decode(): value for name, value in (file.metadata.metadata or {}).items()}
        try:
            origin, digest = Origin(**json.loads(known[_ORIGIN])), known[_DIGEST].decode()
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no gallery; make one with pgfl embed") from error
        return Gallery(path, origin, digest, file.read(columns=["path", "identity", "camera"]))


def write_gallery(path: Path, origin: Origin, tables: Iterable[pa.Table]) -> int:
    """Write a gallery whole, or leave what was at ``path``; returns the number of pictures.

    Args:
        path: of the file.
        origin: of the embeddings.
        tables: pieces of it, as :func:`gallery_table` makes them, of any size.
    """
    digest, count = hashlib.sha256(), 0
    with (
        replacing(path) as beside,
        pq.ParquetWriter(
            beside,
            schema(origin.channels),
            compression={"embedding.list.element": "none"}
            | dict.fromkeys(("path", "identity", "camera"), "zstd"),
            use_dictionary=["identity", "camera"],
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for table in _regrouped(tables, max(1, _GROUP_BYTES // (4 * origin.channels))):
            writer.write_table(table)
            digest.update(as_rows(table["embedding"]).data)
            count += len(table)
        metadata = {_ORIGIN: json.dumps(dataclasses.asdict(origin)), _DIGEST: digest.hexdigest()}
        writer.add_key_value_metadata(metadata)
    return count


def gallery_table(pictures: Sequence[Picture], rows: Rows, folder: Path) -> pa.Table:
    """A piece of a gallery whose file is in ``folder``, an absolute path."""
    columns = [
        [_relative(picture.path, folder) for picture in pictures],
        [picture.identity for picture in pictures],
        [picture.camera for picture in pictures],
        pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
    ]
    return pa.table(columns, schema=schema(rows.shape[1]))


def schema(channels: int) -> pa.Schema:
    """The columns of a gallery."""
    number = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("identity", pa.string()),
            pa.field("camera", pa.string()),
            pa.field("embedding", pa.list_(number, channels), nullable=False),
        ]
    )


def as_rows(column: pa.ChunkedArray) -> Rows:
    """A column of embeddings as an array."""
    numbers = column.combine_chunks()
    return numbers.flatten().to_numpy().reshape(-1, column.type.list_size)


def _relative(path: Path, folder: Path) -> str:
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``size`` rows, the last one smaller."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while len(rest) >= size:
            yield rest.slice(0, size).combine_chunks()
            rest = rest.slice(size)
    if rest is not None and len(rest):
        yield rest.combine_chunks()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make a gallery with pgfl embed") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's
            raise
        raise UserError(f"{path}: damaged, or not a Parquet file") from error
