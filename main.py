"""Command line: ``python main.py --config=configs/X.py --workdir=DIR [--mode=train|evaluate]``."""

from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from pgfl_jax.command_line import run, writable_folder
from pgfl_jax.errors import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Configuration file, e.g. configs/default.py.")
flags.DEFINE_string("workdir", None, "Folder of the run; a run found there is continued.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def main(argv: list[str]) -> None:
    """Check the configuration, open the data, and train or evaluate."""
    if argv[1:] or not FLAGS.workdir:
        raise UserError(f"--workdir must be given, and no bare arguments ({argv[1:]})")
    if not FLAGS["verbosity"].present:
        # Orbax tells of every file that it writes, and shows a traceback of the errors that it
        # raises, too.
        logging.set_verbosity(logging.FATAL)
    # Imported late: the processes that render the synthetic data set import this file too.
    from pgfl_jax.config import parse_config

    config = parse_config(FLAGS.config)

    import jax

    config.check_devices(jax.device_count())  # before any data is prepared
    workdir = writable_folder(Path(FLAGS.workdir), "--workdir")

    from input_pipeline.dataset import evaluation_data, training_data  # before TensorFlow
    from pgfl_jax.evaluate import evaluate_checkpoint
    from pgfl_jax.train import train

    import tensorflow as tf  # isort: skip

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

    if FLAGS.mode == "train":
        train(config, workdir, training_data(config), evaluation_data(config))
    else:
        evaluate_checkpoint(config, workdir, evaluation_data(config))


if __name__ == "__main__":
    run(
        main,
        required=["config", "workdir"],
        interrupted="interrupted; the same command goes on from the newest checkpoint, if any",
    )
