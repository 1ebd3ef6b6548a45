import math

import numpy as np
import pytest

from input_pipeline import keypoints as kp
from input_pipeline.pose_maps import part_maps

IMAGE, CELLS, SIGMA, THRESHOLD = (32, 16), (8, 4), 0.1, 0.2


def draw(keypoints, image=IMAGE, cells=CELLS, window=None, erased=None):
    rectangles = (None if values is None else np.int32(values) for values in (window, erased))
    maps, visibility = part_maps(
        np.asarray(keypoints, np.float32),
        *rectangles,
        image_shape=image,
        map_shape=cells,
        sigma=SIGMA,
        threshold=THRESHOLD,
    )
    return maps.numpy(), visibility.numpy()


def pose(**joints):
    """A pose (1, 17, 3) with only the given joints."""
    keypoints = np.zeros((1, 17, 3), np.float32)
    for name, joint in joints.items():
        keypoints[0, kp.JOINTS.index(name)] = joint
    return keypoints


def segment_distance(point, start, end):
    """Distance from a point to a segment, by its definition."""
    (px, py), (ax, ay), (bx, by) = point, start, end
    squared = (bx - ax) ** 2 + (by - ay) ** 2
    t = 0.0 if squared == 0 else ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / squared
    t = min(max(t, 0.0), 1.0)
    return math.hypot(px - ax - t * (bx - ax), py - ay - t * (by - ay))


def inside(point, rectangle):
    """Whether a point is in a rectangle of pixels top, left, bottom, right."""
    top, left, bottom, right = rectangle
    return left - 0.5 <= point[0] <= right - 0.5 and top - 0.5 <= point[1] <= bottom - 0.5


def clip(start, end, window):
    """The ends of what a segment has in a rectangle, by sampling and bisection; None: nothing."""

    def at(t):
        return tuple(a + t * (b - a) for a, b in zip(start, end, strict=True))

    within = [t for t in np.linspace(0, 1, 501) if inside(at(t), window)]
    if not within:
        return None
    ends = []
    for seen, bound in ((within[0], 0.0), (within[-1], 1.0)):
        for _ in range(40):
            middle = (seen + bound) / 2
            seen, bound = (middle, bound) if inside(at(middle), window) else (seen, middle)
        ends.append(at(bound if inside(at(bound), window) else seen))
    return ends


def reference(joints, image, cells, window=None, erased=(0, 0, 0, 0)):
    """One image's maps and visibility, cell by cell in float64 from names."""
    points = {name: tuple(map(float, joint)) for name, joint in zip(kp.JOINTS, joints, strict=True)}
    for name, (first, second, fraction) in kp.DERIVED_POINTS.items():
        (ax, ay, ac), (bx, by, bc) = points[first], points[second]
        points[name] = (ax + fraction * (bx - ax), ay + fraction * (by - ay), min(ac, bc))
    height, width = image[0] / cells[0], image[1] / cells[1]
    centres = {
        (i, j): ((j + 0.5) * width - 0.5, (i + 0.5) * height - 0.5) for i, j in np.ndindex(*cells)
    }
    left = {
        cell: (x, y)
        for cell, (x, y) in centres.items()
        if not (erased[0] <= y + 0.5 < erased[2] and erased[1] <= x + 0.5 < erased[3])
    }
    maps, visibility = np.zeros((*cells, 8)), np.zeros(8)
    for g, part in enumerate(kp.PARTS):
        for start, end in [*((joint, joint) for joint in part.joints), *part.limbs]:
            weight = min(points[start][2], points[end][2])
            ends = clip(points[start][:2], points[end][:2], window or (0, 0, *image))
            if weight < THRESHOLD or ends is None:
                continue
            distances = {cell: segment_distance(centre, *ends) for cell, centre in left.items()}
            if min(distances.values()) > math.hypot(height, width) / 2:
                continue
            visibility[g] = max(visibility[g], weight)
            for cell, distance in distances.items():
                value = weight * math.exp(-(distance**2) / (2 * (SIGMA * image[0]) ** 2))
                maps[(*cell, g)] = max(maps[(*cell, g)], value)
    return maps, visibility


def test_a_spot_has_the_value_of_its_distance():
    # Cells of 4x4 pixels: cell (1, 2) has its centre at x = 9.5, y = 5.5; s = 3.2 pixels.
    maps, visibility = draw(pose(left_wrist=(9.5, 5.5, 1.0)))
    assert maps.shape == (1, 8, 4, 8)
    arm = maps[0, :, :, 2]
    assert arm[1, 2] == pytest.approx(1.0)
    assert arm[1, 3] == pytest.approx(math.exp(-16 / (2 * 3.2**2)))
    assert arm[3, 1] == pytest.approx(math.exp(-(64 + 16) / (2 * 3.2**2)))
    np.testing.assert_array_equal(visibility[0], [0, 0, 1, 0, 0, 0, 0, 0])
    assert not maps[0, :, :, [0, 1, 3, 4, 5, 6, 7]].any()


def test_a_limb_is_a_capsule():
    # An upright shin at x = 5.5 from y = 9.5 to 21.5: beside it only x counts, beyond it both.
    maps, _ = draw(pose(left_knee=(5.5, 9.5, 1.0), left_ankle=(5.5, 21.5, 1.0)))
    leg = maps[0, :, :, 4]
    np.testing.assert_allclose(leg[2:6, 1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(leg[2:6, 2], math.exp(-16 / (2 * 3.2**2)), rtol=1e-5)
    assert leg[1, 2] == pytest.approx(math.exp(-32 / (2 * 3.2**2)))


def test_a_foot_reaches_below_the_ankle():
    maps, visibility = draw(pose(left_knee=(5.5, 9.5, 1.0), left_ankle=(5.5, 21.5, 1.0)))
    foot = maps[0, :, :, 6]
    assert foot[5, 1] == pytest.approx(1.0)  # centre y = 21.5: the ankle
    assert foot[6, 1] == pytest.approx(math.exp(-1 / (2 * 3.2**2)))  # 25.5; the sole is at 24.5
    assert visibility[0, 6] == 1.0


@pytest.mark.parametrize(
    ("image", "cells", "window", "erased"),
    [
        ((32, 16), (8, 4), None, None),
        ((64, 32), (5, 7), None, None),
        ((32, 16), (8, 4), (3, 0, 32, 11), None),
        ((32, 16), (8, 4), None, (8, 3, 21, 13)),
        ((32, 16), (16, 8), (0, 5, 28, 16), (6, 0, 15, 16)),
    ],
)
def test_maps_equal_a_reference_cell_by_cell(image, cells, window, erased):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.2, 1.2, (6, 17, 3)) * [image[1], image[0], 1.0]
    keypoints[..., 2] = rng.uniform(0, 1, (6, 17)).round(1)
    keypoints[2, :, 2] = 1.0
    keypoints[3, :, :2] = keypoints[3, :1, :2]  # all joints in one point
    keypoints = keypoints.astype(np.float32)
    each = [None if values is None else [values] * 6 for values in (window, erased)]
    maps, visibility = draw(keypoints, image, cells, *each)
    for b, joints in enumerate(keypoints):
        expected_maps, expected_visibility = reference(
            joints, image, cells, window, erased or (0, 0, 0, 0)
        )
        np.testing.assert_allclose(maps[b], expected_maps, atol=2e-6, rtol=2e-5)
        np.testing.assert_array_equal(visibility[b], expected_visibility.astype(np.float32))
    assert maps.min() >= 0 and maps.max() <= 1


def test_a_limb_across_the_erased_box_is_not_drawn_there():
    # An upright shin through three columns of cells, of which the box takes rows 2 to 5.
    shin = pose(left_knee=(5.5, 1.5, 1.0), left_ankle=(5.5, 29.5, 1.0))
    maps, visibility = draw(shin, erased=[(8, 0, 24, 16)])
    leg = maps[0, :, :, 4]
    assert not leg[2:6].any()
    np.testing.assert_allclose(leg[[0, 1, 6, 7], 1], 1.0, rtol=1e-6)
    assert visibility[0, 4] == 1.0  # above and below the box it can be seen


def test_a_part_wholly_under_the_erased_box_is_invisible():
    wrist = pose(left_wrist=(9.5, 13.5, 1.0), right_wrist=(9.5, 29.5, 1.0))
    maps, visibility = draw(wrist, erased=[(0, 0, 24, 16)])
    np.testing.assert_array_equal(visibility[0], [0, 0, 0, 1, 0, 0, 0, 0])
    assert not maps[..., 2].any() and maps[0, 7, 2, 3] == pytest.approx(1.0)


def test_a_limb_is_cut_off_at_the_border():
    # The ankle is 20 pixels below the picture, the knee in it: what is seen of the shin stays.
    shin = pose(left_knee=(5.5, 9.5, 1.0), left_ankle=(5.5, 51.5, 0.8))
    maps, visibility = draw(shin)
    np.testing.assert_allclose(maps[0, 3:, 1, 4], 0.8, rtol=1e-6)
    np.testing.assert_allclose(visibility[0, [4, 6]], [1.0, 0.0])  # a spot at the knee; no foot
    # With the picture's border at row 20, the cells below are as far from it as their centres.
    maps, _ = draw(shin, window=[(0, 0, 20, 16)])
    below = 0.8 * np.exp(-(np.array([2.0, 6.0, 10.0]) ** 2) / (2 * 3.2**2))
    np.testing.assert_allclose(maps[0, 5:, 1, 4], below, rtol=1e-5)


def test_weights_and_visibility_follow_the_confidence():
    # Only the ankle reaches 0.6; the limb has its weaker end's weight; under 0.2 nothing draws.
    strong = pose(right_knee=(8, 10, 0.3), right_ankle=(8, 20, 0.6))
    weak = pose(right_knee=(8, 10, 0.19), right_ankle=(8, 20, 0.6))
    none = pose(right_knee=(8, 10, 0.19), right_ankle=(8, 20, 0.1))
    maps, visibility = draw(np.concatenate([strong, weak, none]), cells=(32, 16))
    np.testing.assert_allclose(visibility[:, 5], [0.6, 0.6, 0.0])
    assert maps[0, 10, 8, 5] == pytest.approx(0.3, rel=1e-3)
    assert maps[1, 10, 8, 5] == pytest.approx(0.6 * math.exp(-100 / (2 * 3.2**2)))
    assert not maps[2].any()


def test_confidence_at_the_threshold_draws():
    _, visibility = draw(pose(nose=(8, 8, THRESHOLD)))
    assert visibility[0, 0] == pytest.approx(THRESHOLD)


def test_no_pose_draws_nothing():
    maps, visibility = draw(np.zeros((3, 17, 3)))
    assert maps.shape == (3, 8, 4, 8) and not maps.any()
    assert visibility.shape == (3, 8) and not visibility.any()
