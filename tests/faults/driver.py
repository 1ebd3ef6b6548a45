"""Training a small network without TensorFlow and image files: it starts in a few seconds.

``python -m tests.faults.driver --workdir=DIR [--config.option=value …]``. Everything else is as in
``main.py``. The batches are noise, a pure function of the step.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from absl import flags, logging
from ml_collections import config_flags

from configs import synthetic_tiny
from pgfl_jax.command_line import run
from tests.runs import one_block, own_rows

IMAGES, IDENTITIES = 128, 16

FLAGS = flags.FLAGS
config_flags.DEFINE_config_dict("config", synthetic_tiny.get_config())
flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.DEFINE_integer("nan", -1, "The images of this step's batch are NaN.")
flags.DEFINE_integer("signal_at", -1, "In this step, counted from 0, signals are sent …")
flags.DEFINE_multi_integer("signal", [], "… of these numbers.")
flags.DEFINE_string("coordinator", None, "As in main.py.")
flags.DEFINE_integer("num_processes", None, "As in main.py.")
flags.DEFINE_integer("process_id", None, "As in main.py.")


class NoEvents:
    """Replaces clu's writer, which imports TensorFlow."""

    def __init__(self, logdir):
        Path(logdir).mkdir(exist_ok=True)

    def write_scalars(self, step, scalars):
        pass

    flush = close = lambda self: None


sys.modules["clu.metric_writers"] = SimpleNamespace(SummaryWriter=NoEvents)


def batch(config, step):
    import numpy as np

    rng = np.random.default_rng(step)
    size, data = config.data.batch_size, config.data
    people = rng.permutation(IDENTITIES)[: data.identities_per_batch]
    return {
        "images": rng.normal(size=(size, data.height, data.width, 3)).astype(np.float32),
        "labels": np.repeat(people, data.images_per_identity).astype(np.int32),
        "part_maps": rng.random((size, *config.map_shape, 8)).astype(np.float32),
        "visibility": rng.random((size, 8)).astype(np.float32),
        "indices": np.arange(step * size, (step + 1) * size) % IMAGES,
    }


def training_data(config):
    import numpy as np

    from pgfl_jax.train import TrainingData

    def batches(step):
        while True:
            values = batch(config, step)
            if step == FLAGS.nan:
                values["images"][...] = np.nan
            if step == FLAGS.signal_at + 1:  # made while the step before it is taken
                for number in FLAGS.signal:
                    os.kill(os.getpid(), number)
                    time.sleep(0.1)
            yield own_rows(values)
            step += 1

    names = np.array([f"train_{i}.jpg" for i in range(IMAGES)])
    return TrainingData(IDENTITIES, names, batches, description={"name": "noise"})


def evaluation_data(config):
    import numpy as np

    from pgfl_jax.retrieval.protocols import EvaluationData, EvaluationSplit, Protocol

    size = config.eval.batch_size

    def split(seed, camera):
        def batches():
            rng = np.random.default_rng((1, seed))
            images = rng.normal(size=(size, config.data.height, config.data.width, 3))
            yield own_rows(
                {
                    "images": images.astype(np.float32),
                    "part_maps": np.zeros((size, *config.map_shape, 8), np.float32),
                    "visibility": np.zeros((size, 8), np.float32),
                    "valid": np.ones(size, np.float32),
                }
            )

        names = np.array([f"{seed}_{i}.jpg" for i in range(size)])
        identities = np.arange(size) % 8
        return EvaluationSplit(
            names, identities, np.full(size, camera), np.full(size, np.nan), batches
        )

    return EvaluationData(
        {"query": split(2, 0), "gallery": split(3, 1)},
        [Protocol("noise", "noise", "query", "gallery")],
    )


def main(argv):
    from pgfl_jax.config import parse_config
    from pgfl_jax.distributed.launch import joined
    from pgfl_jax.train import train

    logging.set_verbosity(logging.FATAL)
    workdir = Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with one_block(), joined(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id):
        config = parse_config(FLAGS.config)
        train(config, workdir, training_data(config), evaluation_data(config))


if __name__ == "__main__":
    run(main, required=["workdir"], interrupted="interrupted")
