import numpy as np

from input_pipeline import keypoints as kp
from pgfl_jax.models import branches


def test_flip_swaps_left_and_right_and_is_its_own_inverse():
    assert kp.NUM_JOINTS == 17
    np.testing.assert_array_equal(kp.FLIP[kp.FLIP], np.arange(17))
    np.testing.assert_array_equal(
        kp.FLIP, [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    )


def test_part_flip_swaps_the_sides():
    names = [part.name for part in kp.PARTS]
    swapped = [names[i] for i in kp.PART_FLIP]
    assert (*kp.PART_FLIP,) == branches.PART_FLIP
    trade = {"left": "right", "right": "left"}
    assert swapped == [" ".join(trade.get(word, word) for word in name.split()) for name in names]


def test_parts_are_in_the_documented_order():
    assert [part.name for part in kp.PARTS] == [
        "head",
        "torso",
        "left arm",
        "right arm",
        "left leg",
        "right leg",
        "left foot",
        "right foot",
    ]


def test_every_joint_belongs_to_a_part():
    assert {joint for part in kp.PARTS for joint in part.joints} == set(kp.JOINTS)


def test_right_parts_mirror_left_parts():
    for left, right in ((2, 3), (4, 5), (6, 7)):
        mirrored = tuple(kp.mirror_name(joint) for joint in kp.PARTS[left].joints)
        assert mirrored == kp.PARTS[right].joints
        limbs = tuple(tuple(kp.mirror_name(p) for p in limb) for limb in kp.PARTS[left].limbs)
        assert limbs == kp.PARTS[right].limbs


def test_segments_are_the_joints_and_the_limbs():
    left_leg = kp.PARTS[4]
    assert left_leg.segments == ((11, 11), (13, 13), (15, 15), (11, 13), (13, 15))
