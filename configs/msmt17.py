"""PGFL-KD on MSMT17 with the field's standard recipe: ResNet-50, 256x128, 120 epochs.

    python main.py --config=configs/msmt17.py --workdir=W --config.data.manual_dir=DIR

Run it on a GPU or TPU. DIR holds the data as published (docs/datasets.md). To train with poses, add
``--config.data.pose.files="('poses.npz',)"`` (docs/poses.md). Without poses, only the main branch
is trained; with ``--config.model.pooling=gap`` it is the baseline.
``--config.data.dataset=msmt17/v2`` takes the later release, without faces. docs/results.md lists
published scores; we have measured none yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The standard recipe, trained on train and val of MSMT17."""
    config = default.get_config()
    config.data.dataset = "msmt17/v1"
    config.train.eval_every = 10_000  # an evaluation embeds 93,820 images
    config.train.checkpoint_every = 2000
    return config
