"""Compile for H100s on a machine without one: JAX's CUDA plugin contains the whole compiler.

    PYTHONPATH=.cache/cuda python -m tests.gpu_compiling

Prints one JSON line per case in CASES.
"""

import json
import os

# Otherwise the plugin looks for CUDA's libraries, which compiling does not need.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
}

import jax
from jax.experimental import topologies

from benchmarks.aot import abstract_batch
from benchmarks.hlo import Program
from configs import default, synthetic_demo
from pgfl_jax.config import parse_config
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import main_branch
from pgfl_jax.retrieval.embeddings import make_embed
from pgfl_jax.train_step import make_train_step

# What the compiler needs to know about the chip; the numbers are the manufacturer's.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
IDENTITIES = 100
# Configuration, backbone, precision, function to compile, number of devices.
CASES = [
    (synthetic_demo, "resnet8", "float32", "train", 8),
    (synthetic_demo, "resnet8", "float32", "embed", 1),
    (default, "resnet18", "bfloat16", "embed", 1),
    (default, "resnet50", "bfloat16", "embed", 1),
]


def compile_case(module, backbone, dtype, task, devices):
    """The bytes of the arguments on one device, as compiled and as expected."""
    values = module.get_config()
    values.model.backbone, values.model.dtype = backbone, dtype
    config = parse_config(values)
    experiment = Experiment.create(
        config, num_identities=IDENTITIES, num_images=10 * config.data.batch_size
    )
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology=f"1x1x{devices}"
    )
    mesh = make_mesh(topology.devices)
    state, batch = experiment.abstract_state(), abstract_batch(config)
    if task == "train":
        function = make_train_step(experiment, mesh)
        expected = _bytes(state) + _bytes(batch) // devices
    else:
        # A trained state carries its own shardings.
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            experiment.state_shardings(mesh),
        )
        function = make_embed(experiment.model, mesh, ("main",))
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
    for case in CASES:
        print(json.dumps(compile_case(*case)), flush=True)
