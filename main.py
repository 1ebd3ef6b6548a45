"""Command line: train, evaluate, export or report a run.

``python main.py --config=configs/X.py --workdir=DIR`` trains, or resumes what DIR holds.
``python main.py --mode=evaluate --workdir=DIR`` scores it, by the configuration that it stored.
``python main.py --mode=export --workdir=DIR --formats=onnx,torch`` writes it for other runtimes.
``python main.py --mode=report --workdir=DIR --compare=OTHER`` writes a page that shows it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging

from pgfl_jax.command_flags import define_config, define_path
from pgfl_jax.command_line import run, with_stored_config, writable_folder
from pgfl_jax.errors import UserError

if TYPE_CHECKING:
    from pgfl_jax.config import Config
    from pgfl_jax.retrieval.protocols import EvaluationData

FLAGS = flags.FLAGS
define_config(None)
define_path("workdir", None, "Folder of the run; a run found there is continued.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "export", "report"], "What to do.")
# For --mode=export (docs/export.md).
flags.DEFINE_string("formats", "onnx", "Formats to export, with commas between them.")
define_path("out", None, "Folder of the exported artifacts, or the page; default: in the workdir.")
flags.DEFINE_string("contract", "uint8_nhwc", "What the exported models take.")
flags.DEFINE_string("checkpoint", "newest", "Checkpoint to export: newest, best or a step.")
flags.DEFINE_enum("parameters", "trained", ["trained", "average"], "Parameters to export.")
# For --mode=report (docs/report.md).
flags.DEFINE_multi_string("compare", [], "Folder of another run, to show beside; may be repeated.")
flags.DEFINE_integer("queries", 500, "Queries of each protocol that the page shows, at most.")
# For several processes that JAX does not find by itself (docs/scaling.md).
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, the same in all processes.")
flags.DEFINE_integer("num_processes", None, "How many processes there are.")
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.DEFINE_float("start_timeout", 300.0, "Seconds to wait at the start for the other processes.")


def main(argv: list[str]) -> None:
    """Check the configuration, join the other processes, if any, and work."""
    if argv[1:] or not FLAGS.workdir:
        raise UserError(f"--workdir must be given, and no bare arguments ({argv[1:]})")
    if not FLAGS["verbosity"].present:
        # Orbax logs every file that it writes, and a traceback of every error that it raises.
        logging.set_verbosity(logging.FATAL)
    # Imported late: the processes that render the synthetic data set import this file too.
    from pgfl_jax.config import parse_config
    from pgfl_jax.distributed.launch import joined

    config = parse_config(FLAGS.config)
    process = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    with joined(*process, timeout=FLAGS.start_timeout):
        work(config)


def work(config: "Config") -> None:
    """Open the data, and train or evaluate."""
    import jax

    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    from pgfl_jax.distributed import collectives
    from pgfl_jax.report.manifest import common_facts
    from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
    from pgfl_jax.train import begin, train

    collectives.assert_same_everywhere(common_facts(config))
    config.check_devices(jax.device_count())  # before any data is prepared
    workdir = writable_folder(Path(FLAGS.workdir), "--workdir")
    collectives.check_shared(workdir)
    if FLAGS.mode == "report":
        write_page(config, [workdir, *map(Path, FLAGS.compare)])
        return
    trains = FLAGS.mode == "train"
    pretrained = begin(config, workdir, evaluates=not trains)
    export = export_of(workdir) if FLAGS.mode == "export" else None

    # Before TensorFlow.
    from input_pipeline.from_config import evaluation_data, training_data, training_images
    import tensorflow as tf  # isort: skip

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

    compared = [*map(Path, config.eval.compare)]
    if trains and config.eval.report:
        from pgfl_jax.report.report import check_report

        check_report(compared)
    training = training_data(config) if trains else None
    trained = not trains and config.eval.checkpoint != "untrained"
    evaluation = evaluation_data(config, training, run=workdir if trained else None)
    described = training.description if training else {}
    named = {f"training data ({name})": value for name, value in described.items()}
    collectives.assert_same_everywhere(named | evaluation.facts())
    if training:
        train(config, workdir, training, evaluation, pretrained=pretrained)
        if config.eval.report and jax.process_count() == 1:
            write_page(config, [workdir, *compared])
    elif export:
        sys.exit(export(evaluation, training_images(config, 128)))
    else:
        evaluate_checkpoint(config, workdir, evaluation, pretrained=pretrained)


def write_page(config: "Config", runs: list[Path]) -> None:
    """Write the report of some runs, whose test sets are read as the configuration says."""
    from pgfl_jax.report.report import Request, write_report

    def open_data(run: "Config") -> "EvaluationData":
        import tensorflow as tf

        from input_pipeline.from_config import report_data

        tf.config.set_visible_devices([], "GPU")  # they are JAX's
        return report_data(config, run)

    out = Path(FLAGS.out) if FLAGS.out else None
    print(f"report: {write_report(Request(runs, out, FLAGS.queries), open_data)}", flush=True)


def export_of(workdir: Path) -> "Callable[[EvaluationData, dict[str, bytes]], int]":
    """What exports the run, by the flags, which are checked first."""
    from pgfl_jax.export.command import Request, export_run

    out = Path(FLAGS.out) if FLAGS.out else None
    options = FLAGS.formats, out, FLAGS.contract, FLAGS.checkpoint, FLAGS.parameters
    request = Request(workdir, *options)
    return lambda data, training: export_run(request, data=data, training=training)


if __name__ == "__main__":
    stored = Path(__file__).parent / "configs" / "stored.py"
    sys.argv[1:] = with_stored_config(sys.argv[1:], stored)
    run(
        main,
        required=["config", "workdir"],
        interrupted="interrupted; the same command goes on from the newest checkpoint, if any",
    )
