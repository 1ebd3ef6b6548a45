"""PGFL-KD on the synthetic set of Occluded-Duke's size, with the field's standard recipe.

    python main.py --config=configs/synthetic_benchmark.py --workdir=runs/benchmark

Run it on a GPU or TPU. The data set is rendered once, in about 10 minutes on two cores.
``--config.model.pose_branches=False --config.model.pooling=gap`` is the baseline, without poses.
``--config.data.pose.source=shuffled`` is a control: it shows whether each image needs its own pose.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """ResNet-50 from scratch at 256x128."""
    config = default.get_config()
    config.data.dataset = "synthetic_occluded_reid/benchmark"
    config.eval.embeddings = ("main", "foreground", "parts")
    return config
