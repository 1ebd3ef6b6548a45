"""Command line: ``python main.py --config=configs/X.py --workdir=DIR [--mode=train|evaluate]``."""

import os
import sys
from pathlib import Path

# Before TensorFlow is imported: no start-up noise. It only reads images, so oneDNN is not missed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import config_flags

from pgfl_jax.errors import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Configuration file, e.g. configs/default.py.")
flags.DEFINE_string("workdir", None, "Folder of the run; a run found there is continued.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; an option that does not exist is named in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # What ml_collections raises: a KeyError, or one in an AttributeError. Any other is a fault
        # in the configuration file itself.
        inner = error if isinstance(error, KeyError) else error.args[0]
        if not isinstance(inner, KeyError):
            raise
        sys.exit(f"error: --config: no such option: {'. '.join(str(inner.args[0]).splitlines())}")


def main(argv: list[str]) -> None:
    """Check the configuration, open the data, and train or evaluate."""
    if argv[1:] or not FLAGS.workdir:
        raise UserError(f"--workdir must be given, and no bare arguments ({argv[1:]})")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax tells of every file that it writes
    # Imported late: the processes that render the synthetic data set import this file too.
    from pgfl_jax.config import parse_config

    config = parse_config(FLAGS.config)

    import jax
    import tensorflow as tf

    config.check_devices(jax.device_count())  # before any data is prepared

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

    from input_pipeline.dataset import evaluation_data, training_data
    from pgfl_jax.evaluate import evaluate_checkpoint
    from pgfl_jax.train import train

    workdir = Path(FLAGS.workdir)
    if FLAGS.mode == "train":
        train(config, workdir, training_data(config), evaluation_data(config))
    else:
        evaluate_checkpoint(config, workdir, evaluation_data(config))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the newest checkpoint, if there is one")
        sys.exit(130)
