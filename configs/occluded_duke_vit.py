"""PGFL-KD with a vision transformer on Occluded-Duke, with overlapping patches.

    python main.py --config=configs/occluded_duke_vit.py --workdir=W --config.data.manual_dir=DIR \
        --config.model.pretrained=vit_base.pth

As ``configs/market1501_vit.py``, with a patch every 12 pixels: a map of 21x10 cells instead of
16x8. By its arithmetic, 2e17 operations, it takes about an hour on a data-centre GPU; neither the
time nor the score has been measured here. What it aims at: TransReID's 59.2 % mAP (S. He et al.,
ICCV 2021), which also knows the cameras, and more with weights trained on people.
"""

from ml_collections import ConfigDict

from configs import market1501_vit


def get_config() -> ConfigDict:
    """ViT-Base with overlapping patches, trained and scored on Occluded-Duke."""
    config = market1501_vit.get_config()
    config.data.dataset = "occluded_duke"
    config.model.backbone = "vit_base_overlap"
    return config
