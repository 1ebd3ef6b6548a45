"""The demo: a small PGFL-KD on the small synthetic set, made for two CPU cores.

Run ``make demo``, or ``python main.py --config=configs/synthetic_demo.py --workdir=runs/demo``. It
takes about 5 minutes when the cores are idle. Its scores are in docs/results.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default

# Results of the best baseline, seed 0 (docs/report.md, "A stored baseline").
BASELINE = Path(__file__).parent.parent / "studies" / "ablation" / "baseline"


def get_config() -> ConfigDict:
    """ResNet-8 at 128x64, 24 epochs of 48 steps."""
    config = default.get_config()
    config.data.dataset = "synthetic_occluded_reid/demo"
    config.data.height, config.data.width = 128, 64
    # Half the usual batch, since twice as many steps help more on a short schedule.
    config.data.identities_per_batch = 8
    config.data.augment.pad = 4
    config.model.backbone = "resnet8"
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 1.0
    config.optim.warmup_factor = 0.1
    config.train.epochs = 24.0
    config.train.log_every = 48
    config.train.eval_every = 384
    config.train.checkpoint_every = 192
    config.eval.batch_size = 200
    config.eval.report = True
    config.eval.compare = (str(BASELINE),)
    return config
