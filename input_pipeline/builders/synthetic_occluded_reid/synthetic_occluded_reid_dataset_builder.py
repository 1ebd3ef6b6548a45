"""TFDS builder of the synthetic data set: rendered here, nothing is downloaded."""

import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.builders.beam_option import BeamOption, Example
from input_pipeline.progress import progress
from input_pipeline.synthetic.plan import SPLITS, Shot, plan_split
from input_pipeline.synthetic.pool import Renderer, render_example
from input_pipeline.synthetic.settings import PRESETS, KeypointNoise, Preset, SceneConfig

# The errors of a pose estimator on small, occluded people.
ESTIMATOR_LIKE = KeypointNoise(std=0.02, joint_dropout=0.08, hallucination=0.1, pose_dropout=0.03)


@dataclasses.dataclass(eq=False)
class SyntheticConfig(tfds.core.BuilderConfig):
    """A preset by name, with optional changes.

    The last number of the version is a fingerprint of all settings, so data rendered with other
    settings are never mistaken for these.

    Attributes:
        preset: key of ``PRESETS``.
        scene: the difficulty of the pictures; None for the preset's own.
        noise: the errors of the pose annotations; None for the preset's own.
    """

    preset: str = "tiny"
    scene: SceneConfig | None = None
    noise: KeypointNoise | None = None

    def __post_init__(self) -> None:
        """Derive the version from the settings."""
        self.version = tfds.core.Version(f"1.0.{self.resolved().fingerprint()}")

    def resolved(self) -> Preset:
        """The preset with the changes applied."""
        preset = PRESETS[self.preset]
        return dataclasses.replace(
            preset, scene=self.scene or preset.scene, noise=self.noise or preset.noise
        )


class Builder(BeamOption, tfds.core.GeneratorBasedBuilder):
    """Procedural pedestrians under occlusion, with exact poses."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        SyntheticConfig(name="tiny", preset="tiny", description="For tests: 24 people, 64x32."),
        SyntheticConfig(name="demo", preset="demo", description="228 people, 128x64."),
        SyntheticConfig(
            name="demo_validation",
            preset="demo_validation",
            description="100 more people as queries and gallery, for choices.",
        ),
        SyntheticConfig(
            name="benchmark", preset="benchmark", description="Occluded-Duke's size, 256x128."
        ),
        SyntheticConfig(
            name="tiny_noisy",
            preset="tiny",
            noise=ESTIMATOR_LIKE,
            description="tiny with estimator-like poses.",
        ),
        SyntheticConfig(
            name="demo_noisy",
            preset="demo",
            noise=ESTIMATOR_LIKE,
            description="demo with estimator-like poses.",
        ),
    )
    PROTOCOLS = types.MappingProxyType({"occluded": "query", "holistic": "query_holistic"})
    builder_config: SyntheticConfig

    def _info(self) -> tfds.core.DatasetInfo:
        preset = self.builder_config.resolved()
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(*preset.image_shape, 3), encoding_format="jpeg"
                ),
                "identity": tfds.features.Scalar(np.int64),
                "camera": tfds.features.Scalar(np.int64),
                "keypoints": tfds.features.Tensor(shape=(17, 3), dtype=np.float32),
                "occlusion": tfds.features.Scalar(np.float32),
                "filename": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural pedestrians under occlusion, seen by six cameras.",
            features=features,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # everything is drawn here
        preset = self.builder_config.resolved()
        splits = SPLITS if preset.train_images else SPLITS[1:]
        if self.beam_wanted:
            render = functools.partial(_keyed_example, preset)
            return {
                split: self.examples(split, plan_split(preset, split), render) for split in splits
            }
        renderer = Renderer(preset)
        return {split: self._generate_examples(renderer, split) for split in splits}

    def _generate_examples(self, renderer: Renderer, split: str) -> Iterator[Example]:
        total = len(plan_split(self.builder_config.resolved(), split))
        shown = progress(renderer.split(split), split, total=total, unit=" images")
        for example in shown:
            yield example["filename"], example
        if split == SPLITS[-1]:  # TFDS writes the splits in this order
            renderer.close()


def _keyed_example(preset: Preset, shot: Shot) -> Example:
    example = render_example(preset, shot)
    return example["filename"], example
