"""What the wheel alone can do: ``python .ci/wheel.py RUN PICTURE``, from outside the clone."""

import importlib.util
import sys

import numpy as np

import pgfl_jax

run, picture = sys.argv[1:]
rows = pgfl_jax.load(run)([picture])
assert rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == 1, (rows.dtype, rows.shape)
np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)

imported = {name.split(".")[0] for name in sys.modules}
heavy = {"tensorflow", "tensorflow_datasets", "clu", "torch", "cv2"} & imported
assert not heavy, heavy
for name in ("input_pipeline", "configs", "tensorflow", "clu"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed"
print(f"pgfl_jax {pgfl_jax.__version__}: {picture} gives {rows.shape[1]} numbers")
