"""PGFL-KD with a Swin transformer on Occluded-Duke, from SOLIDER's weights.

    python main.py --config=configs/occluded_duke_swin.py --workdir=W --config.data.manual_dir=DIR \
        --config.model.pretrained=swin_base_tea.pth

Run it on a GPU or TPU. DIR holds the data as published (docs/datasets.md). docs/pretrained.md says
where the weights are and how SOLIDER's semantic layers are read. Pictures, optimizer and schedule
are those of SOLIDER's authors on Market-1501. The last stage has stride 1, so the map has 24x8
cells. To train with poses, add ``--config.data.pose.files="('poses.npz',)"`` (docs/poses.md).

By its arithmetic, 2e17 operations, it takes about an hour on a data-centre GPU; neither the time
nor the score has been measured here. What it aims at: 73 % mAP, which KPR reaches from these
weights without prompts (V. Somers et al., ECCV 2024); it also fuses the stages of the network.
"""

from ml_collections import ConfigDict

from configs import market1501_vit


def get_config() -> ConfigDict:
    """Swin-Base at 384x128, 120 epochs of SGD."""
    config = market1501_vit.get_config()
    config.data.dataset = "occluded_duke"
    config.data.height = 384
    config.model.backbone = "swin_base_solider"
    config.optim.learning_rate = 8e-4
    config.optim.warmup_epochs = 20.0
    return config
