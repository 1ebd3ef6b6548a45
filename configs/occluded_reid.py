"""PGFL-KD for Occluded-REID, which has no training images: trained on Market-1501.

    python main.py --config=configs/occluded_reid.py --workdir=W --config.data.manual_dir=DIR

Run it on a GPU or TPU. DIR holds the data as published (docs/datasets.md). To train with poses, add
``--config.data.pose.files="('poses.npz',)"`` (docs/poses.md). Without poses, only the main branch
is trained; with ``--config.model.pooling=gap`` it is the baseline.

A run of configs/market1501.py can be scored on this set with
``--mode=evaluate --config.eval.datasets="('occluded_reid',)"``.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The standard recipe, trained on Market-1501 and scored on Occluded-REID."""
    config = default.get_config()
    config.data.dataset = "market1501"
    config.eval.datasets = ("occluded_reid",)
    return config
