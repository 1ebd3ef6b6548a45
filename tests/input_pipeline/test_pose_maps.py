import math

import numpy as np
import pytest

from input_pipeline import keypoints as kp
from input_pipeline.pose_maps import part_maps

IMAGE, CELLS, SIGMA, THRESHOLD = (32, 16), (8, 4), 0.1, 0.2


def draw(keypoints, image=IMAGE, cells=CELLS):
    maps, visibility = part_maps(
        np.asarray(keypoints, np.float32),
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


def reference(joints, image, cells):
    """One image's maps and visibility, cell by cell in float64 from names."""
    points = {name: tuple(map(float, joint)) for name, joint in zip(kp.JOINTS, joints, strict=True)}
    for name, (first, second, fraction) in kp.DERIVED_POINTS.items():
        (ax, ay, ac), (bx, by, bc) = points[first], points[second]
        points[name] = (ax + fraction * (bx - ax), ay + fraction * (by - ay), min(ac, bc))
    maps, visibility = np.zeros((*cells, 8)), np.zeros(8)
    for g, part in enumerate(kp.PARTS):
        for start, end in [*((joint, joint) for joint in part.joints), *part.limbs]:
            weight = min(points[start][2], points[end][2])
            if weight < THRESHOLD:
                continue
            visibility[g] = max(visibility[g], weight)
            for i, j in np.ndindex(*cells):
                centre = (
                    (j + 0.5) * image[1] / cells[1] - 0.5,
                    (i + 0.5) * image[0] / cells[0] - 0.5,
                )
                distance = segment_distance(centre, points[start][:2], points[end][:2])
                value = weight * math.exp(-(distance**2) / (2 * (SIGMA * image[0]) ** 2))
                maps[i, j, g] = max(maps[i, j, g], value)
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


@pytest.mark.parametrize("image, cells", [((32, 16), (8, 4)), ((64, 32), (5, 7))])
def test_maps_equal_a_reference_cell_by_cell(image, cells):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.2, 1.2, (6, 17, 3)) * [image[1], image[0], 1.0]
    keypoints[..., 2] = rng.uniform(0, 1, (6, 17)).round(1)
    keypoints[2, :, 2] = 1.0
    keypoints[3, :, :2] = keypoints[3, :1, :2]  # all joints in one point
    keypoints = keypoints.astype(np.float32)
    maps, visibility = draw(keypoints, image, cells)
    for b, joints in enumerate(keypoints):
        expected_maps, expected_visibility = reference(joints, image, cells)
        np.testing.assert_allclose(maps[b], expected_maps, atol=2e-6, rtol=2e-5)
        np.testing.assert_array_equal(visibility[b], expected_visibility.astype(np.float32))
    assert maps.min() >= 0 and maps.max() <= 1


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
