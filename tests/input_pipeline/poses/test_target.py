import numpy as np

from input_pipeline.poses.target import choose_target


def person(x, y, confidence=0.5):
    return np.tile(np.array([x, y, confidence], np.float32), (17, 1))


def test_the_nearest_to_the_centre():
    # A 60 × 40 image: its centre is (19.5, 29.5).
    people = np.stack([person(2, 5), person(24, 29), person(17, 31), person(39, 59)])
    assert choose_target(people, 60, 40) == 2


def test_scores_by_hand():
    # Half sizes 20 and 30. Joint at the centre: weight 1. Half a half-width aside: weight 1/2.
    centre, aside = [19.5, 29.5], [29.5, 29.5]
    first, second = np.zeros((2, 17, 3), np.float32)
    first[0] = [*centre, 0.5]  # 0.5
    second[:2] = [[*aside, 0.6], [*aside, 0.6]]  # 2 · 0.6 / 2 = 0.6
    assert choose_target(np.stack([first, second]), 60, 40) == 1
    second[:2, 2] = 0.45  # 0.45 < 0.5
    assert choose_target(np.stack([second, first]), 60, 40) == 1


def test_distance_is_measured_in_half_sizes():
    # 15 pixels down are half a half-height (weight 1/2), 15 across three quarters (weight 1/4).
    assert choose_target(np.stack([person(34.5, 29.5), person(19.5, 44.5)]), 60, 40) == 1


def test_doubtful_and_far_joints_do_not_count():
    doubtful, far = person(19.5, 29.5, 0.19), person(-200, -300, 1.0)
    seen = np.zeros((17, 3), np.float32)
    seen[3] = [15, 20, 0.2]
    assert choose_target(np.stack([doubtful, far, seen]), 60, 40) == 2


def test_the_first_of_equals():
    assert choose_target(np.stack([person(10, 10)] * 3), 60, 40) == 0
    assert choose_target(np.stack([person(-99, 0)] * 2), 60, 40) == 0
