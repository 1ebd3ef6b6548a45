"""The ten lines for each runtime, in docs/export.md and in the model cards, run as they are."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import pgfl_jax
import pgfl_jax.export
from pgfl_jax.export.formats import FORMATS
from pgfl_jax.export.usage import USAGES, lines
from tests.export.conftest import unverified
from tests.networks import golden
from tests.runs import ROOT

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
_BLOCK = re.compile(
    r"^<!-- not run: tests/export/test_usage\.py [^\n]*-->\n```python\n(.*?)^```$", re.M | re.S
)
# Which file of an artifact the lines of a runtime take.
PLACES = {
    runtime: (name, model.file)
    for name, which in FORMATS.items()
    for model in which.models
    if model.precision == "float32"
    for runtime in model.runtimes
}


@pytest.fixture(scope="module")
def embedder():
    """The stored network on pictures of the demo's size."""
    embedder = golden()
    data = dataclasses.replace(embedder.config.data, height=128, width=64)
    config = dataclasses.replace(embedder.config, data=data)
    return dataclasses.replace(embedder, config=config)


@pytest.fixture(scope="module")
def exported(embedder, tmp_path_factory):
    """Exports a format on first use; the folder in which the demo was trained."""
    folder, done = tmp_path_factory.mktemp("reader"), set()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 90, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "someone.jpg")

    def export(name):
        if name not in done:
            (folder / "runs" / "demo").mkdir(parents=True, exist_ok=True)
            write = getattr(pgfl_jax.export, f"export_{name}")
            # The lines run the models; that an export does, too, is another test.
            with unverified():
                write(embedder, folder / "runs" / "demo" / "export" / name)
            done.add(name)
        return folder

    return export


def run(code, folder):
    """The ``rows`` of lines of Python, in a fresh process."""
    command = f"{code}\nnp.save('rows.npy', rows)"
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True, capture_output=True)
    return np.load(folder / "rows.npy", allow_pickle=False)


@pytest.mark.parametrize("runtime", USAGES)
def test_the_lines_of_the_page_run(exported, embedder, runtime):
    name, file = PLACES[runtime]
    package = importlib.import_module(f"pgfl_jax.export.runtimes.run_{runtime}").PACKAGES[-1]
    if importlib.util.find_spec(package) is None:
        pytest.importorskip(package)
    folder = exported(name)
    artifact = folder / "runs" / "demo" / "export" / name
    preprocessing = json.loads((artifact / "preprocessing.json").read_text())
    code = lines(runtime, f"runs/demo/export/{name}/{file}", preprocessing)
    assert code in _BLOCK.findall(PAGE)
    assert len(code.splitlines()) <= 14
    expected = embedder(folder / "someone.jpg")
    np.testing.assert_allclose(run(code, folder), expected, rtol=0, atol=2e-6)
    card = (artifact / "README.md").read_text()
    assert lines(runtime, file, preprocessing) in card


@pytest.mark.parametrize("contract", ["float255_nchw", "normalised_nchw"])
def test_the_lines_of_other_contracts_run(embedder, tmp_path, contract):
    pgfl_jax.export.export_onnx(embedder, tmp_path / "onnx", contract=contract)
    pixels = np.random.default_rng(1).integers(0, 256, (99, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "onnx" / "someone.jpg")
    card = (tmp_path / "onnx" / "README.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)[0]
    rows = run(code, tmp_path / "onnx")
    expected = embedder(tmp_path / "onnx" / "someone.jpg")
    np.testing.assert_allclose(rows, expected, rtol=0, atol=2e-6)


def test_every_runtime_has_its_lines():
    assert USAGES.keys() == PLACES.keys()
    assert len(_BLOCK.findall(PAGE)) == len(USAGES) + 1


def test_parameters_beside_a_program_run(exported, embedder):
    folder = exported("stablehlo")
    (code,) = (code for code in _BLOCK.findall(PAGE) if "load_file" in code)
    expected = embedder(np.zeros((2, 128, 64, 3), np.uint8))
    np.testing.assert_allclose(run(code, folder), expected, rtol=0, atol=2e-6)
