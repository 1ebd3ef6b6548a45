"""A run resumed on other devices or with another configuration, and one that meets a NaN."""

import json
import shutil
import signal

import numpy as np
import pytest

from configs import synthetic_tiny
from pgfl_jax.config import ConfigError, parse_config
from pgfl_jax.report.manifest import read_run
from tests.faults.conftest import NETWORK, STEPS
from tests.runs import assert_same_end, finish, history, leaves, steps

pytestmark = pytest.mark.faults


def _devices(count):
    return {"env": {"JAX_NUM_CPU_DEVICES": str(count)}}


def _stop_after(step):
    return f"--signal_at={step - 1}", f"--signal={signal.SIGTERM}"


# Adam divides a gradient by its own size, so rounding of a tiny one moves its parameter by up to
# the learning rate. Plain gradient descent does not amplify it.
SGD = "--config.optim.name=sgd", "--config.optim.learning_rate=0.01"


def test_on_other_devices_it_goes_on(drive, tmp_path):
    def go_on(workdir, devices, step=None):
        options = _stop_after(step) if step else ()
        code, out, err = finish(drive(workdir, *SGD, *options, **_devices(devices)))
        assert (code, err) == (0, "")
        manifest = json.loads((workdir / "manifest.json").read_text())
        assert len(manifest["devices"]) == devices
        return out

    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    go_on(stayed, 1, 25)
    shutil.copytree(stayed, moved)
    for workdir, devices in ((stayed, 1), (moved, 4)):
        assert "resuming from step 25 of 40" in go_on(workdir, devices, 27)
    # Compared right away: hard triplets and ReLUs amplify rounding from step to step.
    before, theirs, ours = leaves(stayed, 25), leaves(stayed, 27), leaves(moved, 27)
    different = 0
    for name in ours:
        # The change of two steps; a lost step would be half of it.
        change = np.abs(theirs[name] - before[name]).max()
        error = np.abs(ours[name] - theirs[name]).max()
        assert error <= 1e-2 * change + 1e-6, f"{name}: {error:.1e}, changed by {change:.1e}"
        different += error > 0
    assert different > 10  # sums in another order: it did run on four devices
    assert "resuming from step 27 of 40" in go_on(moved, 1)
    assert steps(moved)[-1] == STEPS
    assert [line["step"] for line in history(moved)] == [0, 10, 20, 20, 30, 40, 40]


REFUSED = {
    "data.identities_per_batch": (2, 4),
    "model.backbone": ("resnet18", "resnet8"),
    "model.pose_branches": (True, False),
}


def _refusal(workdir, name):
    given, stored = REFUSED[name]
    return (
        f"config.{name} = {given!r}: {workdir} holds a run with {stored!r}; use that value to go "
        "on with it, or another --workdir"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_another_batch_or_network_is_refused(undisturbed, name):
    values = synthetic_tiny.get_config()
    values.update_from_flattened_dict(NETWORK | {name: REFUSED[name][0]})
    with pytest.raises(ConfigError) as error:
        read_run(undisturbed, parse_config(values))
    assert str(error.value) == _refusal(undisturbed, name)


def test_a_refusal_is_one_line_and_changes_nothing(drive, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    code, _, err = finish(drive(undisturbed, "--config.model.backbone=resnet18"))
    assert (code, err) == (1, f"error: {_refusal(undisturbed, 'model.backbone')}\n")
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    folders = {undisturbed / "checkpoints", undisturbed / ".lock"}
    assert {p: t for p, t in after.items() if p not in folders} == {
        p: t for p, t in before.items() if p not in folders
    }


def test_a_nan_leaves_the_checkpoint_before_it(drive, undisturbed, tmp_path):
    code, _, err = finish(drive(tmp_path, "--nan=26"))
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: step 27: ")
    # XLA may turn NaN into 0 on CPUs, in a ReLU or a maximum: the losses can be finite.
    assert "gradient_norm" in err.partition(" not finite")[0]
    assert "the last checkpoint is intact" in err
    files = err.rstrip().split("the images of the batch: ")[1].split(", ")
    # A step uses 16 of the 128 names. The 26 steps before step 27 used 416: three rounds and 32.
    assert files == [f"train_{i}.jpg" for i in range(32, 48)]
    assert steps(tmp_path) == [0, 20]
    right = leaves(undisturbed, 20)
    for name, leaf in leaves(tmp_path, 20).items():
        np.testing.assert_array_equal(leaf, right[name], err_msg=name)
    # Without the NaN the same command goes on.
    code, out, err = finish(drive(tmp_path))
    assert (code, err) == (0, "") and "resuming from step 20" in out
    assert_same_end(tmp_path, undisturbed, STEPS)


def test_a_nan_is_not_saved_by_a_stop(drive, tmp_path):
    code, _, err = finish(drive(tmp_path, "--nan=26", "--signal_at=27", "--signal=15"))
    assert code == 1 and err.startswith("error: step 27: ")
    assert steps(tmp_path) == [0, 20]
