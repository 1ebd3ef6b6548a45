"""Checks of a data set before training or scoring; they are cheap and decode nothing."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.poses.coordinates import are_fractions, joints_outside, out_of_order, reach
from pgfl_jax.retrieval.protocols import Images

_NAMED = 5  # number of files that a message names
# Of crops of people, 1 % of the joints are beyond 0.85 of the width and 0.95 of the height or so.
_SMALL_REACH = 0.6
_ENOUGH = 10  # posed images; of fewer, all may show half a person


@dataclasses.dataclass
class Findings:
    """The findings of a check, one line each.

    Attributes:
        errors: reasons why training or evaluation cannot work.
        warnings: oddities, which may be intended.
        notes: facts worth knowing that are in order.
    """

    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Append the findings of another check."""
        self.errors += other.errors
        self.warnings += other.warnings
        self.notes += other.notes

    def raise_errors(self) -> None:
        """Raise all errors as one DataError, if there are any."""
        if self.errors:
            raise DataError("; ".join(self.errors))


def check_images(name: str, catalog: Catalog) -> Findings:
    """Find files that are truncated, or neither JPEG nor PNG.

    Args:
        name: of the data set and split, for the messages.
        catalog: the split.
    """
    broken = np.flatnonzero(~catalog.image_sizes.all(axis=1))
    if not broken.size:
        return Findings()
    return Findings(
        errors=[
            f"{name}: {broken.size} files are not complete JPEG or PNG images: "
            f"{some(catalog.filenames[broken])}; replace or remove them, and prepare the data set "
            "again (delete its folder in config.data.data_dir)"
        ]
    )


def check_training(name: str, catalog: Catalog) -> Findings:
    """Find broken images and identities with a single image in a training split.

    Args:
        name: of the data set and split, for the messages.
        catalog: the split.
    """
    findings = check_images(name, catalog)
    counts = np.bincount(catalog.labels)
    single = int((counts == 1).sum())
    if single:
        findings.warnings.append(
            f"{name}: {single} of {len(counts)} identities have a single image; a batch repeats it"
        )
    return findings


def check_poses(
    name: str, catalog: Catalog, pose_files: Sequence[str], threshold: float
) -> Findings:
    """Check that the pose branches have poses to train with.

    It is an error if pose files are given and no pose is drawn; fewer than half are a warning.

    Args:
        name: of the data set and split, for the messages.
        catalog: the training split, with its poses joined.
        pose_files: the files from which poses were joined.
        threshold: lowest confidence that is drawn.
    """
    drawn = int(catalog.drawn(threshold).sum())
    if drawn * 2 >= len(catalog):
        return Findings()
    if drawn:
        return Findings(
            warnings=[
                f"{name}: {drawn:,} of {len(catalog):,} training images have a pose that is drawn; "
                "teachers learn from these alone"
            ]
        )
    if catalog.has_pose.any():
        line = (
            f"{name}: none of the {catalog.has_pose.sum():,} poses is drawn, because no confidence "
            f"reaches config.data.pose.threshold ({threshold:g}); lower it, or give better poses"
        )
        return Findings(errors=[line]) if pose_files else Findings(warnings=[line])
    if pose_files:
        return Findings(
            errors=[
                f"config.data.pose.files: no pose of {', '.join(pose_files)} belongs to an image "
                f"of {name}; make it for this data set (docs/poses.md)"
            ]
        )
    return Findings(
        warnings=[
            f"{name}: no image has a pose, so the main branch alone is trained; give "
            "config.data.pose.files (docs/poses.md), or for the baseline set "
            "config.model.pose_branches=False and config.model.pooling=gap"
        ]
    )


def check_keypoints(name: str, catalog: Catalog) -> Findings:
    """Check that keypoints are pixels of their images, as :func:`check_pixels` does.

    Args:
        name: of the data set and split, for the messages.
        catalog: the split, with its poses joined.
    """
    known = np.flatnonzero(catalog.image_sizes.all(axis=1))
    return check_pixels(
        name,
        catalog.filenames[known],
        catalog.keypoints[known],
        catalog.image_sizes[known],
        "give x, y in pixels of the image file, not of the frame that it was cut from, nor of a "
        "smaller copy",
    )


def check_pixels(
    name: str,
    filenames: Shaped[np.ndarray, " images"],
    keypoints: Float[np.ndarray, "images 17 3"],
    sizes: Int[np.ndarray, "images 2"],
    remedy: str,
) -> Findings:
    """Check that keypoints are pixels of their images.

    Joints below a confidence of 0.2 do not count. These are errors: more than half of the joints
    are outside their images; more than a tenth are, and with x and y swapped less than a quarter of
    these; or all joints of an image are between -1 and 1, in more than 5 % of the images. Less is a
    warning, and so are joints crowded into a corner, as those of smaller copies are, and poses that
    are mostly not upright.

    Args:
        name: of the data set and split, or of the option, for the messages.
        filenames: (N,) names of the images.
        keypoints: (N, 17, 3) x, y, confidence.
        sizes: (N, 2) height, width of the images in pixels.
        remedy: what to do about joints outside their images.
    """
    confident, outside = joints_outside(keypoints, sizes)
    posed = confident.any(axis=1)
    if not posed.any():
        return Findings()
    fractions = np.flatnonzero(are_fractions(keypoints, sizes))
    line = (
        f"{name}: the keypoints of {fractions.size:,} of {posed.sum():,} images are between -1 and "
        f"1: {some(filenames[fractions])}; they are fractions, or -1 for missing joints; give "
        "pixels (OpenPose: --keypoint_scale 0), and confidence 0 for missing joints"
    )
    if fractions.size > 0.05 * posed.sum():
        return Findings(errors=[line])
    findings = Findings(warnings=[line] if fractions.size else [])
    share = outside.sum() / confident.sum()
    swapped = joints_outside(keypoints[..., [1, 0, 2]], sizes)[1].sum() / confident.sum()
    many = f"{name}: {share:.0%} of the confident keypoints are outside their images"
    if share > 0.1 and swapped < share / 4:
        findings.errors.append(
            f"{many}, but {swapped:.0%} with x and y swapped; give x before y, in pixels"
        )
    elif share > 0.5:
        findings.errors.append(f"{many}; {remedy}")
    if findings.errors:
        return findings
    if share > 0.1:
        findings.warnings.append(
            f"{name}: {outside.sum():,} of {confident.sum():,} confident keypoints are outside "
            f"their images: {some(filenames[outside.any(axis=1)])}; {remedy}"
        )
    astray = np.flatnonzero(posed & (outside == confident).all(axis=1))
    if astray.size:
        findings.warnings.append(
            f"{name}: the poses of {astray.size} images are wholly outside them: "
            f"{some(filenames[astray])}; {remedy}"
        )
    if posed.sum() >= _ENOUGH and (shares := reach(keypoints, sizes)).min() < _SMALL_REACH:
        findings.warnings.append(
            f"{name}: 99% of the confident keypoints are in the left {shares[0]:.0%} and the upper "
            f"{shares[1]:.0%} of their images, as if found on smaller copies; {remedy}"
        )
    findings.warnings += _order_warnings(name, filenames, keypoints)
    return findings


def _order_warnings(
    name: str,
    filenames: Shaped[np.ndarray, " images"],
    keypoints: Float[np.ndarray, "images 17 3"],
) -> list[str]:
    """A warning if head, hips and ankles are mixed up in most poses of at least ten."""
    shown, denied = out_of_order(keypoints)
    if shown.sum() < _ENOUGH or denied.sum() * 2 <= shown.sum():
        return []
    return [
        f"{name}: in {denied.sum():,} of {shown.sum():,} poses, head, hips and ankles are not in "
        f"this order from top to bottom: {some(filenames[denied])}; unless these people are not "
        "upright, the joints are in another order than their format's: look at some poses"
    ]


def check_upright(name: str, turned: Shaped[np.ndarray, " images"] | Sequence[str]) -> Findings:
    """Warn that poses of images with an EXIF orientation may be turned.

    Args:
        name: of the data set and split, or of the option, for the messages.
        turned: names of the images whose EXIF orientation is not 1.
    """
    if not len(turned):
        return Findings()
    return Findings(
        warnings=[
            f"{name}: {len(turned):,} images have an EXIF orientation other than 1: "
            f"{some(turned)}; pose tools that read with OpenCV turn them, this project does not: "
            "if their poses are turned, remove the orientation and make the poses again"
        ]
    )


def check_separate(
    train: str,
    train_sha256: Shaped[np.ndarray, " images"] | Sequence[str],
    name: str,
    test: Catalog,
) -> Findings:
    """Find test images that are also training images, by content: their scores mean nothing.

    Args:
        train: the data set and split trained on, for the messages.
        train_sha256: hex digests of its images.
        name: of the test data set and split, for the messages.
        test: a query split or a gallery.
    """
    shared = np.flatnonzero(np.isin(test.image_sha256, train_sha256))
    if not shared.size:
        return Findings()
    return Findings(
        errors=[
            f"test images in training: {shared.size:,} images of {name} are also in {train}: "
            f"{some(test.filenames[shared])}; remove them from one of the two, and prepare that "
            "data set again"
        ]
    )


def known(catalog: Catalog) -> Images:
    """What evaluation knows about a split's images."""
    return Images(catalog.filenames, catalog.identities, catalog.cameras, catalog.occlusion)


def queries_without_match(
    query: Catalog | Images, gallery: Catalog | Images
) -> Int[np.ndarray, " matchless"]:
    """Indices of the queries whose identity does not occur in the gallery under another camera."""
    _, seen = np.unique(
        np.stack([gallery.identities, gallery.cameras], axis=1), axis=0, return_index=True
    )
    pairs = {(gallery.identities[i], gallery.cameras[i]) for i in seen}
    cameras = dict(zip(*np.unique(gallery.identities[seen], return_counts=True), strict=True))
    matchless = [
        cameras.get(identity, 0) - ((identity, camera) in pairs) < 1
        for identity, camera in zip(query.identities, query.cameras, strict=True)
    ]
    return np.flatnonzero(matchless)


def check_protocol(name: str, query: Catalog, gallery: Catalog) -> Findings:
    """Find queries without a possible match; it is an error if no query has one.

    Args:
        name: of the data set and protocol, for the messages.
        query: the query split.
        gallery: the gallery split.
    """
    lonely = queries_without_match(query, gallery)
    if not lonely.size:
        return Findings()
    line = (
        f"{name}: {lonely.size} of {len(query)} queries have no match from another camera in the "
        f"gallery: {some(query.filenames[lonely])}"
    )
    if lonely.size < len(query):
        return Findings(warnings=[f"{line}; they are left out of the scores"])
    return Findings(errors=[f"{line}; look at the identities and cameras of both splits"])


def check_teachers(name: str, query: Catalog, gallery: Catalog, threshold: float) -> Findings:
    """Check that teachers, which need poses, can be scored on a protocol.

    Args:
        name: of the data set and protocol, for the messages.
        query: the query split, with its poses joined.
        gallery: the gallery split, likewise.
        threshold: lowest confidence that is drawn.
    """
    drawn = [split.drawn(threshold) for split in (query, gallery)]
    counts = (
        f"{drawn[0].sum()} of {len(query)} queries and {drawn[1].sum()} of {len(gallery)} gallery "
        f"images have a pose that is drawn (config.data.pose.threshold={threshold:g})"
    )
    posed = [known(c).select(mask) for c, mask in zip((query, gallery), drawn, strict=True)]
    if len(queries_without_match(*posed)) == len(posed[0]):
        return Findings(
            errors=[
                f"{name}: {counts}, and no match among them, so that no teacher can be scored; "
                "give config.data.pose.files (docs/poses.md), or score main alone with "
                "config.eval.embeddings"
            ]
        )
    if all(mask.all() for mask in drawn):
        return Findings()
    return Findings(warnings=[f"{name}: {counts}; teachers are scored on these alone"])


def some(names: Shaped[np.ndarray, " names"] | Sequence[str]) -> str:
    """The first five names, with an ellipsis if there are more.

    >>> some(np.array(["a", "b"])), some(np.arange(9))
    ('a, b', '0, 1, 2, 3, 4, …')
    """
    more = ", …" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more
