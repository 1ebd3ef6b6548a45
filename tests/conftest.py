"""A strict session: eight CPU devices, no implicit rank promotion, shapes checked at run time."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests, and the processes that they start, compile the same small programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Compiling takes half of the suite's time, and half of that with most of XLA's passes off. Tests
# that look at a compiled program turn them on; `make parity` and the demo compile as users do.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# XLA's older code generator takes half of the newer one's time, and one module a part of that.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

# For TensorFlow's settings, before it is imported.
import input_pipeline  # noqa: F401  isort: skip
import jax
import jaxtyping
import pytest
import tensorflow as tf

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Half of what it takes to start reading a split is TensorFlow's optimization of its small graphs.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
# Before anything of the package is imported.
jaxtyping.install_import_hook("pgfl_jax", "beartype.beartype")

from configs import synthetic_tiny
from input_pipeline.builders import prepared_builder
from pgfl_jax.config import parse_config
from tests.runs import code_of_users, one_block, shared_by_workers


@pytest.fixture(scope="module")
def all_optimizations():
    """For tests that look at what users' programs compile to, or how they round."""
    jax.config.update("jax_disable_most_optimizations", False)
    with code_of_users():
        yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def small_network():
    """For tests of what does not depend on the network."""
    with one_block():
        yield


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory):
    """A data folder with the tiny synthetic set, rendered once for all workers."""
    with shared_by_workers(tmp_path_factory, "data") as folder:
        prepared_builder("synthetic_occluded_reid/tiny", str(folder))
        return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_data_dir):
    """Makes the tiny configuration with some options changed: ``tiny_config(**{"a.b": 1})``."""

    def make(**changes):
        values = synthetic_tiny.get_config()
        values.update_from_flattened_dict({"data.data_dir": str(tiny_data_dir), **changes})
        return parse_config(values)

    return make


# What takes long starts first, or a worker would end up alone with it.
LONG = (
    "test_killed.py", "test_train.py", "test_run.py", "test_large_batch.py", "test_real_data.py",
    "test_sharding.py", "test_gpu_compiler.py", "test_pipeline.py", "test_aot.py", "test_golden.py",
    "test_parity.py", "test_start.py", "test_difficulty.py", "test_pretrained.py", "test_steps.py",
    "test_resumed_elsewhere.py", "test_embedder.py", "test_damaged_checkpoints.py",
    "test_full_disk.py", "test_train_step.py", "test_total.py", "test_transfers.py", "test_pgfl.py",
    "test_command.py", "test_verify.py", "test_stored_runs.py", "test_documents.py",
    "test_jaxpr_to_onnx.py", "test_study.py",
    "test_doctor.py", "test_published_sets.py", "test_triplet.py",
)  # fmt: skip


def pytest_collection_finish():
    # A tenth of the time went into looking for garbage among a million objects of the imports.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
