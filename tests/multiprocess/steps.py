"""Some training steps in one process or as one of two; dumps what they compute.

Run: ``python -m tests.multiprocess.steps OUT.npz BATCHES.npz [COORDINATOR NUM_PROCESSES
PROCESS_ID]``. Everything is in double precision. The batches come from a file, since TensorFlow
would take half of the time; that each process reads its slice is tested where they are made.
"""

import sys

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

from configs import synthetic_tiny
from pgfl_jax.config import parse_config
from pgfl_jax.distributed.launch import joined
from pgfl_jax.distributed.sharding import make_mesh, replicated, shard_batch
from pgfl_jax.experiment import Experiment
from pgfl_jax.losses import mine_hardest
from pgfl_jax.train_step import make_train_step
from tests.runs import one_block, own_rows

STEPS = {1: 4, 2: 3}  # by the size of the mesh's axis "model"


def _double(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _steps(batches, model):
    """The results of the first steps on a mesh with ``model`` devices on that axis, by name."""
    values = synthetic_tiny.get_config()
    values.mesh.model = model
    values.model.pose_branches = model == 1  # once with teachers is enough: they take half the time
    # Plain SGD: its update is the gradient. Adam's would amplify the rounding of tiny gradients.
    values.optim.name, values.optim.learning_rate = "sgd", 1e-3
    experiment = Experiment.create(parse_config(values), num_identities=16, num_images=128)
    mesh = make_mesh(model=model)
    state = _double(experiment.init_state(mesh))
    train_step = make_train_step(experiment, mesh)

    def mine(state, batch):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs, _ = experiment.model.apply(
            variables, batch["images"], train=True, mutable=["batch_stats"]
        )
        return mine_hardest(outputs.main.embedding, outputs.main.embedding, batch["labels"])

    mine = jax.jit(mine, out_shardings=replicated(mesh))
    dumped = {}
    for step in range(STEPS[model]):
        rows = own_rows({name: values[step] for name, values in batches.items()})
        global_batch = _double(shard_batch(rows, mesh))
        if model == 1:
            for i, mined in enumerate(jax.tree.leaves(mine(state, global_batch))):
                dumped[f"mined/{step}/{i}"] = np.asarray(mined)
        state, metrics = train_step(state, global_batch)
        dumped |= {f"losses/{step}/{name}": np.asarray(v) for name, v in metrics.items()}
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    leaves = jax.tree_util.tree_leaves_with_path(gather((state.params, state.batch_stats)))
    dumped |= {f"state/{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
    kernel = state.params["main_classifier"]["kernel"]
    dumped["shard of the classifier"] = np.asarray(kernel.addressable_shards[0].data.shape)
    return dumped


def main(out, batches, coordinator=None, num_processes=1, process_id=None):
    process = coordinator, int(num_processes), None if process_id is None else int(process_id)
    with one_block(), joined(*process, timeout=120):
        batches = dict(np.load(batches))
        dumped = {
            f"model {model}/{name}": value
            for model in STEPS
            for name, value in _steps(batches, model).items()
        }
        np.savez(out, **dumped)


if __name__ == "__main__":
    main(*sys.argv[1:])
