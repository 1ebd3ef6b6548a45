"""Write an artifact: a folder with a model in one format and everything that describes it.

It is written beside its place and gets its name only when its verification has passed.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.checksums import sha256
from pgfl_jax.command_line import writable_folder
from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export import deepstream, graphs, origin, real
from pgfl_jax.export.card import model_card
from pgfl_jax.export.contract import CONTRACTS
from pgfl_jax.export.describe import name_with_loss, preprocessing
from pgfl_jax.export.failures import need, packages_of, refuse, room_for
from pgfl_jax.export.formats import FORMATS, Model
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.export.probe import probe_pictures
from pgfl_jax.export.real import RealPictures, reference
from pgfl_jax.export.running import (
    Pictures,
    Run,
    arranged,
    run_models,
    write_arranged,
)
from pgfl_jax.export.verify import (
    PREPROCESSING,
    PROBE,
    RECORD,
    Finding,
    check_graph,
    judge,
)
from pgfl_jax.files import replacing_folder

# Of mAP; "equal to four digits".
_RETRIEVAL_TOLERANCE = 5e-5


def export(
    name: str,
    embedder: Embedder,
    folder: Path | str,
    *,
    contract: str = "uint8_nhwc",
    pictures: RealPictures | None = None,
) -> list[Finding]:
    """Write and verify an artifact.

    Args:
        name: the format, one of ``FORMATS``.
        embedder: of the run.
        folder: the artifact's; an artifact that is there is replaced, unless other files have been
            put into its folder.
        contract: the input, one of ``CONTRACTS``.
        pictures: real ones, on which it is verified too; see :mod:`pgfl_jax.export.real`.

    Returns:
        What was checked.

    Raises:
        UserError: an option is wrong, a package is missing, the folder cannot be written to, or
            the model is not right.
    """
    for option, value, choices in (("format", name, FORMATS), ("contract", contract, CONTRACTS)):
        if value not in choices:
            raise UserError(f"{option} = {value!r}: must be one of {', '.join(choices)}")
    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        _check_replaceable(folder)
    writable_folder(folder.parent, "--out")
    with packages_of(name), room_for(folder), replacing_folder(folder) as beside:
        embedder = in_float32(embedder)
        FORMATS[name].write(embedder, CONTRACTS[contract], beside)
        return _Artifact(name, embedder, contract, beside).finish(pictures)


def _check_replaceable(folder: Path) -> None:
    """UserError unless a folder is an artifact and holds nothing that no export wrote."""
    try:
        written = {RECORD, *json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]}
    except FileNotFoundError:
        raise UserError(f"{folder}: exists and is not an artifact; choose another folder") from None
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / RECORD}: damaged; delete {folder}, or choose another folder"
        ) from error
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    if others := [name for name in names if name not in written]:
        more = ", …" if len(others) > 5 else ""
        raise UserError(
            f"{folder}: would be replaced, but holds files that no export wrote: "
            f"{', '.join(others[:5])}{more}; move them away, or choose another folder"
        )


def in_float32(embedder: Embedder) -> Embedder:
    """The embedder with its arithmetic in float32, which is what all formats are compared with."""
    model = dataclasses.replace(embedder.config.model, dtype="float32")
    config = dataclasses.replace(embedder.config, model=model)
    return dataclasses.replace(embedder, config=config, model=embedder.model.clone(dtype=None))


@dataclasses.dataclass(frozen=True, eq=False)
class _Artifact:
    """An artifact whose models have been written, and nothing else yet."""

    name: str
    embedder: Embedder
    contract: str
    folder: Path

    def finish(self, real_pictures: RealPictures | None) -> list[Finding]:
        """Verify the models and write what belongs beside them.

        Raises:
            ExportFailed: they are not right.
        """
        main = graphs.main_branch(self.embedder)
        models = [self._describe(model) for model in self._quantised(real_pictures)]
        found = [check_graph(m, Graph.from_json(m["graph"]), main) for m in models]
        refuse(found, self.name)
        description = preprocessing(self.embedder, self.contract)
        probe = probe_pictures(*description["size"].values())
        expected = reference(self.embedder, probe)
        np.savez_compressed(self.folder / PROBE, pictures=probe, embeddings=expected)
        sets = {"probe": (probe, expected)}
        if real_pictures:
            sets[real_pictures.source] = (real_pictures.sample, real_pictures.sample_rows)
        retrieval: list[dict[str, Any]] = []
        with _written(self.folder, sets, real_pictures, description) as (compared, ranked):
            for run in run_models(self.folder, models, [*compared, *ranked]):
                need(run, self.name)
                found += judge(run, compared)
                if ranked and run.runtime == run.model["runtimes"][0] and not run.error:
                    retrieval += self._rank(run, ranked, real_pictures)
        found += [_judge_ranking(row) for row in retrieval]
        refuse(found, self.name)
        for model in models:
            self._name_loss(model, found, retrieval)
        self._write(models, main, found, retrieval, description)
        return found

    def _quantised(self, pictures: RealPictures | None) -> tuple[Model, ...]:
        """The models, with those in int8 if there are training pictures to calibrate on."""
        wanted = FORMATS[self.name]
        if wanted.quantise is None or pictures is None or pictures.calibration is None:
            return wanted.models
        rows = arranged(pictures.calibration, preprocessing(self.embedder, self.contract))
        wanted.quantise(self.embedder, CONTRACTS[self.contract], self.folder, rows)
        return (*wanted.models, *wanted.quantised)

    def _describe(self, which: Model) -> dict[str, Any]:
        """The entry of a model in ``parity.json``."""
        model = dataclasses.asdict(which)
        path, read = self.folder / model["file"], FORMATS[self.name].graph
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return model | {
            "bytes": sum(file.stat().st_size for file in files),
            "graph": dataclasses.asdict(read(path)),
        }

    def _rank(
        self, run: Run, ranked: list[Pictures], pictures: RealPictures | None
    ) -> Iterator[dict[str, Any]]:
        """The scores of a model on the test set, next to JAX's."""
        assert pictures is not None and pictures.data is not None
        max_rank = self.embedder.config.eval.max_rank
        rows = {given.name: run.rows[given.name][0] for given in ranked}
        befores = real.scores(pictures.data, pictures.rows, max_rank)
        for before, after in zip(befores, real.scores(pictures.data, rows, max_rank), strict=True):
            names = {name: before[name] for name in ("dataset", "protocol", "queries")}
            values = {
                label: {name: scored[name] for name in ("mAP", "rank1")}
                for label, scored in (("before", before), ("after", after))
            }
            facts = {"model": run.model["file"], "precision": run.model["precision"]}
            yield {**facts, "runtime": run.runtime, **names, **values}

    def _name_loss(
        self, model: dict[str, Any], found: list[Finding], retrieval: list[dict[str, Any]]
    ) -> None:
        """Give a model that loses more than a point of mAP a name that says so."""
        old = model["file"]
        rows = [row for row in retrieval if row["model"] == old]
        loss = max((row["before"]["mAP"] - row["after"]["mAP"] for row in rows), default=0.0)
        if (new := name_with_loss(old, loss)) == old:
            return
        (self.folder / old).rename(self.folder / new)
        model["file"] = new
        records = [finding.record for finding in found if finding.record.get("model") == old]
        for record in [*rows, *records]:
            record["model"] = new

    def _write(
        self,
        models: list[dict[str, Any]],
        main: Graph,
        found: list[Finding],
        retrieval: list[dict[str, Any]],
        description: dict[str, Any],
    ) -> None:
        """The files beside the models; ``parity.json``, which has the digests of all, last."""
        trained = origin.training(self.embedder)
        graph = graphs.training(self.embedder, trained["identities"]) if trained else None
        record: dict[str, Any] = {
            "format": self.name,
            "contract": self.contract,
            "checkpoint": origin.checkpoint(self.embedder),
            "training": trained,
            "scores": origin.scores(self.embedder),
            "models": models,
            "main_branch": dataclasses.asdict(main),
            "training_graph": dataclasses.asdict(graph) if graph else None,
            "checks": [finding.record for finding in found if finding.record],
            "retrieval": retrieval,
            "versions": origin.versions(),
            "hardware": origin.hardware(),
        }
        origin.write_json(self.folder / PREPROCESSING, description)
        origin.write_json(self.folder / "config.json", origin.config(self.embedder))
        size = description["size"]["height"], description["size"]["width"]
        if self.name == "onnx" and self.contract == "float255_nchw":
            tracker = deepstream.tracker(*size, self.embedder.dim)
            (self.folder / "deepstream_tracker.yml").write_text(tracker, encoding="utf-8")
        card = model_card(record, description)
        (self.folder / "README.md").write_text(card, encoding="utf-8")
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        record["files"] = {p.relative_to(self.folder).as_posix(): sha256(p) for p in files}
        origin.write_json(self.folder / RECORD, record)


@contextlib.contextmanager
def _written(
    folder: Path,
    sets: Mapping[str, tuple[np.ndarray, np.ndarray]],
    real_pictures: RealPictures | None,
    description: Mapping[str, Any],
) -> Iterator[tuple[list[Pictures], list[Pictures]]]:
    """All pictures as the models take them: those to compare, and those to rank."""
    splits = real_pictures.splits if real_pictures else {}
    scratch = Path(tempfile.mkdtemp(prefix=".pictures.", dir=folder.parent))
    try:

        def write(number: int, pictures: np.ndarray) -> Path:
            path = scratch / f"{number}.npy"
            write_arranged(path, pictures, description)
            return path

        compared = [
            Pictures(name, write(number, pictures), expected)
            for number, (name, (pictures, expected)) in enumerate(sets.items())
        ]
        ranked = [
            Pictures(name, write(len(sets) + number, pictures), real_pictures.rows[name], (32,))
            for number, (name, pictures) in enumerate(splits.items())
            if real_pictures
        ]
        yield compared, ranked
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _judge_ranking(row: Mapping[str, Any]) -> Finding:
    before, after = row["before"]["mAP"], row["after"]["mAP"]
    line = (
        f"{row['model']} on {row['runtime']}, {row['protocol']}: mAP {100 * after:.2f}, "
        f"of JAX {100 * before:.2f}"
    )
    exact = row["precision"] == "float32"
    return Finding(line, not exact or abs(before - after) < _RETRIEVAL_TOLERANCE)
