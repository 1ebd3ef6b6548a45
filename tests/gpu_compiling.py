"""Compile for H100s on a machine without one: JAX's CUDA plugin contains the whole compiler.

    PYTHONPATH=.cache/cuda python -m tests.gpu_compiling various

Prints one JSON line per case of a group in CASES.
"""

import json
import os
import sys
from unittest import mock

# Otherwise the plugin looks for CUDA's libraries, which compiling does not need.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
}

import jax

from benchmarks.aot import abstract_batch
from benchmarks.chips import topology_devices
from benchmarks.hlo import Program
from configs import default, synthetic_demo
from pgfl_jax.config import parse_config
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import main_branch
from pgfl_jax.models.backbones import BACKBONES, ResNet
from pgfl_jax.models.backbones.resnet import Bottleneck
from pgfl_jax.retrieval.embeddings import make_embed
from pgfl_jax.train_step import make_train_step

IDENTITIES = 100
# Every kind of layer of ResNet-50 in a third of the time.
BOTTLENECKS = {"resnet50": ResNet(Bottleneck, (1, 1, 1, 1))}
# Configuration, backbone, precision, function to compile, number of devices.
CASES = {
    "various": [
        (synthetic_demo, "resnet8", "float32", "train", 8),
        (default, "resnet50", "bfloat16", "embed", 1),
    ],
    "bottlenecks": [(default, "resnet50", "bfloat16", "train", 1)],
}


def compile_case(module, backbone, dtype, task, devices):
    """The bytes of the arguments on one device, as compiled and as expected."""
    values = module.get_config()
    values.model.backbone, values.model.dtype = backbone, dtype
    config = parse_config(values)
    experiment = Experiment.create(
        config, num_identities=IDENTITIES, num_images=10 * config.data.batch_size
    )
    mesh = make_mesh(topology_devices(f"h100:{devices}"))
    state, batch = experiment.abstract_state(), abstract_batch(config)
    if task == "train":
        function = make_train_step(experiment, mesh)
        expected = _bytes(state) + _bytes(batch) // devices
    else:
        del batch["erased"]  # only training erases
        # A trained state carries its own shardings.
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            experiment.state_shardings(mesh),
        )
        function = make_embed(experiment, mesh, ("main",))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        expected = _bytes(main_branch(variables)) + _bytes(batch["images"])
    compiled = function.lower(state, batch).compile()
    text = compiled.as_text()
    return {
        "case": f"{backbone} {dtype} {task}",
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "expected_bytes": expected,
        "exchanges": " all-reduce" in text,
        "moved_bytes": Program(text).memory_bytes,
        "plain_convolutions": text.count('custom_call_target="__cudnn$convForward"'),
        "plain_products": text.count('"epilogue":"DEFAULT"'),
    }


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    group = sys.argv[1]
    with mock.patch.dict(BACKBONES, BOTTLENECKS if group == "bottlenecks" else {}):
        for case in CASES[group]:
            print(json.dumps(compile_case(*case)), flush=True)
