"""Every contract, in every format, gives the embedder's embeddings."""

import jax
import numpy as np
import pytest

from pgfl_jax.export.contract import CONTRACTS, batch_of, embed_pictures, named_variables
from pgfl_jax.export.jaxpr_to_onnx import convert
from pgfl_jax.export.stablehlo import PLATFORMS, to_stablehlo
from tests.export.test_jaxpr_to_onnx import operations, run
from tests.networks import golden
from tests.runs import ROOT

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

# Weights and multiply-adds of the golden run's main branch, by hand: patches of 4x4 pixels and a
# block of 48 channels on 16x8 cells, blocks of 96 and 192 channels with their shortcuts on 8x4.
_ON_16X8 = 48 * 48 + 2 * 9 * 48 * 48
_ON_8X4 = 9 * 48 * 96 + 9 * 96 * 96 + 48 * 96 + 9 * 96 * 192 + 9 * 192 * 192 + 96 * 192
KERNELS, MULTIPLY_ADDS = _ON_16X8 + _ON_8X4, 16 * 8 * _ON_16X8 + 8 * 4 * _ON_8X4


@pytest.fixture(scope="module")
def embedder():
    return golden()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 32, 3), np.uint8)


def arranged(pictures, name):
    """Pictures as a contract wants them, by NumPy."""
    if name == "uint8_nhwc":
        return pictures
    values = pictures.astype(np.float32)
    if name == "normalised_nchw":
        values = (values / 255 - MEAN) / STD
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", CONTRACTS)
def test_onnx_takes_every_contract(embedder, pictures, name):
    contract = CONTRACTS[name]
    embed = embed_pictures(embedder, contract)
    model = convert(embed, batch_of(embedder, contract))
    rows, expected = arranged(pictures, name), embedder(pictures)
    for count in (1, 5):
        np.testing.assert_allclose(run(model, rows[:count]), expected[:count], rtol=0, atol=1e-6)
    # The network takes channels first.
    assert operations(model)["Transpose"] == (name == "uint8_nhwc")


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", CONTRACTS)
def test_stablehlo_takes_every_contract(embedder, pictures, name, inside):
    program = to_stablehlo(embedder, CONTRACTS[name], parameters_inside=inside)
    assert str(ROOT).encode() not in program
    loaded = jax.export.deserialize(bytearray(program))
    assert loaded.platforms == PLATFORMS
    rows, expected = arranged(pictures, name), embedder(pictures)
    variables = () if inside else (named_variables(embedder),)
    for count in (1, 5):
        found = loaded.call(*variables, rows[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-6)
    # Inside are trunk and BNNeck, in float32, and little else.
    size = sum(value.nbytes for value in named_variables(embedder).values())
    assert (size < len(program) < 1.1 * size + 200_000) if inside else len(program) < 300_000


def test_a_wrong_batch_cannot_enter(embedder, pictures):
    program = jax.export.deserialize(
        bytearray(to_stablehlo(embedder, CONTRACTS["uint8_nhwc"], parameters_inside=True))
    )
    for wrong in (pictures.transpose(0, 2, 1, 3), pictures[..., :2], pictures.astype(np.float32)):
        with pytest.raises((ValueError, TypeError)):
            program.call(wrong)
