"""A process that joins another one and does little else.

Run: ``python -m tests.multiprocess.joining WHAT DEVICES [OPTION …]``; options as in ``main.py``.
"""

import jax
from absl import flags, logging

from pgfl_jax.command_line import run
from pgfl_jax.distributed.collectives import barrier
from pgfl_jax.distributed.launch import joined

FLAGS = flags.FLAGS
flags.DEFINE_string("coordinator", None, "")
flags.DEFINE_integer("num_processes", None, "")
flags.DEFINE_integer("process_id", None, "")
flags.DEFINE_float("start_timeout", 300.0, "")


def work(what):
    """Raise an error in one process while the other waits for it."""
    barrier("all are here")
    print(f"process {jax.process_index()} of {jax.process_count()}", flush=True)
    if what == "memory" and jax.process_index() == 0:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: NCCL failed to allocate memory")
    if what == "bug" and jax.process_index() == 1:
        raise ZeroDivisionError("a bug")
    barrier("the others have ended")


def main(argv):
    logging.set_verbosity(logging.FATAL)  # as in main.py
    jax.config.update("jax_num_cpu_devices", int(argv[2]))
    with joined(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, timeout=FLAGS.start_timeout
    ):
        work(argv[1])


if __name__ == "__main__":
    run(main, required=[])
