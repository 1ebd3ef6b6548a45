"""The configuration of an existing run: ``--config=configs/stored.py:RUN``.

``main.py --mode=evaluate`` uses it if no ``--config`` is given.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from pgfl_jax.report.manifest import read_config


def get_config(run: str) -> ConfigDict:
    """The configuration that the run in the folder ``run`` was trained with."""
    return ConfigDict(dataclasses.asdict(read_config(Path(run))))
