"""PGFL-KD on P-DukeMTMC-reID with the field's standard recipe: ResNet-50, 256x128, 120 epochs.

    python main.py --config=configs/p_dukemtmc_reid.py --workdir=W --config.data.manual_dir=DIR

Run it on a GPU or TPU. DIR holds the data as published (docs/datasets.md). To train with poses, add
``--config.data.pose.files="('poses.npz',)"`` (docs/poses.md). Without poses, only the main branch
is trained; with ``--config.model.pooling=gap`` it is the baseline. docs/results.md lists published
scores; we have measured none yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The standard recipe, trained and scored on P-DukeMTMC-reID."""
    config = default.get_config()
    config.data.dataset = "p_dukemtmc_reid"
    return config
