"""The smallest complete run, for tests and a first look: half a minute on two CPU cores.

Run ``python main.py --config=configs/synthetic_tiny.py --workdir=runs/tiny``. Sixteen identities
teach little: expect scores slightly above those of the untrained network.
"""

from ml_collections import ConfigDict

from configs import synthetic_demo


def get_config() -> ConfigDict:
    """ResNet-8 at 64x32, batches of 4x4."""
    config = synthetic_demo.get_config()
    config.data.dataset = "synthetic_occluded_reid/tiny"
    config.data.height, config.data.width = 64, 32
    config.data.identities_per_batch, config.data.images_per_identity = 4, 4
    config.data.augment.pad = 2
    config.optim.learning_rate = 1.5e-3
    config.train.epochs = 5.0
    config.train.log_every, config.train.eval_every, config.train.checkpoint_every = 10, 20, 10
    config.train.pictures = 0
    config.eval.batch_size = 16
    config.eval.report = False
    return config
