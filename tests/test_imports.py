"""The core imports without the packages that read data and without PyTorch."""

import pkgutil
import subprocess
import sys

import pgfl_jax

BLOCK = """
import importlib, sys
BLOCKED = ("tensorflow", "tensorflow_datasets", "clu", "cv2", "ml_collections", "torch",
           "input_pipeline", "configs", "studies", "benchmarks")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in BLOCKED:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} was not blocked")
print("blocked", len(sys.argv) - 1)
"""


def test_the_package_imports_by_itself():
    names = [module.name for module in pkgutil.walk_packages(pgfl_jax.__path__, "pgfl_jax.")]
    names.remove("pgfl_jax.export.torch_model")  # the network in PyTorch
    assert {"pgfl_jax.train", "pgfl_jax.losses.total", "pgfl_jax.report.writers"} <= set(names)
    result = subprocess.run(
        [sys.executable, "-c", BLOCK, *names], capture_output=True, text=True, check=False
    )
    assert result.stdout == f"blocked {len(names)}\n", result.stderr
