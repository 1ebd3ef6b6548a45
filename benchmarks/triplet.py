"""Time and memory of the batch-hard triplet loss by batch size.

Run: ``python -m benchmarks.triplet --batch=1024,4096,16384``. Compiles the loss and its gradient
into one function for one device and prints one JSON line per batch size. ``temporary_mib`` is what
the function allocates besides its arguments and results. A (B, B, D) tensor would take
``all_differences_gib``.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from pgfl_jax.command_line import run
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.losses import batch_hard_triplet

FLAGS = flags.FLAGS
flags.DEFINE_list("batch", ["1024", "4096", "16384"], "Batch sizes.")
flags.DEFINE_integer("channels", 2048, "Length of an embedding, D.")
flags.DEFINE_integer("repeats", 3, "Timed calls; the median is reported.")
flags.DEFINE_integer("seed", 0, "Seed of the random embeddings.")


def measure(batch: int, channels: int, repeats: int, seed: int) -> dict[str, object]:
    """Compile, run and time the loss and its gradient; returns the line to print."""
    embeddings = jax.random.normal(jax.random.key(seed), (batch, channels))
    labels = jnp.arange(batch) // 4
    loss = jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, margin=0.3))
    compiled = jax.jit(loss).lower(embeddings).compile()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(embeddings))
        seconds.append(time.perf_counter() - started)
    return {
        "benchmark": "triplet",
        "batch": batch,
        "channels": channels,
        "seconds": statistics.median(seconds[1:]),  # the first call warms up
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "one_matrix_mib": 4 * batch**2 / 2**20,
        "all_differences_gib": 4 * batch**2 * channels / 2**30,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main(_: list[str]) -> None:
    """Print one line per batch size."""
    require_devices()
    for batch in map(int, FLAGS.batch):
        print(json.dumps(measure(batch, FLAGS.channels, FLAGS.repeats, FLAGS.seed)), flush=True)


if __name__ == "__main__":
    run(main, required=[])
