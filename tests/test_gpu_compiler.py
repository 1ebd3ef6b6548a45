"""Steps and embeddings compile for GPUs, where XLA runs other passes, which can abort."""

import json

import pytest

from tests.runs import ROOT, finish, launch

PLUGIN = ROOT / ".cache" / "cuda"


@pytest.mark.skipif(
    not PLUGIN.exists(),
    reason="pip install -c constraints.txt --no-deps --target .cache/cuda "
    "jax-cuda13-plugin jax-cuda13-pjrt",
)
def test_steps_and_embeddings_compile_for_an_h100():
    process = launch("-m", "tests.gpu_compiling", env={"PYTHONPATH": str(PLUGIN)})
    status, out, err = finish(process)
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["case"] for line in found] == [
        "resnet8 float32 train",
        "resnet8 float32 embed",
        "resnet18 bfloat16 embed",
        "resnet50 bfloat16 embed",
    ]
    for line in found:
        # Training holds the state and a share of the batch, embedding the images and main branch.
        assert line["argument_bytes"] == line["expected_bytes"], line
        assert line["exchanges"] == line["case"].endswith("train"), line
    # Bias, shortcut and ReLU of every layer are part of its convolution or product. The activations
    # of 64 images are 8.3 million numbers each, in two bytes, written once and read once, with the
    # shortcuts read again: 2.7 GB. A third more allows for the stem, weights and strides.
    embedding = found[-1]
    assert embedding["plain_convolutions"] == embedding["plain_products"] == 0, embedding
    assert embedding["moved_bytes"] < 3.6e9, embedding
