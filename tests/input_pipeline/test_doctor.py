import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl.testing.flagsaver import flagsaver

import main
from input_pipeline import builders, copies, validation
from input_pipeline.catalog import Catalog
from input_pipeline.doctor import diagnosis, duplicates
from input_pipeline.doctor.__main__ import default_page, examine
from input_pipeline.doctor.choice import choose_matches, choose_samples
from input_pipeline.doctor.colours import colour_histogram, suspects
from input_pipeline.doctor.diagnosis import Diagnosis
from input_pipeline.doctor.html import format_page
from input_pipeline.doctor.loading import decode_all
from input_pipeline.doctor.pictures import draw_picture, draw_sample
from input_pipeline.doctor.statistics import Dataset, Listing, Protocol, Split, Survey
from input_pipeline.doctor.text import format_text, protocol_table, split_facts, split_table
from input_pipeline.encoded_images import image_size
from input_pipeline.errors import DataError
from input_pipeline.from_config import evaluation_data, training_data
from input_pipeline.poses.cache import PoseCache, write_poses
from input_pipeline.validation import Findings

ROOT = Path(__file__).parents[2]


def encode(seed, height=8, width=4, extension=".png"):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, image)[1].tobytes()


def split_of(name, rows, *, used=True, dataset="set", **changes):
    """A split of (image, identity, camera) rows, with files named a, b, c …"""
    images = np.empty(len(rows), object)
    images[:] = [row[0] for row in rows]
    catalog = Catalog(
        images=images,
        filenames=np.array([f"{name}_{chr(ord('a') + i)}" for i in range(len(rows))], object),
        identities=np.array([row[1] for row in rows]),
        cameras=np.array([row[2] for row in rows]),
        keypoints=np.zeros((len(rows), 17, 3), np.float32),
        image_sizes=np.array([image_size(image) or (0, 0) for image in images]),
        occlusion=np.full(len(rows), np.nan, np.float32),
    )
    catalog = dataclasses.replace(catalog, **changes)
    unreadable = np.flatnonzero(~catalog.image_sizes.all(axis=1))
    return Split(dataset, name, catalog, unreadable, (), used)


def survey_of(config, *splits, name="set", scored=True, poses=()):
    """A survey of one data set."""
    by_name = {split.name: split for split in splits}
    protocols = [
        Protocol(f"{name} {query}", query, by_name[query], by_name["gallery"])
        for query in by_name
        if query.startswith("query") and "gallery" in by_name
    ]
    return Survey(config, [Dataset(name, by_name, protocols, scored)], poses)


def found(check, survey):
    """Errors, warnings, notes and listings of a check."""
    results = list(check(survey))
    listings = [one for one in results if isinstance(one, Listing)]
    findings = [one for one in results if not isinstance(one, Listing)]
    kinds = ("errors", "warnings", "notes")
    return *([x for one in findings for x in getattr(one, kind)] for kind in kinds), listings


def test_every_image_that_cannot_be_decoded_is_found():
    whole, png = encode(0, 40, 20, ".jpg"), encode(1, 40, 20)
    damaged = png[:900] + bytes(90) + png[990:]  # only decoding finds it
    rows = [whole] * 100
    rows[3], rows[40], rows[41], rows[99] = damaged, whole[:-200], b"", b"no image"
    rows[50] = png
    split = split_of("train", [(image, 0, 0) for image in rows])
    assert decode_all(split.catalog, "train")[0].tolist() == [3, 40, 41, 99]


def test_pictures_of_12_bits_in_16_are_nearly_black_and_a_warning():
    """Only the upper 8 of 16 bits count: 4095 becomes 15."""
    values = np.linspace(0, 1, 40 * 20 * 3).reshape(40, 20, 3)
    bright, dark = (
        cv2.imencode(".png", (values * highest).astype(np.uint16))[1].tobytes()
        for highest in (4096, 4095)
    )
    split = split_of("train", [(image, 0, 0) for image in (bright, dark, b"no image", dark)])
    unreadable, nearly_black = decode_all(split.catalog, "train")
    assert (unreadable.tolist(), nearly_black.tolist()) == ([2], [1, 3])
    for used in (True, False):
        split = dataclasses.replace(split, dark=nearly_black, used=used)
        _, warnings, _, listings = found(diagnosis.images, survey_of(None, split))
        line = (
            "set train: 2 images are nearly black (no value above 15 of 255): train_b, train_d; if "
            "they hold 10 or 12 bits in 16, save them with 8"
        )
        assert line in (warnings if used else "".join(warnings))
        assert listings[-1].title == "set train: nearly black images"


@pytest.mark.parametrize("seed", range(30))
def test_copies_are_those_of_a_search_by_hand(seed):
    rng = np.random.default_rng(seed)

    def rows():
        return [
            (b"%d" % rng.integers(5), *rng.integers(0, 2, 2)) for _ in range(rng.integers(1, 9))
        ]

    query, gallery = rows(), rows()
    a, b = split_of("query", query), split_of("gallery", gallery)
    same = [[g for g in gallery if g[0] == q[0]] for q in query]
    copied, junk = Protocol("", "", a, b).copies
    assert copied.tolist() == [bool(found) for found in same]
    assert junk.tolist() == [
        bool(found) and all(g[1:] == q[1:] for g in found)
        for q, found in zip(query, same, strict=True)
    ]
    contents, digests = [g[0] for g in gallery], b.catalog.image_sha256
    again = copies.repeats(digests).tolist()
    assert again == [c in contents[:i] for i, c in enumerate(contents)]
    assert copies.contradictions(digests, b.catalog.identities).tolist() == [
        len({other[1] for other in gallery if other[0] == g[0]}) > 1 for g in gallery
    ]
    firsts = [contents.index(q[0]) if q[0] in contents else -1 for q in query]
    assert copies.first_rows(digests, a.catalog.image_sha256).tolist() == firsts


def test_the_numbers_of_a_split(tiny_config):
    # Identity 7: three images, two cameras; 8: one image; 9: two images of one camera.
    people = [(7, 0), (7, 0), (7, 1), (8, 0), (9, 2), (9, 2)]
    sizes = [(8, 4), (10, 4), (8, 4), (20, 6), (8, 5)]
    images = [encode(i, *size) for i, size in enumerate(sizes)]
    images += [images[2][:60]]
    keypoints = np.zeros((6, 17, 3), np.float32)
    keypoints[[0, 1]] = 3.0
    keypoints[0, :, 2], keypoints[1, :, 2] = 0.5, 0.7
    keypoints[1, 6, 2] = 0.1  # right shoulder: (0.5 + 0.1) / 2
    keypoints[2, :, :2] = 5.0  # positions without any confidence are not a pose
    rows = [(image, *person) for image, person in zip(images, people, strict=True)]
    split = split_of("train", rows, keypoints=keypoints)
    survey = survey_of(tiny_config(), split)
    facts = split_facts(survey, split)
    assert facts["images"] == "6" and facts["unreadable files"] == "1"
    assert facts["repeated images"] == "0"
    assert facts["identities"] == "3" and facts["cameras"] == "3"
    assert facts["with one image"] == "1" and facts["with one camera"] == "2"
    assert facts["images per identity (min / median / max)"] == "1 / 2 / 3"
    assert facts["height (min / median / max)"] == "8 / 8 / 20"
    assert facts["width (min / median / max)"] == "4 / 4 / 6"
    assert facts["different sizes"] == "4"
    assert facts["with a pose"] == "2 (33.3%)"
    assert facts["confidence: nose"] == "0.60"
    assert facts["confidence: shoulder (left / right)"] == "0.60 / 0.30"
    assert "as part maps" not in facts
    header_and_rows = split_table(survey, survey.datasets[0])
    assert list(header_and_rows.header) == ["", "train"]
    assert ["images", "6"] in header_and_rows.rows


def test_part_maps_and_pose_files_are_counted(tiny_config):
    maps = np.zeros((4, 3, 2, 8), np.uint8)
    maps[2, 1, 1, 5] = 99
    split = split_of("train", [(encode(i), i, 0) for i in range(4)], part_maps=maps)
    split = dataclasses.replace(split, matches=(4, 1))
    survey = survey_of(tiny_config(), split, poses=[("a/one.npz", None), ("two.npz", None)])
    facts = split_facts(survey, split)
    assert facts["with a pose"] == facts["as part maps"] == "1 (25.0%)"
    assert facts["known to one.npz"] == "4 (100%)" and facts["known to two.npz"] == "1 (25.0%)"
    assert facts["confidence: nose"] == "–"


def test_the_numbers_of_a_protocol(tiny_config):
    images = [encode(i) for i in range(9)]
    query = split_of("query", [(images[0], 1, 0), (images[1], 1, 1), (images[2], 2, 0)])
    # The first query's copy is junk, the second's has another camera; identity 2 has no match.
    gallery = [(images[0], 1, 0), (images[1], 1, 2), (images[3], 5, 0), (images[4], 5, 1)]
    survey = survey_of(tiny_config(), query, split_of("gallery", gallery))
    table = protocol_table(survey.datasets[0])
    assert list(table.header) == ["protocol", "query"]
    assert [row[1] for row in table.rows] == ["3", "1", "2", "1", "4", "2", "1"]
    errors, warnings, _, listings = found(diagnosis.protocols, survey)
    assert not errors and "1 of 3 queries have no match" in warnings[0]
    assert listings[0].lines == ["query_c (identity 2, camera 0)"]


def test_copies_of_queries_are_a_note_if_junk_and_a_warning_if_ranked(tiny_config):
    images = [encode(i) for i in range(3)]
    query = split_of("query", [(image, i, 0) for i, image in enumerate(images)])
    gallery = split_of("gallery", [(image, i, 0) for i, image in enumerate(images[:2])])
    errors, warnings, notes, listings = found(
        duplicates.queries_in_galleries, survey_of(tiny_config(), query, gallery)
    )
    assert not errors and not warnings and not listings
    assert notes[0].startswith("set query: 2 queries are also in the gallery; for 2 of them")
    gallery = split_of("gallery", [(image, i, i) for i, image in enumerate(images[:2])])
    errors, warnings, notes, listings = found(
        duplicates.queries_in_galleries, survey_of(tiny_config(), query, gallery)
    )
    assert not errors and not notes
    assert "for 1 of them all copies are junk" in warnings[0]
    assert "for 1 a copy is ranked" in warnings[0]
    assert listings[0].lines == [
        "query_b (identity 1, camera 0) = gallery_b (identity 1, camera 1)"
    ]


def test_test_images_in_training_are_an_error(tiny_config):
    images = [encode(i) for i in range(4)]
    train = split_of("train", [(image, 1, 0) for image in images])
    query = split_of("query", [(images[2], 5, 0), (encode(9), 5, 0)])
    survey = survey_of(tiny_config(), train, query, split_of("gallery", [(encode(8), 5, 1)]))
    errors, warnings, _, listings = found(duplicates.test_images_in_training, survey)
    assert len(errors) == 1 and not warnings
    assert errors[0].startswith(
        "test images in training: 1 images of set query are also in set train"
    )
    assert listings[0].lines == ["query_a (identity 5, camera 0) = train_c (identity 1, camera 0)"]
    # It is a warning for a data set that is only trained on while another one is scored.
    query = dataclasses.replace(query, used=False)
    errors, warnings, _, _ = found(
        duplicates.test_images_in_training, survey_of(tiny_config(), train, query)
    )
    assert not errors and warnings[0].endswith("(not used by this configuration)")


def test_test_images_of_another_set_in_training_are_found_too(tiny_config):
    image = encode(0)
    train = split_of("train", [(image, 1, 0)], dataset="one")
    gallery = split_of("gallery", [(encode(1), 1, 0), (image, 1, 0)], dataset="two")
    survey = Survey(
        tiny_config(),
        [
            Dataset("one", {"train": train}, [], False),
            Dataset("two", {"gallery": gallery}, [], True),
        ],
        [],
    )
    errors, *_ = found(duplicates.test_images_in_training, survey)
    assert "1 images of two gallery are also in one train: gallery_b" in errors[0]
    # The identities of two sets are numbered independently.
    assert found(duplicates.shared_identities, survey) == ([], [], [], [])


def test_shared_identities_are_a_warning(tiny_config):
    train = split_of("train", [(encode(i), i, 0) for i in range(4)])
    gallery = split_of("gallery", [(encode(10 + i), i, 0) for i in range(2, 7)])
    errors, warnings, _, _ = found(
        duplicates.shared_identities, survey_of(tiny_config(), train, gallery)
    )
    assert not errors
    assert warnings[0].startswith("set gallery: 2 of 5 identities are also in train: 2, 3;")


def test_repeated_images_are_a_note_and_a_warning_under_several_identities(tiny_config):
    rows = [(encode(0), 1, 0), (encode(1), 1, 0), (encode(0), 1, 0)]
    survey = survey_of(tiny_config(), split_of("train", rows))
    errors, warnings, notes, listings = found(duplicates.within_splits, survey)
    assert not errors and not warnings
    assert notes == [
        "set train: 1 images repeat another image of the split, always under the same identity and "
        "camera"
    ]
    assert listings[0].lines == ["train_c (identity 1, camera 0) = train_a (identity 1, camera 0)"]
    rows[2] = (encode(0), 2, 0)
    survey = survey_of(tiny_config(), split_of("train", rows))
    errors, warnings, notes, _ = found(duplicates.within_splits, survey)
    assert not errors and not notes
    assert "2 occur under different identities: train_a, train_c; remove" in warnings[0]
    rows[2] = (encode(0), 1, 1)
    survey = survey_of(tiny_config(), split_of("gallery", rows))
    errors, warnings, notes, _ = found(duplicates.within_splits, survey)
    assert not errors and not notes
    assert "2 occur under different cameras: gallery_a, gallery_c; remove" in warnings[0]


def test_broken_files_are_an_error_only_where_they_are_read(tiny_config):
    rows = [(encode(i), i, 0) for i in range(3)]
    rows[1] = (rows[1][0][:50], 1, 0)  # cut off
    split = split_of("gallery", rows)
    split = dataclasses.replace(split, unreadable=np.array([1, 2]))  # the last one: damaged
    errors, warnings, _, listings = found(diagnosis.images, survey_of(tiny_config(), split))
    assert not warnings and len(errors) == 2
    assert errors[0].startswith(
        "set gallery: 1 files are not complete JPEG or PNG images: gallery_b;"
    )
    assert errors[1].startswith(
        "set gallery: 1 files are damaged and cannot be decoded: gallery_c;"
    )
    assert [line.split(" ")[0] for line in listings[0].lines] == ["gallery_b", "gallery_c"]
    split = dataclasses.replace(split, used=False)
    errors, warnings, _, _ = found(diagnosis.images, survey_of(tiny_config(), split))
    assert not errors and len(warnings) == 2


def test_too_few_identities_for_a_batch_name_the_option(tiny_config):
    rows = [(encode(i), i, 0) for i in range(3)]
    survey = survey_of(tiny_config(), split_of("train", rows))
    errors, warnings, *_ = found(diagnosis.training, survey)
    assert errors == [
        "config.data.identities_per_batch = 4: the training split has only 3 "
        "identities; take at most 2, or 3"
    ]
    assert len(warnings) == 2  # single images, no poses
    survey = survey_of(tiny_config(**{"data.identities_per_batch": 3}), *survey.splits)
    assert not found(diagnosis.training, survey)[0]


def pose_file(path, images, grid=None):
    """A pose file of these encoded images: keypoints, or part maps on a grid of cells."""
    digests = np.array([hashlib.sha256(image).hexdigest() for image in images])
    names = np.array([f"{i:02}.jpg" for i in range(len(images))])
    texts = {"sources": names, "estimators": names, "filenames": names}
    splits = np.array(["train"] * len(images))
    keypoints = np.full((len(images), 17, 3), 0 if grid else 0.9, np.float32)
    part_maps = grid and np.full((len(images), *grid, 8), 99, np.uint8)
    poses = {"keypoints": keypoints, "part_maps": part_maps}
    cache = PoseCache(image_sha256=digests, splits=splits, **poses, **texts)
    write_poses(path, cache)
    return cache


def test_pose_files_of_other_images(tiny_config, tmp_path):
    split = split_of("train", [(encode(i), i, 0) for i in range(3)])
    half = pose_file(tmp_path / "half.npz", [encode(1), encode(7), encode(8)])
    other = pose_file(tmp_path / "other.npz", [encode(9)])
    split = dataclasses.replace(split, matches=(1, 0))
    survey = survey_of(tiny_config(), split, poses=[("half.npz", half), ("other.npz", other)])
    errors, warnings, notes, listings = found(diagnosis.pose_files, survey)
    assert len(errors) == 1 and not warnings
    assert errors[0].startswith(
        "other.npz: none of its 1 poses belongs to an image of these data sets"
    )
    assert notes == ["half.npz: 2 of its 3 poses belong to images that these data sets do not have"]
    assert listings[0].lines == ["train/01.jpg", "train/02.jpg"]


@pytest.mark.parametrize("people, each", [(30, 4), (5, 4), (1, 30), (1, 3), (12, 1)])
def test_samples_are_spread_over_identities_and_cameras(people, each):
    rows = [(b"", person, camera % 3) for person in range(people) for camera in range(each)]
    split = split_of("train", rows)
    split = dataclasses.replace(split, unreadable=np.array([0]))
    chosen = choose_samples(split)
    assert chosen == sorted(set(chosen)) and 0 not in chosen
    assert len(chosen) == min(12, len(rows) - 1)
    identities = split.catalog.identities[chosen]
    readable = len(np.unique(split.catalog.identities[1:]))
    assert len(set(identities)) == min(12, readable)
    if each > 3:
        assert set(split.catalog.cameras[chosen]) == {0, 1, 2}


def test_samples_with_poses_come_first():
    rows = [(b"", person, camera) for person in range(20) for camera in range(2)]
    keypoints = np.zeros((40, 17, 3), np.float32)
    split = split_of("train", rows, keypoints=keypoints)
    split = dataclasses.replace(split, unreadable=np.array([8]))
    keypoints[[7, 8, 30, 31], 3] = 0.5
    chosen = choose_samples(split)
    assert chosen[:3] == [7, 30, 31] and len(set(chosen)) == 12 and 8 not in chosen
    assert chosen[3:] == sorted(chosen[3:])
    keypoints[1::2, 3] = 0.5  # those of a whole camera are enough
    chosen = choose_samples(split)
    assert len(chosen) == 12 and all(row % 2 or row == 30 for row in chosen)


def test_queries_are_shown_with_matches_under_other_cameras():
    # Person 1 has three matches under two other cameras, person 2 none, 3 an unreadable one.
    query = split_of("query", [(encode(i), person, 0) for i, person in enumerate((1, 2, 3))])
    seen = [(1, 0), (1, 1), (1, 1), (1, 2), (2, 0), (3, 1), (4, 1)]
    gallery = split_of("gallery", [(encode(9 + i), *who) for i, who in enumerate(seen)])
    gallery = dataclasses.replace(gallery, unreadable=np.array([5]))
    protocol = Protocol("set query", "query", query, gallery)
    assert choose_matches(protocol) == [(0, [1, 3, 2])]  # every camera before a second image
    assert choose_matches(protocol, matches=2) == [(0, [1, 3])]
    assert choose_matches(protocol, queries=0) == []


def test_samples_of_a_split_without_a_readable_image():
    split = split_of("train", [(b"x", 0, 0)])
    assert choose_samples(split) == []


@pytest.mark.parametrize("height, width, size", [(8, 4, (192, 296)), (50, 100, (96, 584))])
def test_a_sample_shows_image_skeleton_and_part_maps(tiny_config, height, width, size):
    image = cv2.imencode(".png", np.full((height, width, 3), (0, 0, 255), np.uint8))[1].tobytes()
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, 5] = (width / 4, height / 2, 1)  # left shoulder
    keypoints[0, 6] = (1e9, height / 2, 1)  # right shoulder, far outside
    split = split_of("train", [(image, 0, 0)], keypoints=keypoints)
    jpeg = draw_sample(split.catalog, 0, tiny_config().data.pose)
    drawn = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert drawn.shape[:2] == size
    third = (size[1] - 8) // 3
    np.testing.assert_allclose(drawn[10, 10], (255, 0, 0), atol=12)
    np.testing.assert_allclose(drawn[10, third + 14], (153, 0, 0), atol=12)  # 0.6 of it
    # The joint's spot in the skeleton; in the third picture the torso's red and the arm's blue.
    x, y = round((width / 4 + 0.5) * third / width), round((height / 2 + 0.5) * size[0] / height)
    assert drawn[y, third + 4 + x].min() > 180
    far, near = drawn[5, 2 * third + 8 + third - 5], drawn[y, 2 * third + 8 + x]
    assert abs(near.astype(int) - far.astype(int)).max() > 60


def test_a_sample_without_a_pose_shows_the_picture_once(tiny_config):
    """Part maps without joints make two pictures of it, 96 pixels wide, with 4 between them."""
    maps = np.zeros((2, 4, 2, 8), np.uint8)
    maps[1, 2, 1, 0] = 255
    catalog = split_of("train", [(encode(i), i, 0) for i in range(2)], part_maps=maps).catalog
    pose = tiny_config().data.pose
    sizes = [image_size_of(draw_sample(catalog, row, pose)) for row in range(2)]
    assert sizes == [(192, 96), (192, 196)]
    assert draw_sample(catalog, 0, pose) == draw_picture(catalog, 0)


def image_size_of(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2]


def plain(*colours, height=64, width=20):
    """A PNG of horizontal bands in these colours (red, green, blue)."""
    bands = np.array_split(np.zeros((height, width, 3), np.uint8), len(colours))
    for band, colour in zip(bands, colours, strict=True):
        band[:] = colour[::-1]
    return cv2.imencode(".png", np.concatenate(bands))[1].tobytes()


RED, BLUE, GREY = (200, 30, 30), (30, 30, 200), (128, 128, 128)


def test_the_overlap_of_colours_is_their_common_share():
    one = colour_histogram(plain(RED, BLUE), 64)
    assert sorted(one[one > 0]) == pytest.approx([0.5**0.5] * 2)
    for other, overlap in (
        (plain(RED, BLUE), 1),
        (plain(BLUE, RED), 0),  # upper and lower half count separately
        (plain(RED, GREY), 1 / 2),
        # A fourth of the picture differs: 1/2 + √(1/2 · 1/4).
        (plain(RED, RED, GREY, BLUE), 0.5 + 0.125**0.5),
    ):
        assert one @ colour_histogram(other, 64) == pytest.approx(overlap, abs=1e-6)
    pixels = np.full((64, 20, 3), RED[::-1], np.uint8)
    pixels[:, :6] = pixels[:, 14:] = GREY  # beside the person
    beside = cv2.imencode(".png", pixels)[1].tobytes()
    assert colour_histogram(beside, 64) @ colour_histogram(plain(RED), 64) > 0.85
    assert colour_histogram(plain(RED, height=1, width=1), 1).max() == pytest.approx(0.5**0.5)
    assert not colour_histogram(b"no image", 64).any()


def test_a_picture_in_the_colours_of_another_identity_is_suspect():
    red, blue, both = plain(RED), plain(BLUE), plain(RED, BLUE)
    #         0            1            2             3            4            5
    rows = [(red, 1, 0), (red, 1, 1), (blue, 1, 0), (blue, 2, 0), (blue, 2, 1), (both, 3, 1)]
    split = split_of("train", rows)
    (found,) = suspects([split], split.catalog.identities)
    assert (found.picture.row, found.own.row, found.other.row) == (2, 0, 3)
    assert found.excess == pytest.approx(1, abs=1e-3)  # no colour in common, and equal ones
    # Under another camera nobody is like it: both of identity 2 are under camera 1.
    elsewhere = dataclasses.replace(split.catalog, cameras=np.array([0, 1, 0, 1, 1, 1]))
    moved = dataclasses.replace(split, catalog=elsewhere)
    assert suspects([moved], elsewhere.identities) == []
    # A picture that cannot be read, or of an identity that is not asked for, is not compared.
    unreadable = dataclasses.replace(split, unreadable=np.array([2]))
    assert suspects([unreadable], split.catalog.identities) == []
    assert suspects([split], np.array([1, 3])) == suspects([split], np.zeros(0, int)) == []


def test_suspects_are_ordered_and_one_for_each_identity():
    red, half, blue = plain(RED), plain(RED, BLUE), plain(BLUE)
    train = [(red, 1, 0), (red, 1, 0), (blue, 1, 0), (half, 1, 0), (blue, 2, 0), (blue, 2, 0)]
    more = [(GREY, 3), (GREY, 3), (RED, 3), (BLUE, 4), (RED, 4)]
    gallery = [(plain(colour), person, 0) for colour, person in more]
    splits = [split_of("query", train), split_of("gallery", gallery)]
    found = suspects(splits, np.arange(9))
    # The red one of identity 3 and both of 4 have nothing in common with their own, and equal ones
    # elsewhere. The blue one of identity 1 shares half with the nearest of its own: √(1 − ½).
    assert [(one.picture.split.name, one.picture.row) for one in found] == [
        ("gallery", 2),
        ("gallery", 3),
        ("query", 2),
    ]
    assert [one.excess for one in found] == pytest.approx([1, 1, 0.5**0.5], abs=1e-3)
    assert len(suspects(splits, np.arange(9), count=2)) == 2


def test_captions_break_after_separators_and_keep_the_whole_name(tiny_config):
    query, gallery = (
        split_of("query", [(encode(0), 1, 0)]),
        split_of("gallery", [(encode(1), 1, 3)]),
    )
    names = np.array(["north/anna_01-a.jpg"], object)
    query = dataclasses.replace(query, catalog=dataclasses.replace(query.catalog, filenames=names))
    page = format_page(Diagnosis(survey_of(tiny_config(), query, gallery), Findings(), []))
    title = "north/anna_01-a.jpg (identity 1, camera 0)"
    caption = "north/<wbr>anna_<wbr>01-<wbr>a.jpg (identity 1, camera 0)"
    assert f'<figcaption title="{title}">{caption}</figcaption>' in page
    style = re.search(r"figcaption \{([^}]*)\}", page)[1]
    assert "text-overflow: ellipsis" in style and "overflow-wrap" not in style
    row = page[page.index("query: queries and their matches") :]
    shown = re.findall(r'title="([^"]*)"', row[: row.index("</div>")])
    assert shown == [title, "gallery_a (identity 1, camera 3)"]


def test_names_cannot_change_the_page(tiny_config):
    query = split_of("query", [(encode(0), 1, 0)])
    names = np.array(['<script>alert("x")</script>&.jpg'], object)
    query = dataclasses.replace(query, catalog=dataclasses.replace(query.catalog, filenames=names))
    survey = survey_of(tiny_config(), query, split_of("gallery", [(encode(1), 2, 0)]), name="<b>")
    results = list(diagnosis.protocols(survey))
    listings = [one for one in results if isinstance(one, Listing)]
    page = format_page(Diagnosis(survey, results[0], listings))
    assert "<script" not in page and "<b>" not in page and 'alert("x")' not in page
    escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;.jpg"
    assert page.count(escaped) == 4  # the error, alternative text, title and the list of files
    fetched = re.findall(r'(?:src|href|url)[=(]"?([^"]*)', page)
    assert len(fetched) == 2 and all(url.startswith("data:image/jpeg") for url in fetched)


BUILDER = """
import numpy as np, tensorflow_datasets as tfds

RECORDS = %r

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "identity": tfds.features.Scalar(np.int64),
            "camera": tfds.features.Scalar(np.int64),
            "filename": tfds.features.Text(),
        })
        metadata = tfds.core.MetadataDict()
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

    def _split_generators(self, dl_manager):
        self.info.metadata.update(
            source="somewhere", warnings=["noticed when prepared"], unmatched=["notes.txt"]
        )
        return {split: self._generate_examples(split) for split in RECORDS}

    def _generate_examples(self, split):
        for i, (image, identity, camera) in enumerate(RECORDS[split]):
            name = f"{split}_{i:03}.png"
            yield name, {"image": image, "identity": identity, "camera": camera, "filename": name}
"""


@pytest.fixture
def add_builder(tmp_path, monkeypatch):
    """Adds a data set: split → (image, identity, camera) rows."""
    monkeypatch.setattr(builders, "__path__", [*builders.__path__, str(tmp_path / "builders")])

    def add(name, records):
        folder = tmp_path / "builders" / name
        folder.mkdir(parents=True)
        (folder / f"{name}_dataset_builder.py").write_text(BUILDER % records)

    return add


TRAIN = [(encode(i), i // 2, i % 2) for i in range(16)]
QUERY = [(encode(100 + i), 50 + i, 0) for i in range(4)]
GALLERY = [(encode(200 + i), 50 + i, 1) for i in range(4)]


def run(config, tmp_path, capsys):
    """Exit status, text and page."""
    path = tmp_path / "folder" / "page.html"
    status = examine(config, str(path))
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == f"page: {path}"
    return status, text, path.read_text()


def test_the_tiny_set_is_ready(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    assert examine(config) == 0
    text = capsys.readouterr().out
    counts = {line[:20].strip(): line.split()[-4:] for line in text.splitlines()}
    assert counts["images"] == ["128", "16", "16", "48"]
    assert counts["identities"] == ["16", "8", "8", "8"]
    assert counts["unreadable files"] == counts["repeated images"] == ["0"] * 4
    assert text.splitlines()[-2:] == [
        "ready: 128 images of 16 people to train on, 2 protocols to score",
        "page: runs/doctor/synthetic_occluded_reid-tiny.html",
    ]
    page = Path("runs/doctor/synthetic_occluded_reid-tiny.html").read_text()
    assert "<td>images</td><td>128</td><td>16</td><td>16</td><td>48</td>" in page
    samples, occluded, holistic = page.split(": queries and their matches</h3>")
    holistic, labels = holistic.split("<h3>Labels to look at</h3>")
    assert samples.count("<img ") == samples.count("data:image/jpeg;base64,") == 4 * 12
    for rows in (occluded, holistic):
        assert rows.count('<div class="strip first">') == 4
        people = [re.findall(r"title=[^>]*identity (\d+)", row) for row in rows.split("<div")[1:5]]
        assert all(len(shown) > 1 and len(set(shown)) == 1 for shown in people)
    for row in labels.split('<div class="strip first">')[1:]:
        own, same, other = re.findall(r"title=[^>]*identity (\d+), camera", row)
        assert own == same != other
    assert examine(config) == 0
    assert Path("runs/doctor/synthetic_occluded_reid-tiny.html").read_text() == page
    assert capsys.readouterr().out == text


def test_all_problems_are_reported_at_once(add_builder, tiny_config, tmp_path, capsys):
    train = [*TRAIN[:7], (QUERY[0][0], 3, 1), (TRAIN[0][0][:60], 0, 2)]
    add_builder("sick_reid", {"train": train, "query": QUERY, "gallery": GALLERY})
    builders.prepared_builder("sick_reid", str(tmp_path / "data"))
    (shard,) = (tmp_path / "data").glob("sick_reid/*/*gallery*")
    shard.write_bytes(shard.read_bytes()[:-20])
    pose_file(tmp_path / "other.npz", [encode(999)])
    config = tiny_config(
        **{
            "data.dataset": "sick_reid",
            "data.data_dir": str(tmp_path / "data"),
            "data.identities_per_batch": 5,
            "data.pose.files": (str(tmp_path / "other.npz"), str(tmp_path / "none.npz")),
            "eval.datasets": ("sick_reid", "no_such_reid"),
        }
    )
    status, text, page = run(config, tmp_path, capsys)
    assert status == 1
    problems = re.search(r"\d+ problems:.*", text, re.DOTALL)[0].splitlines()
    assert problems[0] == "8 problems:" and len(problems) == 1 + 8 + 1
    for expected in (
        "none.npz: no such pose file",
        "unknown data set 'no_such_reid'",
        f"{shard}: damaged; delete the folder {shard.parent}",
        "train: 1 files are not complete JPEG or PNG images: train_008.png",
        "identities_per_batch = 5: the training split has only 4 identities",
        "other.npz: none of its 1 poses",
        "belongs to an image of sick_reid/1.0.0 train; make it for this data set",
        "test images in training: 1 images of sick_reid/1.0.0 query are also in",
    ):
        assert sum(expected in line for line in problems) == 1, expected
        assert expected in page.replace("&#x27;", "'")
    assert "  - noticed when prepared" in text and "notes.txt" in text
    assert "sick_reid/1.0.0 (prepared from somewhere)" in text


def test_queries_without_any_match(add_builder, tiny_config, tmp_path, capsys):
    strangers = [(image, identity + 100, camera) for image, identity, camera in QUERY * 3]
    records = {"train": TRAIN, "query": strangers, "query_all": QUERY, "gallery": GALLERY}
    add_builder("lonely_reid", records)
    changes = {"data.dataset": "lonely_reid", "data.data_dir": str(tmp_path / "data")}
    status, text, page = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 1 and "\n1 problem:\n" in text
    assert "lonely_reid/1.0.0 query: 12 of 12 queries have no match" in text
    listed = "queries without a possible match: 12"
    assert listed in text and listed in page
    assert "query_009.png (identity 151, camera 0)\n  and 2 more, in the page" in text
    listing = page[page.index(listed) :].split("</pre>")[0]
    assert listing.count(".png") == 12 and "query_010.png (identity 152" in listing


def test_a_set_for_training_and_another_for_testing(add_builder, tiny_config, tmp_path, capsys):
    add_builder("one_reid", {"train": TRAIN})
    add_builder("two_reid", {"query": QUERY, "gallery": GALLERY})
    data_dir = str(tmp_path / "data")
    changes = {"data.dataset": "one_reid", "data.data_dir": data_dir}
    scored = {"eval.datasets": ("two_reid",)}
    status, text, _ = run(tiny_config(**changes, **scored), tmp_path, capsys)
    assert status == 0
    assert "ready: 16 images of 8 people to train on, 1 protocol to score; 2 warnings" in text
    status, text, _ = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 1 and "one_reid/1.0.0: needs splits query and gallery to be scored" in text
    changes |= {"data.dataset": "two_reid", "eval.datasets": ("one_reid",)}
    status, text, _ = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 1 and "two_reid/1.0.0: no split 'train'; it has gallery, query" in text


@pytest.mark.parametrize("scored", [(), ("test_reid",)])
def test_a_set_without_training_images_is_examined_alone(
    add_builder, tiny_config, tmp_path, capsys, scored
):
    add_builder("test_reid", {"query": QUERY, "gallery": [*GALLERY, (encode(0)[:60], 9, 0)]})
    changes = {
        "data.dataset": "test_reid",
        "data.data_dir": str(tmp_path / "data"),
        "eval.datasets": scored,
    }
    status, text, _ = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 1 and "\n1 problem:\n" in text  # its images are examined
    assert "gallery: 1 files are not complete JPEG or PNG images: gallery_004.png" in text
    add_builder("sound_reid", {"query": QUERY, "gallery": GALLERY})
    changes |= {"data.dataset": "sound_reid", "eval.datasets": scored and ("sound_reid",)}
    status, text, page = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 0
    assert "\nready: 1 protocol to score, no images to train on; 1 warning\n" in text
    assert "sound_reid/1.0.0: has no split train, so it was examined for scoring alone" in text
    assert re.search(r"\nimages +4 +4\n", text) and "no images to train on" in page


def test_a_table_of_queries_and_gallery_is_examined_alone(tiny_config, tmp_path, capsys):
    lines = ["path,identity,camera,split"]
    for split, rows in (("query", QUERY), ("gallery", GALLERY)):
        for index, (image, identity, camera) in enumerate(rows):
            (tmp_path / f"{split}{index}.png").write_bytes(image)
            lines.append(f"{split}{index}.png,{identity},{camera},{split}")
    (tmp_path / "shop.csv").write_text("\n".join(lines))
    changes = {"data.dataset": "table/shop", "data.manual_dir": str(tmp_path)}
    config = tiny_config(**changes, **{"data.data_dir": str(tmp_path / "data")})
    status, text, _ = run(config, tmp_path, capsys)
    assert status == 0 and "\nready: 1 protocol to score, no images to train on\n" in text


def test_the_page_of_a_set_is_not_that_of_others(tiny_config):
    def page(dataset, *scored):
        return default_page(tiny_config(**{"data.dataset": dataset, "eval.datasets": scored}))

    assert page("market1501") == page("market1501", "market1501") == "runs/doctor/market1501.html"
    assert page("msmt17/v1") == "runs/doctor/msmt17-v1.html"
    assert page("occluded_reid") == "runs/doctor/occluded_reid.html"
    both = page("market1501", "occluded_reid", "msmt17/v1")
    assert both == "runs/doctor/market1501+occluded_reid+msmt17-v1.html"


def test_poses_of_a_file_are_joined(add_builder, tiny_config, tmp_path, capsys):
    add_builder("posed_reid", {"train": TRAIN, "query": QUERY, "gallery": GALLERY})
    pose_file(tmp_path / "poses.npz", [row[0] for row in TRAIN[:4] + GALLERY[:1]])
    changes = {"data.dataset": "posed_reid", "data.data_dir": str(tmp_path / "data")}
    changes["data.pose.files"] = (str(tmp_path / "poses.npz"),)
    status, text, _ = run(tiny_config(**changes), tmp_path, capsys)
    assert status == 0
    assert re.search(r"with a pose +4 \(25\.0%\) +0 \(0\.0%\) +1 \(25\.0%\)\n", text)
    assert re.search(r"known to poses\.npz +4 \(25\.0%\) +0 \(0\.0%\) +1 \(25\.0%\)\n", text)
    assert re.search(r"confidence: nose +0\.90 +– +0\.90\n", text)


def test_training_is_refused_where_the_doctor_sees_a_problem(
    add_builder, tiny_config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    records = {"train": TRAIN, "query": QUERY, "gallery": GALLERY}
    others = [(encode(300 + i), i // 2, i % 2) for i in range(4)]
    add_builder("mapped_reid", records)
    add_builder("other_reid", {"query": others[::2], "gallery": others})
    pose_file(tmp_path / "mapped.npz", [row[0] for row in TRAIN], grid=(4, 2))
    changes = {
        "data.dataset": "mapped_reid",
        "data.data_dir": str(tmp_path / "data"),
        "data.pose.files": ("~/mapped.npz", "~/second.npz"),
        "eval.datasets": ("mapped_reid", "other_reid"),
    }
    config = tiny_config(**changes)
    pose_file(tmp_path / "second.npz", [row[0] for row in others], grid=(6, 3))
    status, text, _ = run(config, tmp_path, capsys)
    assert status == 0 and "\nready: 16 images" in text
    assert training_data(config).num_identities == 8

    pose_file(tmp_path / "second.npz", [TRAIN[0][0]], grid=(6, 3))
    status, text, _ = run(config, tmp_path, capsys)
    assert status == 1 and "\n1 problem:\n" in text
    with pytest.raises(DataError, match="part maps on different grids") as refused:
        training_data(config)
    assert f"  - {refused.value}\n" in text


def write_table(folder, rows):
    """The table mine.jsonl of (image, identity, camera, split, further columns) rows."""
    folder.mkdir()
    lines = []
    for i, (image, identity, camera, split, columns) in enumerate(rows):
        (folder / f"{i}.png").write_bytes(image)
        names = {"path": f"{i}.png", "identity": identity, "camera": camera, "split": split}
        lines.append(json.dumps(names | columns))
    (folder / "mine.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        (0.5, 0.25, "the keypoints of 16 of 16 images are between -1 and 1"),
        (-1, -1, "the keypoints of 16 of 16 images are between -1 and 1"),
        (870, 440, "100% of the confident keypoints are outside their images"),
        (20, 30, None),
    ],
)
def test_keypoints_of_a_table_must_be_pixels_of_its_images(
    x, y, problem, tiny_config, tmp_path, capsys
):
    pose = {"keypoints": [[x, y, 1.0]] * 17}
    rows = [(encode(i, 64, 32), f"p{i // 2}", f"c{i % 2}", "train", pose) for i in range(16)]
    rows += [(encode(100 + i, 64, 32), "q", f"c{i}", name, pose)
             for i, name in enumerate(("query", "gallery"))]  # fmt: skip
    write_table(tmp_path / "in", rows)
    folders = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    config = tiny_config(**{"data.dataset": "table/mine", **folders})
    teachers = tiny_config(
        **{"data.dataset": "table/mine", "eval.embeddings": ("main", "parts"), **folders}
    )
    status, text, _ = run(config, tmp_path, capsys)
    if problem is None:
        assert status == 0 and "\nready: " in text
        training_data(config), evaluation_data(teachers)
        return
    assert status == 1 and "\n1 problem:\n" in text and f" train: {problem}" in text
    with pytest.raises(DataError, match=f" train: {problem}") as refused:
        training_data(config)
    assert f"  - {refused.value}\n" in text
    evaluation_data(config)  # the main branch is scored without poses
    with pytest.raises(DataError, match=f" query: {problem.replace('16', '1')}"):
        evaluation_data(teachers)


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_training_on_test_images_is_refused(split, add_builder, tiny_config, tmp_path, capsys):
    records = {"train": TRAIN, "query": QUERY, "gallery": GALLERY}
    clean, leaky = f"clean_{split}_reid", f"leaky_{split}_reid"
    add_builder(clean, records)
    train = [*TRAIN, (records[split][2][0], 7, 0)]
    add_builder(leaky, records | {"train": train})
    changes = {"data.dataset": leaky, "data.data_dir": str(tmp_path / "data")}
    config = tiny_config(**changes)
    message = (
        f"test images in training: 1 images of {leaky}/1.0.0 {split} are also in "
        f"{leaky}/1.0.0 train: {split}_002.png; remove them"
    )
    training = training_data(config)
    with pytest.raises(DataError, match=f"^{message}") as refused:
        evaluation_data(config, training)
    status, text, _ = run(config, tmp_path, capsys)
    assert status == 1 and f"  - {refused.value}\n" in text
    main.FLAGS.mark_as_parsed()
    workdir = str(tmp_path / "run")
    with flagsaver(workdir=workdir), pytest.raises(DataError, match=f"^{message}"):
        main.work(config)
    evaluation_data(config)  # without training, for the score of another run's weights
    crossed = tiny_config(**changes, **{"eval.datasets": (clean,)})
    between = message.replace(f"{leaky}/1.0.0 {split}", f"{clean}/1.0.0 {split}")
    with pytest.raises(DataError, match=f"^{between}"):
        evaluation_data(crossed, training)


def test_training_and_evaluation_warn_as_the_doctor_does(
    add_builder, tiny_config, tmp_path, capsys
):
    train = [*TRAIN, (TRAIN[3][0], 7, 0), (TRAIN[4][0], 2, 1)]
    gallery = [*GALLERY, (GALLERY[2][0], 90, 0), (encode(300), 3, 1)]
    add_builder("wrong_reid", {"train": train, "query": QUERY, "gallery": gallery})
    changes = {"data.dataset": "wrong_reid", "data.data_dir": str(tmp_path / "data")}
    config = tiny_config(**changes)
    training = training_data(config)
    evaluation_data(config, training)
    name = "warning: wrong_reid/1.0.0"
    expected = [
        f"{name} train: 2 images repeat another image of the split; 2 occur under different "
        "identities: train_003.png, train_016.png; remove the wrong ones",
        f"{name} gallery: 1 images repeat another image of the split; 2 occur under different "
        "identities: gallery_002.png, gallery_004.png; remove the wrong ones",
        f"{name} gallery: 1 of 6 identities are also in train: 3; if the numbers mean the same "
        "people, the scores do not measure unseen people",
    ]
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in expected if line not in printed] == []
    status, text, _ = run(config, tmp_path, capsys)
    assert status == 0
    assert [line for line in expected if line.removeprefix("warning: ") not in text] == []


def test_a_query_may_also_be_in_the_gallery(add_builder, tiny_config, tmp_path, capsys):
    gallery = [*GALLERY, *QUERY]
    add_builder("copied_reid", {"train": TRAIN, "query": QUERY, "gallery": gallery})
    changes = {"data.dataset": "copied_reid", "data.data_dir": str(tmp_path / "data")}
    config = tiny_config(**changes)
    assert len(evaluation_data(config, training_data(config)).protocols) == 1
    printed = capsys.readouterr().err
    assert "repeat" not in printed and "also in" not in printed


def test_the_names_of_a_table_are_shown(tiny_config, tmp_path, capsys):
    rows = [(encode(i), f"p{i // 2}", f"c{i % 2}", "train", {}) for i in range(16)]
    rows += [(encode(100), "zoe", "north", "query", {}), (encode(101), "p1", "south", "query", {}),
             (encode(102), "p1", "north", "gallery", {})]  # fmt: skip
    write_table(tmp_path / "in", rows)
    changes = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    status, text, page = run(
        tiny_config(**{"data.dataset": "table/mine", **changes}), tmp_path, capsys
    )
    assert status == 0
    assert " query: 1 of 2 identities are also in train: p1; if the names mean the same" in text
    for shown in (text, page):
        assert "16.png (identity zoe, camera north)" in shown
    assert "0.png (identity p0, camera c0)" in page and "(identity 0" not in page


def test_a_clash_of_poses_that_evaluation_does_not_read_is_a_warning(
    add_builder, tiny_config, tmp_path, capsys
):
    add_builder("clash_reid", {"train": TRAIN, "query": QUERY, "gallery": GALLERY})
    pose_file(tmp_path / "4x2.npz", [row[0] for row in (TRAIN[0], *QUERY)], grid=(4, 2))
    pose_file(tmp_path / "6x3.npz", [QUERY[0][0]], grid=(6, 3))
    changes = {"data.dataset": "clash_reid", "data.data_dir": str(tmp_path / "data")}
    changes["data.pose.files"] = (str(tmp_path / "4x2.npz"), str(tmp_path / "6x3.npz"))
    main_only, all_branches = ("main",), ("main", "foreground", "parts")
    for embeddings, problem in ((main_only, False), (all_branches, True)):
        config = tiny_config(**changes, **{"eval.embeddings": embeddings})
        status, text, _ = run(config, tmp_path, capsys)
        assert status == problem and text.count("part maps on different grids") == 1
        if problem:
            with pytest.raises(DataError, match="part maps on different grids"):
                evaluation_data(config)
        else:
            evaluation_data(config)


def test_matches_and_copies_of_a_protocol_are_computed_once(tiny_config, monkeypatch):
    calls = []
    original = validation.queries_without_match
    monkeypatch.setattr(
        validation, "queries_without_match", lambda *pair: calls.append(pair) or original(*pair)
    )
    query, gallery = split_of("query", [(b"", 1, 0)]), split_of("gallery", [(b"", 1, 1)])
    survey = survey_of(tiny_config(), query, gallery)
    seen = Diagnosis(survey, Findings(errors=["e"]), [])
    assert not list(diagnosis.protocols(survey))
    assert format_text(seen) and format_page(seen) and len(calls) == 1
    (protocol,) = survey.datasets[0].protocols
    assert protocol.copies is protocol.copies


def test_the_output_must_be_a_page(tiny_config, tmp_path):
    with pytest.raises(Exception, match=r"--output=.*mine\.csv: must end in \.html"):
        examine(tiny_config(), str(tmp_path / "mine.csv"))
    with pytest.raises(Exception, match=r"--output=.*: is a folder; name a file"):
        examine(tiny_config(), str(tmp_path))


def test_a_mistyped_option_is_one_line():
    """The one test here that starts the command line."""
    command = [sys.executable, "-m", "input_pipeline.doctor", "--config=configs/default.py"]
    command += ["--config.data.heigth=3"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "no such option: 'heigth'" in ended.stderr and "Traceback" not in ended.stderr


def test_posed_images_that_other_tools_turn_are_a_warning(tiny_config, monkeypatch):
    keypoints = np.zeros((4, 17, 3), np.float32)
    keypoints[:3] = 2
    keypoints[:3, :, 2] = 1
    split = split_of("train", [(encode(i), i, 0) for i in range(4)], keypoints=keypoints)
    turned = {encode(1), encode(3)}
    monkeypatch.setattr(
        "input_pipeline.catalog.exif_orientation", lambda image: 6 if image in turned else 1
    )
    errors, warnings, *_ = found(diagnosis.keypoints, survey_of(tiny_config(), split))
    assert not errors and warnings == [
        "set train: 1 images have an EXIF orientation other than 1: train_b; pose tools that read "
        "with OpenCV turn them, this project does not: if their poses are turned, remove the "
        "orientation and make the poses again"
    ]
