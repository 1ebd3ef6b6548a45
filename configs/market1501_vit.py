"""PGFL-KD with a vision transformer on Market-1501, trained as TransReID's baseline is.

    python main.py --config=configs/market1501_vit.py --workdir=W --config.data.manual_dir=DIR \
        --config.model.pretrained=vit_base.pth

Run it on a GPU or TPU. DIR holds the data as published (docs/datasets.md). docs/pretrained.md lists
the weights to start from. They decide ``data.mean`` and ``data.std``: 0.5 here, which TransReID,
TransReID-SSL, PASS and PersonViT use; DINO, MAE and torchvision's use ImageNet's. To train with
poses, add ``--config.data.pose.files="('poses.npz',)"`` (docs/poses.md).

By its arithmetic, 1e17 operations, it takes less than an hour on a data-centre GPU; neither the
time nor the score has been measured here. What it aims at: TransReID's 88.9 % mAP (S. He et al.,
ICCV 2021), which also knows the cameras, and more with weights trained on people.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """ViT-Base at 256x128, 120 epochs of SGD."""
    config = default.get_config()
    config.data.dataset = "market1501"
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.model.backbone = "vit_base"
    config.model.drop_path = 0.1
    config.model.dtype = "bfloat16"
    config.loss.smoothing = 0.0
    config.loss.soft_margin = True
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.008
    config.optim.weight_decay = 1e-4
    config.optim.decayed = "kernels"
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 5.0
    return config
