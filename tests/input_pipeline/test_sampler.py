import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.sampler import identity_batches


def split(num_identities, seed=0, max_images=9, num_cameras=5):
    """Identities (named with gaps) and cameras of a random split; one to ``max_images`` each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, max_images + 1, num_identities)
    identities = np.repeat(np.arange(num_identities) * 7 + 3, counts)
    order = rng.permutation(len(identities))
    return identities[order], rng.integers(0, num_cameras, len(identities))


def take(data, steps, *, p=4, k=4, seed=1, start_step=0):
    batches = identity_batches(
        *data, identities_per_batch=p, images_per_identity=k, seed=seed, start_step=start_step
    )
    return np.array(list(itertools.islice(batches, steps)))


# n = 11 is neither a multiple of 4 nor far above 2·4 - 1; 7 is exactly that; 12 and 4 divide.
SIZES = (7, 8, 9, 10, 11, 12, 4, 50)


def test_a_batch_is_a_function_of_seed_and_step():
    data = split(11)
    straight = take(data, 40)
    for start in (1, 2, 3, 7, 22):
        np.testing.assert_array_equal(
            take(data, 10, start_step=start), straight[start : start + 10]
        )
    np.testing.assert_array_equal(take(data, 40), straight)
    assert (take(data, 40, seed=2) != straight).any()


def test_a_late_step_does_not_replay_the_early_ones():
    assert take(split(11), 2, start_step=10**9).shape == (2, 16)


@pytest.mark.parametrize("count", SIZES)
def test_every_identity_is_visited_once_per_epoch(count):
    data, epochs = split(count), 24
    batches = take(data, count * epochs // 4)
    assert batches.shape == (count * epochs // 4, 16) and batches.dtype == np.int64
    visits = data[0][batches].reshape(-1, 4)
    assert (visits == visits[:, :1]).all()  # the K images of a row show one identity
    by_epoch = visits[:, 0].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(by_epoch), np.tile(np.unique(data[0]), (epochs, 1)))
    assert len(np.unique(by_epoch, axis=0)) > epochs // 2  # orders differ


@pytest.mark.parametrize("count", SIZES)
def test_no_batch_holds_an_identity_twice(count):
    data = split(count)
    identities = data[0][take(data, 300)][:, ::4]
    assert all(len(set(row)) == 4 for row in identities)


def test_images_come_from_as_many_cameras_as_possible():
    identities, cameras = data = split(20, max_images=12)
    for row in take(data, 100).reshape(-1, 4):
        own = np.flatnonzero(identities == identities[row[0]])
        assert len(set(row)) == min(4, len(own))  # images repeat only where there are too few
        seen, available = cameras[row], cameras[own]
        assert len(set(seen)) == min(4, len(set(available)))
        # No camera contributes a second image while the first of another camera is unused.
        chosen = {c: len(set(row[seen == c])) for c in set(available)}
        for camera, other in itertools.permutations(chosen, 2):
            unused = (available == other).sum() > chosen[other]
            assert chosen[camera] <= chosen[other] + 1 or not unused


def test_too_few_images_repeat_evenly():
    data = np.array([5, 5, 6, 6, 6, 9]), np.array([0, 1, 0, 0, 1, 0])
    for row in take(data, 30, p=3, k=7).reshape(-1, 7):
        counts = np.unique(row, return_counts=True)[1]
        assert len(counts) == (data[0] == data[0][row[0]]).sum()
        assert counts.max() - counts.min() <= 1


def test_every_image_and_camera_gets_its_turn():
    identities = np.repeat(np.arange(4), 10)
    cameras = np.tile([0, 0, 0, 0, 0, 0, 1, 2, 3, 4], 4)
    batches = take((identities, cameras), 500, k=2)
    counts = np.bincount(batches.ravel(), minlength=40).reshape(4, 10)
    assert counts.min() > 0
    # Two of five cameras each time, equally often: 400 of 1000 draws each. Camera 0 has six images.
    np.testing.assert_allclose(counts[:, 6:] / 500, 0.4, atol=0.08)
    np.testing.assert_allclose(counts[:, :6].sum(axis=1) / 500, 0.4, atol=0.08)


@pytest.mark.parametrize(
    "count, size, remedy",
    [
        (1, 1, "at least 2"),
        (0, 4, "at least 2"),
        (3, 4, "only 3 identities; take at most 2, or 3$"),
        (2, 4, "only 2 identities; take 2$"),
        (6, 4, "take at most 3, or 6$"),
    ],
)
def test_impossible_batches_name_the_option(count, size, remedy):
    identities = np.arange(count)
    with pytest.raises(DataError, match=f"data.identities_per_batch = {size}.*{remedy}"):
        identity_batches(
            identities, identities, identities_per_batch=size, images_per_identity=2, seed=0
        )


def test_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['jax'] = None\n"
        "import input_pipeline.sampler, input_pipeline.keypoints"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
