"""PGFL-KD on the synthetic set of Occluded-Duke's size, with the field's standard recipe.

Run on a GPU or TPU:
``python main.py --config=configs/synthetic_benchmark.py --workdir=runs/benchmark``. The data set
is rendered once, in about 10 minutes on two cores. The MB-only baseline is
``--config.model.pose_branches=False``, and ``--config.data.pose.source=shuffled`` the control that
tells whether the pose of the image at hand does the work.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """ResNet-50 from scratch at 256x128."""
    config = default.get_config()
    config.data.dataset = "synthetic_occluded_reid/benchmark"
    config.eval.embeddings = ("main", "foreground", "parts")
    return config
