"""``pgfl export`` and ``main.py --mode=export``: several formats of one run."""

import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

import pgfl_jax
from pgfl_jax.command_line import one_line, writable_folder
from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export.artifact import export, in_float32
from pgfl_jax.export.contract import CONTRACTS
from pgfl_jax.export.failures import room_for
from pgfl_jax.export.formats import FORMATS
from pgfl_jax.export.real import RealPictures, from_data, from_folder
from pgfl_jax.export.verify import RECORD
from pgfl_jax.retrieval.protocols import EvaluationData


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export; wrong values are refused.

    Attributes:
        run: the run's folder.
        formats: names in ``FORMATS``, with commas between them.
        out: receives a folder for each format; None: ``export`` in the run's folder.
        contract: one of ``CONTRACTS``.
        checkpoint: as of :func:`pgfl_jax.load`.
        parameters: as of :func:`pgfl_jax.load`.
    """

    run: Path
    formats: str = "onnx"
    out: Path | None = None
    contract: str = "uint8_nhwc"
    checkpoint: str | int = "newest"
    parameters: str = "trained"

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            UserError: there is no such format or contract, or the run is an artifact.
        """
        if (self.run / RECORD).exists():
            raise UserError(f"{self.run}: is an exported artifact; give the folder of its run")
        for name in self.names:
            if name not in FORMATS:
                raise UserError(f"--formats={name}: must be among {', '.join(FORMATS)}")
        if self.contract not in CONTRACTS:
            raise UserError(f"--contract={self.contract}: must be one of {', '.join(CONTRACTS)}")

    @property
    def names(self) -> list[str]:
        """The formats, each once."""
        return list(dict.fromkeys(name.strip() for name in self.formats.split(",")))

    @property
    def folder(self) -> Path:
        """Where the artifacts go."""
        return self.run / "export" if self.out is None else self.out


def export_run(
    request: Request,
    *,
    data: EvaluationData | None = None,
    training: Mapping[str, bytes] | None = None,
    pictures: Path | None = None,
) -> int:
    """Export a run; prints what was checked.

    Args:
        request: what to export.
        data: the run's test set, on which the models are verified and scored.
        training: files of training pictures by name, on which int8 models are calibrated; given
            with ``data``. Without them there are no int8 models.
        pictures: a folder of pictures, on which they are verified; with neither, only those of the
            probe are used.

    Returns:
        The exit status: 1 if a format failed.

    Raises:
        UserError: the run cannot be loaded, or the folder cannot be written to.
    """
    if jax.process_count() > 1:
        raise UserError("--mode=export: one process suffices; start no others")
    embedder = in_float32(
        pgfl_jax.load(request.run, checkpoint=request.checkpoint, parameters=request.parameters)
    )
    writable_folder(request.folder, "--out")
    failed = 0
    with _pictures(embedder, request.folder, data, training, pictures) as real:
        for name in request.names:
            folder = request.folder / name
            try:
                found = export(name, embedder, folder, contract=request.contract, pictures=real)
            except (UserError, OSError) as error:
                print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
                failed += 1
                continue
            for finding in found:
                print(f"{name}: {finding.line}")
            print(f"{folder}: written and verified", flush=True)
    return min(failed, 1)


@contextlib.contextmanager
def _pictures(
    embedder: Embedder,
    folder: Path,
    data: EvaluationData | None,
    training: Mapping[str, bytes] | None,
    given: Path | None,
) -> Iterator[RealPictures | None]:
    """The pictures that there are, decoded; on the disk meanwhile, since they may be many."""
    if data is None:
        yield from_folder(embedder, given) if given else None
        return
    scratch = Path(tempfile.mkdtemp(prefix=".test_set.", dir=folder))
    try:
        with room_for(folder):
            found = from_data(embedder, data, scratch, training)
        yield found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
