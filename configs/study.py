"""A cell of the ablation study: ``--config=configs/study.py:CELL`` (studies/ablation/cells.py)."""

import importlib

from ml_collections import ConfigDict

from studies.ablation.cells import CELLS


def get_config(cell: str) -> ConfigDict:
    """The cell's configuration, scored once, at the end of the training; without a report."""
    if cell not in CELLS:
        raise ValueError(f"no cell {cell!r}; there are {', '.join(CELLS)}")
    config: ConfigDict = importlib.import_module(f"configs.{CELLS[cell].base}").get_config()
    config.train.eval_every = 10**6
    config.eval.report, config.eval.compare = False, ()
    config.update_from_flattened_dict(CELLS[cell].changes)
    return config
