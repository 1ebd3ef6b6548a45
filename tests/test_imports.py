"""The core runs without TensorFlow (docs: TensorFlow reads data, nothing else)."""

import pkgutil
import subprocess
import sys

import pgfl_jax

BLOCK = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
try:
    import tensorflow
except ImportError:
    print("blocked", len(sys.argv) - 1)
"""


def test_the_package_imports_with_tensorflow_blocked():
    names = [module.name for module in pkgutil.walk_packages(pgfl_jax.__path__, "pgfl_jax.")]
    assert {"pgfl_jax.train", "pgfl_jax.losses.total", "pgfl_jax.report.writers"} <= set(names)
    result = subprocess.run(
        [sys.executable, "-c", BLOCK, *names], capture_output=True, text=True, check=False
    )
    assert result.stdout == f"blocked {len(names)}\n", result.stderr
