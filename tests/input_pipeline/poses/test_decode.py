import numpy as np
import pytest

from input_pipeline.poses.decode import decode_heatmaps, decode_simcc


def centres(height, width, margin=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(margin, np.array([width, height]) - 1 - margin, (17, 2))


@pytest.mark.parametrize("sigma", [0.9, 2.0, 3.3])
def test_gaussian_centres_are_exact(gaussians, sigma):
    found = centres(64, 48)
    maps = gaussians(found, 64, 48, sigma=sigma)
    positions, confidence = decode_heatmaps(maps, (64, 48))
    np.testing.assert_allclose(positions[0], found, atol=2e-4)
    # The maximum is at most half a cell off on each axis.
    offset = found - np.rint(found)
    np.testing.assert_allclose(
        confidence[0], np.exp(-(offset**2).sum(axis=1) / (2 * sigma**2)), rtol=1e-5
    )


def test_the_two_conventions(gaussians):
    found = centres(16, 12)
    maps = gaussians(found, 16, 12)
    # 16 × 12 cells over 64 × 48 pixels: every fourth pixel, or the corners upon the corners.
    np.testing.assert_allclose(decode_heatmaps(maps, (64, 48))[0][0], found * 4, atol=2e-3)
    udp = decode_heatmaps(maps, (64, 48), udp=True)[0][0]
    np.testing.assert_allclose(udp, found * [47 / 11, 63 / 15], atol=2e-3)


def test_every_image_and_joint_is_decoded_independently(gaussians):
    parts = [centres(20, 10, seed=seed) for seed in range(3)]
    maps = np.concatenate([gaussians(one, 20, 10) for one in parts])
    np.testing.assert_allclose(decode_heatmaps(maps, (20, 10))[0], parts, atol=5e-4)


def test_a_vertex_by_hand():
    maps = np.zeros((1, 1, 3, 5), np.float32)
    # Along x: 1/4, 1, 1/2. With a = ln 4 and b = ln 2 = a / 2 below the peak, the vertex is at
    # (a - b) / (2 (a + b)) = (1/2) / 3 = 1/6. Along y the neighbours are 0: the cell itself.
    maps[0, 0, 1, 1:4] = 0.25, 1.0, 0.5
    positions, confidence = decode_heatmaps(maps, (3, 5))
    np.testing.assert_allclose(positions[0, 0], [2 + 1 / 6, 1], rtol=1e-6)
    assert confidence[0, 0] == 1


def test_borders_plateaus_and_odd_values():
    maps = np.zeros((1, 5, 4, 4), np.float32)
    maps[0, 0, 3, 0] = 0.7  # a corner
    maps[0, 1] = 0.3  # no peak at all
    maps[0, 2] = -1  # nothing positive
    maps[0, 3, 1, 1:3] = 2.5  # above 1, two equal cells
    maps[0, 4] = 0.01
    maps[0, 4, 1, 2] = 0.9
    positions, confidence = decode_heatmaps(maps, (4, 4))
    assert positions[0, 0].tolist() == [0, 3] and positions[0, 1].tolist() == [0, 0]
    assert np.isfinite(positions).all() and positions[0, 4].tolist() == [2, 1]
    np.testing.assert_allclose(confidence[0], [0.7, 0.3, 0, 1, 0.9], rtol=1e-6)


def test_simcc_bins_and_the_smaller_maximum():
    x, y = np.full((2, 17, 96), -0.5, np.float32), np.full((2, 17, 128), -0.5, np.float32)
    joint = np.arange(17)
    x[0, joint, 3 + 5 * joint] = 0.9
    y[0, joint, 7 + 2 * joint] = 0.05 * (joint + 2)
    positions, confidence = decode_simcc(x, y, (64, 48))
    np.testing.assert_array_equal(positions[0, :, 0], (3 + 5 * joint) / 2)
    np.testing.assert_array_equal(positions[0, :, 1], (7 + 2 * joint) / 2)
    np.testing.assert_allclose(confidence[0], np.minimum(0.9, 0.05 * (joint + 2)), rtol=1e-6)
    assert not confidence[1].any()
