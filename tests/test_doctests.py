"""The examples in docstrings give what they show."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pgfl_jax", "input_pipeline", "studies", "benchmarks")


class _Finder(doctest.DocTestFinder):
    """Finds functions that the shape checker has wrapped, too: their globals are the checker's."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


def _with_examples():
    files = sorted(path for name in OURS for path in (ROOT / name).rglob("*.py"))
    shown = [path for path in files if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown]
    return [name.removesuffix(".__init__") for name in names]


def _imported(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("name", _with_examples())
def test_examples(name):
    module = _imported(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output = []
    for example in _Finder().find(module, name):
        runner.run(example, out=output.append)
    result = runner.summarize(verbose=False)
    written = Path(module.__file__).read_text(encoding="utf-8").count(">>> ")
    assert result.failed == 0, "".join(output)
    assert result.attempted == written, "an example in a docstring was not found"
