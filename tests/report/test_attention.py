"""The energy figures, against numbers made by hand."""

import numpy as np
import pytest

from pgfl_jax.report.attention import (
    by_occlusion,
    energy_shares,
    overall,
    pooled_energy,
    share_on,
)

# Two images of 1 x 3 cells with two groups: the energy of each group at each cell.
ENERGY = np.array(
    [
        [[[1.0, 0.0], [3.0, 5.0], [4.0, 5.0]]],
        [[[2.0, 2.0], [2.0, 2.0], [0.0, 4.0]]],
    ]
)
# The first part is at the first two cells (fully, half), the second at the last.
MAPS = np.array([[[[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]]]] * 2)


def test_shares_by_hand():
    shares = energy_shares(ENERGY, MAPS, np.ones((2, 2)))
    # Group 0 of image 0: (1·1 + 0.5·3) / 8; group 1: 5 / 10.
    np.testing.assert_allclose(shares.parts[0], [2.5 / 8, 0.5], rtol=1e-15)
    np.testing.assert_allclose(shares.parts[1], [3 / 4, 0.5], rtol=1e-15)
    # The foreground is 1, 0.5, 1 at the cells, whose energies are 1, 8, 9 and 4, 4, 4.
    np.testing.assert_allclose(shares.foreground, [(1 + 4 + 9) / 18, 10 / 12], rtol=1e-15)
    np.testing.assert_allclose(shares.even_foreground, [2.5 / 3] * 2, rtol=1e-15)
    np.testing.assert_allclose(shares.even_parts, [[1.5 / 3, 1 / 3]] * 2, rtol=1e-15)
    assert shares.parts.dtype == shares.foreground.dtype == np.float64


def test_predicted_maps_weight_the_energy():
    own = np.array([[[[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]]]] * 2)
    weighted = pooled_energy(ENERGY, own)
    assert weighted[0, 0].tolist() == [[1, 0], [0, 5], [2, 0]]
    # All of group 1 is now at the middle cell, where its part is not.
    shares = energy_shares(weighted, MAPS, np.ones((2, 2)))
    np.testing.assert_allclose(shares.parts[0], [1 / 3, 0], rtol=1e-15)
    np.testing.assert_allclose(shares.foreground[0], (1 + 0.5 * 5 + 2) / 8, rtol=1e-15)
    # One map for all groups.
    assert pooled_energy(ENERGY, np.full((2, 1, 3, 1), 0.5)).tolist() == (ENERGY / 2).tolist()
    assert pooled_energy(ENERGY, None).tolist() == ENERGY.tolist()


def test_hidden_parts_and_missing_poses_have_no_share():
    visibility = np.array([[1.0, 0.0], [0.0, 0.0]])
    maps = MAPS * visibility[:, None, None]
    shares = energy_shares(ENERGY, maps, visibility)
    np.testing.assert_allclose(shares.parts, [[2.5 / 8, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(shares.foreground, [(1 + 4) / 18, np.nan])
    means = overall(shares)
    assert means.queries == 1 and means.parts == 2.5 / 8
    assert np.isnan(share_on(np.zeros((1, 2, 2)), np.ones((1, 2, 2)))).all()


def test_bins_of_occlusion():
    shares = energy_shares(ENERGY, MAPS, np.array([[1.0, 1.0], [1.0, 0.0]]))
    low, high = by_occlusion(shares, np.array([0.1, 0.5]), (0.0, 0.2, 0.4, 0.5))
    assert (low.low, low.high, low.queries) == (0.0, 0.2, 1)
    assert low.parts == pytest.approx((2.5 / 8 + 0.5) / 2, rel=1e-15)
    # 0.5 is in the last bin, which is closed; the hidden part does not count.
    assert (high.low, high.high, high.queries) == (0.4, 0.5, 1)
    assert high.parts == pytest.approx(0.75, rel=1e-15)
    assert high.even_parts == pytest.approx(0.5, rel=1e-15)
    assert [*by_occlusion(shares, np.full(2, np.nan), (0.0, 1.0))] == []
