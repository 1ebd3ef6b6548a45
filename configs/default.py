"""The default of every option: ResNet-50 at 256x128 and the field's standard recipe.

``pgfl_jax/config.py`` lists all options with their defaults, ranges and meanings.
"""

import dataclasses

from ml_collections import ConfigDict

from pgfl_jax.config import Config


def get_config() -> ConfigDict:
    """ResNet-50 at 256x128, 120 epochs; expects a GPU or TPU."""
    return ConfigDict(dataclasses.asdict(Config()))
