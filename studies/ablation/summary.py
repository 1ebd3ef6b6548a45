r"""Keeps what the report needs of a finished run in a small folder: every query, no checkpoint.

    python -m studies.ablation.summary --run=runs/study/demo/alone_attention_longer/seed0 \
        --out=studies/ablation/baseline

The run's newest checkpoint is scored on the test set of the data that it was trained on, whatever
it was scored on before. The folder then has the run's ``config.json`` and ``manifest.json``, with
its options, seed and commit, and for each protocol the scores, their fingerprint, and the results
of the queries with the ten nearest images of each. ``pgfl report``, ``pgfl compare`` and
``eval.compare`` take it for a run.
"""

import dataclasses
from pathlib import Path

from absl import flags, logging

from input_pipeline.from_config import evaluation_data
from pgfl_jax.command_flags import define_path
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.report.gallery import TOP
from pgfl_jax.report.manifest import read_config, read_json, without_places
from pgfl_jax.report.writers import replace_bytes, write_json
from pgfl_jax.retrieval.blocks import Ranking
from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
from pgfl_jax.retrieval.queries import encode_queries, read_queries
from pgfl_jax.retrieval.query_results import QueryResults
from pgfl_jax.retrieval.results import result_path

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the command-line flags."""
    define_path("run", None, "Folder of the finished run.")
    define_path("out", None, "Folder to write.")
    define_path("data_dir", "data", "Folder of prepared data sets.")


def summarise(run: Path, out: Path, data_dir: str) -> None:
    """Score a run on the test set of its data, and keep its results.

    Args:
        run: its folder, which gets the results, too.
        out: the folder to write.
        data_dir: where the prepared data sets are.

    Raises:
        UserError: the run or the data cannot be read.
    """
    stored = read_config(run)
    wanted = dataclasses.replace(
        stored.eval, datasets=(), checkpoint="newest", embeddings=("main",), compare=()
    )
    kept = dataclasses.replace(without_places(stored), eval=wanted)
    here = dataclasses.replace(kept, data=dataclasses.replace(stored.data, data_dir=data_dir))
    results = evaluate_checkpoint(here, run, evaluation_data(here, run=run))
    write_json(out / "config.json", kept.flat_options())
    write_json(out / "manifest.json", read_json(run / "manifest.json"))
    folder = Path("results")
    for scores in results:
        name = result_path(folder, scores, suffix=".json")
        queries = result_path(folder, scores, kind="queries", suffix=".parquet")
        write_json(out / name, scores)
        replace_bytes(out / queries, encode_queries(shortened(read_queries(run / queries))))


def shortened(results: QueryResults) -> QueryResults:
    """The results with as many of the nearest images as the report shows."""
    nearest = Ranking(results.nearest.indices[:, :TOP], results.nearest.distances[:, :TOP])
    names = "filenames", "identities", "cameras", "relations"
    lists = {name: getattr(results, name)[:, :TOP] for name in names}
    return dataclasses.replace(results, nearest=nearest, **lists)


def main(_: list[str]) -> None:
    """Write the folder that the flags name."""
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)  # Orbax logs every file that it reads
    out = writable_folder(Path(FLAGS.out), "--out")
    summarise(Path(FLAGS.run), out, FLAGS.data_dir)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=["run", "out"])
