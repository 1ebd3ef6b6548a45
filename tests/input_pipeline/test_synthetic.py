"""The synthetic data set: pictures agree with their annotations, and are reproducible."""

import collections
import dataclasses
import hashlib
import itertools
import subprocess
import sys
from math import pi

import cv2
import numpy as np
import pytest

from input_pipeline.keypoints import JOINTS
from input_pipeline.synthetic import attributes, background, camera, occluder, plan, preview
from input_pipeline.synthetic.figure import draw_figure, pose_figure
from input_pipeline.synthetic.layer import SUPERSAMPLING, limb, new_layer
from input_pipeline.synthetic.layer import draw as draw_solid
from input_pipeline.synthetic.pool import Renderer, render_example
from input_pipeline.synthetic.render import HIDDEN_BELOW, annotate, perturb, render
from input_pipeline.synthetic.settings import (
    PRESETS,
    KeypointNoise,
    Preset,
    Stream,
    random_stream,
)
from input_pipeline.synthetic.skeleton import Gait, draw_gait

TINY = PRESETS["tiny"]
# Large enough to look at single joints, small enough to draw a hundred pictures in a second.
MEDIUM = dataclasses.replace(TINY, image_shape=(128, 64))
FACE, BODY = slice(0, 5), slice(5, 17)


@pytest.fixture(scope="module")
def rendered():
    """All pictures of the smallest data set's train and query splits, at 128x64."""
    shots = plan.plan_split(MEDIUM, "train") + plan.plan_split(MEDIUM, "query")
    return [(shot, render(MEDIUM, shot)) for shot in shots]


def decode(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


# --- who -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_any_two_people_differ_in_three_attributes(preset):
    count = preset.train_identities + preset.gallery_identities
    people = attributes.draw_people(preset.seed, count)
    rows = np.array([dataclasses.astuple(person.attributes) for person in people])
    for i in range(1, count):
        shown = (rows[:i] != attributes.NOTHING) & (rows[i] != attributes.NOTHING)
        assert ((rows[:i] != rows[i]) & shown).sum(axis=1).min() >= 3


def test_single_attributes_collide():
    people = attributes.draw_people(TINY.seed, 228)
    rows = np.array([dataclasses.astuple(person.attributes) for person in people])
    for column in rows.T:
        values, counts = np.unique(column, return_counts=True)
        assert 2 <= len(values) <= 9
        assert counts.min() >= 5


def test_second_color_differs_from_the_first():
    people = attributes.draw_people(3, 200)
    for person in people:
        outfit = person.attributes
        assert outfit.second_color != outfit.upper_color
        assert (outfit.second_color == attributes.NOTHING) == (outfit.pattern == 0)
        assert (outfit.bag_color == attributes.NOTHING) == (outfit.bag == 0)


# --- which pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_splits_have_the_promised_sizes(preset):
    splits = {name: plan.plan_split(preset, name) for name in plan.SPLITS}
    persons = {name: {shot.person for shot in shots} for name, shots in splits.items()}
    assert len(splits["train"]) == preset.train_images
    assert len(splits["query"]) == preset.query_images
    assert len(splits["query_holistic"]) == preset.query_holistic_images
    assert len(splits["gallery"]) == preset.gallery_images
    assert len(persons["train"]) == (preset.train_identities if preset.train_images else 0)
    assert len(persons["query"]) == preset.test_identities
    assert len(persons["gallery"]) == preset.gallery_identities
    assert not persons["train"] & (persons["query"] | persons["gallery"])
    assert persons["query"] <= persons["gallery"]
    assert persons["query_holistic"] <= persons["query"]


def test_the_validation_set_shares_cameras_with_the_demo_but_no_person_or_scene():
    demo, validation = PRESETS["demo"], PRESETS["demo_validation"]
    shots = {
        preset: [shot for name in plan.SPLITS for shot in plan.plan_split(preset, name)]
        for preset in (demo, validation)
    }
    assert (demo.seed, demo.scene, demo.cameras) == (
        validation.seed,
        validation.scene,
        validation.cameras,
    )
    for key in ("person", "index"):  # the index decides the scene
        first, second = ({getattr(shot, key) for shot in shots[one]} for one in shots)
        assert not first & second


def test_benchmark_is_as_large_as_occluded_duke():
    splits = {name: plan.plan_split(PRESETS["benchmark"], name) for name in plan.SPLITS}
    assert [len(splits[name]) for name in ("train", "query", "gallery")] == [15618, 2210, 17661]
    assert len({shot.person for shot in splits["train"]}) == 702
    assert len({shot.person for shot in splits["query"]}) == 519
    assert len({shot.person for shot in splits["gallery"]}) == 1110


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_query_has_a_match_under_another_camera(preset):
    seen = collections.defaultdict(set)
    for shot in plan.plan_split(preset, "gallery"):
        seen[shot.person].add(shot.camera)
    for split in ("query", "query_holistic"):
        for shot in plan.plan_split(preset, split):
            assert len(seen[shot.person] - {shot.camera}) >= 3


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_cameras_and_occlusions_are_as_planned(preset):
    share = {"train": 0.31, "query": 1.0, "query_holistic": 0.0, "gallery": 0.105}
    for split, expected in share.items():
        shots = plan.plan_split(preset, split)
        occluded = sum(shot.occluded for shot in shots)
        assert occluded == round(expected * len(shots))
        assert {shot.camera for shot in shots} == (set(range(6)) if shots else set())
    cameras = collections.defaultdict(set)
    for shot in plan.plan_split(preset, "train" if preset.train_images else "gallery"):
        cameras[shot.person].add(shot.camera)
    assert {len(seen) for seen in cameras.values()} == {4}


def test_filenames_are_unique_and_say_what_they_are():
    shots = [s for name in plan.SPLITS for s in plan.plan_split(PRESETS["benchmark"], name)]
    assert len({shot.filename for shot in shots}) == len(shots)
    for shot in shots[:: len(shots) // 50]:
        assert shot.filename.startswith(f"{shot.person:04d}_c{shot.camera + 1}_")
        assert shot.filename.endswith(".jpg")


# --- where the joints are ------------------------------------------------------------------------


def test_stored_coordinates_are_those_of_the_pixels():
    """A dot at a joint of the supersampled picture is found at the stored coordinates."""
    person = attributes.draw_people(0, 1)[0]
    gait = Gait(yaw=0.4, head_turn=0.0, phase=1.0, stride=0.4, elbow=0.3, raised=(0.0, 0.0))
    figure = pose_figure(person, gait, 8.0, 200.0, (60.3, 230.0))
    stored = annotate(figure, np.zeros((256, 128), bool), np.random.default_rng(0))
    neutral = camera.Camera((1.0, 1.0, 1.0), 1.0, 0.0, 0.8, 0.0, 100, 8.0, 0.0)
    white = np.full((3, 1, 1), 255, np.float32)
    for index in range(0, 17, 3):
        center = figure.points[JOINTS[index]][:2]
        layer = new_layer(256, 128)
        dot = limb(center, center + np.array([0.0, 1e-3]), (5.0, 5.0), lambda a, b: white, 0.0)
        draw_solid(layer, dot, 0.0)
        image = decode(camera.shoot(layer[:3], neutral, np.random.default_rng(0), 0.0))
        mass = np.maximum(image[..., 0].astype(float) - 20, 0)
        y, x = np.mgrid[:128, :64]
        found = np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()
        np.testing.assert_allclose(found, stored[index, :2], atol=0.12)


def test_visible_joints_lie_on_the_body(rendered):
    reach = np.ones((7, 7), np.uint8)  # a nose or an ear may stick out by a pixel
    for _, result in rendered:
        body = cv2.dilate(result.body.view(np.uint8), reach)
        at = np.rint((result.keypoints[:, :2] + 0.5) * SUPERSAMPLING - 0.5).astype(int)
        seen = result.keypoints[:, 2] > HIDDEN_BELOW
        assert body[at[seen, 1], at[seen, 0]].all()


def test_confidence_distinguishes_hidden_from_visible(rendered):
    height, width = MEDIUM.image_shape
    for shot, result in rendered:
        x, y, confidence = result.keypoints.T
        outside = (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)
        assert (confidence[outside] == 0).all()
        assert (confidence[~outside] > 0).all()
        column = np.clip(np.rint((x + 0.5) * SUPERSAMPLING - 0.5), 0, 2 * width - 1).astype(int)
        row = np.clip(np.rint((y + 0.5) * SUPERSAMPLING - 0.5), 0, 2 * height - 1).astype(int)
        hidden = result.hidden[row, column] & ~outside
        assert (confidence[hidden] < HIDDEN_BELOW).all()
        body = ~outside & ~hidden
        body[FACE] = False
        assert (confidence[body] >= 0.7).all()
        assert confidence.max() <= 1.0
        assert shot.occluded or not hidden.any()


@pytest.mark.parametrize(
    ("yaw", "seen"),
    [
        (0.0, (1, 1, 1, 1, 1)),  # towards the camera: nose, eyes, ears
        (pi, (0, 0, 0, 1, 1)),  # away: only the ears
        (pi / 2, (1, 0, 1, 0, 1)),  # to the right of the image: the right half of the face
        (-pi / 2, (1, 1, 0, 1, 0)),
    ],
)
def test_a_face_turned_away_is_hidden(yaw, seen):
    person = attributes.draw_people(0, 1)[0]
    gait = Gait(yaw, 0.0, phase=0.0, stride=0.05, elbow=0.2, raised=(0.0, 0.0))
    figure = pose_figure(person, gait, 5.0, 200.0, (64.0, 240.0))
    confidence = annotate(figure, np.zeros((256, 128), bool), np.random.default_rng(0))[FACE, 2]
    assert tuple((confidence > HIDDEN_BELOW).astype(int)) == seen


def test_left_is_the_persons_left():
    person = attributes.draw_people(0, 1)[0]
    left, right = (JOINTS.index(f"{side}_shoulder") for side in ("left", "right"))
    for yaw, sign in ((0.0, 1), (pi, -1)):
        gait = Gait(yaw, 0.0, phase=0.0, stride=0.3, elbow=0.2, raised=(0.0, 0.0))
        figure = pose_figure(person, gait, 5.0, 100.0, (32.0, 120.0))
        joints = annotate(figure, np.zeros((128, 64), bool), np.random.default_rng(0))
        assert sign * (joints[left, 0] - joints[right, 0]) > 5


def test_bodies_are_built_like_people():
    """Feet on the ground, head on top, legs about half the height, at any moment of the walk."""
    person = attributes.draw_people(0, 1)[0]
    for seed in range(50):
        gait = draw_gait(np.random.default_rng(seed))
        points = pose_figure(person, gait, 0.0, 1.0, (0.0, 0.0)).points
        assert -0.96 < points["head"][1] < -0.83
        assert -0.56 < points["pelvis"][1] < -0.44
        soles = [points[f"{s}_{end}"][1] for s in ("left", "right") for end in ("heel", "toe")]
        assert max(soles) == pytest.approx(0.0, abs=1e-9)
        assert points["left_knee"][1] < points["left_ankle"][1]


# --- what hides them -----------------------------------------------------------------------------


def test_stored_occlusion_is_the_hidden_share_of_the_body(rendered):
    for shot, result in rendered:
        share = (result.body & result.hidden).sum() / result.body.sum()
        assert result.occlusion == pytest.approx(share, abs=1e-9)
        if shot.occluded:
            assert 0.2 <= result.occlusion <= 0.6
        else:
            assert result.occlusion == 0.0


@pytest.mark.parametrize("kind", occluder.KINDS)
def test_every_kind_of_occluder_hides_what_it_should(kind):
    scene = dataclasses.replace(
        TINY.scene, **{f"{other}_weight": float(other == kind) for other in occluder.KINDS}
    )
    body = np.zeros((256, 128), bool)
    body[40:240, 45:85] = True
    target = occluder.Target(body, ground=240.0, height=205.0, pitch=8.0, light=0.3)
    shares = []
    for seed in range(12):
        layer = occluder.draw_occluder(target, scene, np.random.default_rng(seed))
        assert layer.shape == (4, 256, 128)
        assert (layer[3] >= 0).all() and (layer[3] <= 1.0 + 1e-6).all()
        shares.append((body & (layer[3] > 0.5)).sum() / body.sum())
    assert min(shares) >= 0.2 and max(shares) <= 0.6
    assert max(shares) - min(shares) > 0.1


def test_a_barely_visible_person_can_still_be_hidden():
    body = np.zeros((64, 32), bool)
    body[0:3, 0:14] = True
    target = occluder.Target(body, ground=400.0, height=60.0, pitch=8.0, light=0.0)
    layer = occluder.draw_occluder(target, TINY.scene, np.random.default_rng(0))
    assert 0.2 <= (body & (layer[3] > 0.5)).sum() / body.sum() <= 0.6


# --- how the box is drawn ------------------------------------------------------------------------


def test_boxes_are_those_of_a_poor_detector(rendered):
    """People are off-centre and at many scales; some are cut off, most are almost whole."""
    joints = np.stack([result.keypoints for _, result in rendered])
    width = MEDIUM.image_shape[1]
    offset = joints[:, BODY, 0].mean(axis=1) / (width - 1) - 0.5
    # Uniform within ± shift_x, plus the sway of the walk.
    uniform = MEDIUM.scene.shift_x / np.sqrt(3)
    assert 0.9 * uniform < offset.std() < 2 * uniform
    tall = np.ptp(joints[..., 1], axis=1) / MEDIUM.image_shape[0]
    # From the nose to the ankle it is about 0.85 of a person's height.
    low, high = MEDIUM.scene.person_height
    assert tall.min() < 0.85 * (low + 0.1) and tall.max() > 0.85 * (high - 0.1)
    cut = (joints[..., 2] == 0).any(axis=1).mean()
    assert 0.1 < cut < 0.6
    assert ((joints[..., 2] == 0).mean(axis=1) < 0.5).mean() > 0.95


def test_pictures_fill_the_range_and_cameras_differ(rendered):
    colors = collections.defaultdict(list)
    for shot, result in rendered:
        image = decode(result.jpeg)
        assert image.shape == (*MEDIUM.image_shape, 3)
        assert image.std() > 10
        colors[shot.camera].append(image.mean(axis=(0, 1)))
    means = np.stack([np.mean(colors[index], axis=0) for index in range(6)])
    for one, other in itertools.combinations(means, 2):
        assert np.abs(one - other).max() > 4


def test_cameras_keep_to_their_ranges():
    scene = TINY.scene
    eyes = camera.cameras(TINY)
    assert len(eyes) == 6
    for eye in eyes:
        assert all(scene.channel_gain[0] <= gain <= scene.channel_gain[1] for gain in eye.gain)
        for name in ("contrast", "brightness", "blur", "noise", "jpeg_quality", "pitch"):
            low, high = getattr(scene, name)
            assert low <= getattr(eye, name) <= high


def test_backgrounds_are_large_and_each_its_own():
    places = [background.canvas(TINY, index) for index in range(6)]
    assert {place.shape for place in places} == {(128, 14 * 32, 3)}
    for one, other in itertools.combinations(places, 2):
        assert np.abs(one.astype(int) - other).mean() > 10


# --- how an estimator would see them -------------------------------------------------------------


def test_keypoint_noise_has_the_promised_statistics():
    rng = np.random.default_rng(0)
    truth = np.zeros((17, 3), np.float32)
    truth[:, :2], truth[:, 2] = 50.0, 0.9
    truth[:5, 2] = 0.1
    noise = KeypointNoise(std=0.02, joint_dropout=0.1, hallucination=0.25, pose_dropout=0.05)
    seen = np.stack([perturb(truth, noise, 100.0, rng) for _ in range(4000)])
    missing = (seen == 0).all(axis=(1, 2))
    assert missing.mean() == pytest.approx(0.05, abs=0.012)
    kept = seen[~missing]
    assert (kept[..., :2] - 50.0).std() == pytest.approx(2.0, rel=0.03)
    assert (kept[..., 2] == 0).mean() == pytest.approx(0.1, abs=0.01)
    believed = kept[:, :5, 2] > HIDDEN_BELOW
    assert believed.mean() == pytest.approx(0.25 * 0.9, abs=0.015)
    assert (truth[:, :2] == 50.0).all()


def test_noise_changes_the_pose_and_nothing_else():
    noisy = dataclasses.replace(TINY, noise=KeypointNoise(std=0.05, joint_dropout=0.2))
    for shot in plan.plan_split(TINY, "query")[:4]:
        exact, perturbed = render(TINY, shot), render(noisy, shot)
        assert exact.jpeg == perturbed.jpeg
        assert exact.occlusion == perturbed.occlusion
        assert np.abs(exact.keypoints - perturbed.keypoints).max() > 0.5
        assert np.array_equal(perturbed.keypoints, render(noisy, shot).keypoints)
    assert noisy.fingerprint() != TINY.fingerprint()


# --- always the same -----------------------------------------------------------------------------


def digest(example: dict) -> str:
    parts = (example["image"], example["keypoints"].tobytes(), repr(example["occlusion"]).encode())
    return hashlib.sha256(b"".join(parts) + example["filename"].encode()).hexdigest()


def test_two_processes_draw_what_one_draws():
    with Renderer(TINY, processes=1) as alone, Renderer(TINY, processes=2) as pair:
        assert [*map(digest, alone.split("query"))] == [*map(digest, pair.split("query"))]


def test_a_picture_does_not_depend_on_those_before_it():
    shots = plan.plan_split(TINY, "gallery")[:6]
    forward = [digest(render_example(TINY, shot)) for shot in shots]
    for cached in (background.canvas, camera.cameras):
        cached.cache_clear()
    backward = [digest(render_example(TINY, shot)) for shot in reversed(shots)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(forward)


def test_the_seed_and_the_scene_change_the_data_set():
    shot = plan.plan_split(TINY, "train")[0]
    reseeded = dataclasses.replace(TINY, seed=8)
    closer = dataclasses.replace(TINY, scene=dataclasses.replace(TINY.scene, shift_x=0.1))
    for other in (reseeded, closer):
        assert other.fingerprint() != TINY.fingerprint()
        assert render(other, shot).jpeg != render(TINY, shot).jpeg
    assert PRESETS["tiny"].fingerprint() == Preset(**vars(TINY)).fingerprint()


def test_streams_are_independent_of_one_another():
    draws = [random_stream(7, stream, 3, 4).random() for stream in Stream]
    assert len(set(draws)) == len(Stream)


def test_rendering_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from input_pipeline.synthetic import plan, pool, settings\n"
        "preset = settings.PRESETS['tiny']\n"
        "pool.render_example(preset, plan.plan_split(preset, 'query')[0])\n"
        "assert not any(name.startswith('tensorflow_datasets') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- to look at ----------------------------------------------------------------------------------


def test_figures_have_shading_and_a_soft_edge():
    layer = new_layer(256, 128)
    person = attributes.draw_people(0, 1)[0]
    draw_figure(
        layer, pose_figure(person, draw_gait(np.random.default_rng(1)), 8.0, 220.0, (64, 240)), 0.5
    )
    alpha = layer[3]
    assert 0.12 < (alpha > 0.5).mean() < 0.35
    assert ((alpha > 0.02) & (alpha < 0.98)).sum() > 150
    assert len(np.unique(np.rint(layer[:3, alpha > 0.98]).astype(int), axis=1).T) > 300


def test_contact_sheet_shows_people_in_rows(tmp_path):
    path = tmp_path / "sheet.png"
    preview.save_contact_sheet(str(path), TINY, "query", people=3, images=2)
    sheet = cv2.imread(str(path))
    assert sheet.shape == (3 * (192 + 16), 2 * (3 * 96 + 4), 3)
    with pytest.raises(OSError, match="cannot write the contact sheet"):
        preview.save_contact_sheet(str(tmp_path / "no" / "sheet.png"), TINY, "query", 1, 1)
