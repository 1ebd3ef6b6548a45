"""The benchmark of inference lets every side take its turns, and goes on without one that fails."""

import functools
import json

import numpy as np
import pytest

from benchmarks import inference
from pgfl_jax.errors import UserError


def test_sides_take_turns_and_one_that_fails_is_named():
    pictures = np.zeros((32, 4, 4, 3), np.uint8)
    doubled = functools.partial(functools.partial, np.multiply, 2)
    makes = {"a": (doubled, pictures), "b": (functools.partial(int, "x"), pictures)}
    found, errors = inference.measure(makes, rounds=3, seconds=0.01)
    assert found.keys() == {"a"} and found["a"].keys() == {1, 32}
    for times in found["a"].values():
        assert len(times) == 3 and all(0 < seconds < 1 for seconds in times)
    assert errors == {"b": "ValueError: invalid literal for int() with base 10: 'x'"}


def test_the_sides_are_the_models_on_their_runtimes_and_the_originals(tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    pictures = np.full((32, 4, 2, 3), 255, np.uint8)
    np.savez(folder / "probe.npz", pictures=pictures)
    taken = {"dtype": "float32", "normalised_inside": True}
    (folder / "preprocessing.json").write_text(json.dumps({"input": taken}))
    models = [
        {"file": "model.pt2", "runtimes": ["torch", "other"], "precision": "float32", "bytes": 1}
    ]
    (folder / "parity.json").write_text(json.dumps({"format": "torch", "models": models}))
    found = list(inference.sides(tmp_path / "run", tmp_path))
    assert [about["side"] for about, _, _ in found] == [
        "torch/model.pt2 on torch", "torch/model.pt2 on other", "torch compiled",
        "torch.onnx on onnxruntime", "jax",
    ]  # fmt: skip
    # As the artifact takes them; the run takes uint8.
    assert [rows.shape for _, _, rows in found] == [(32, 3, 4, 2)] * 4 + [(32, 4, 2, 3)]
    with pytest.raises(UserError, match="holds no artifacts"):
        list(inference.sides(tmp_path, tmp_path / "run"))
