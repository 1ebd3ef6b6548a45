"""The configuration of a run that exists: ``--config=configs/stored.py:RUN``.

``main.py --mode=evaluate`` takes it where no ``--config`` is given.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from pgfl_jax.report.manifest import read_config


def get_config(run: str) -> ConfigDict:
    """What the run in the folder ``run`` was trained with."""
    return ConfigDict(dataclasses.asdict(read_config(Path(run))))
