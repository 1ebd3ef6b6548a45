"""PGFL-KD: one trunk, a main branch for test time and two pose-guided teachers for training."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.models.batch_norm import fold
from pgfl_jax.models.bnneck import BNNeck
from pgfl_jax.models.branches import (
    EPSILON,
    NUM_PARTS,
    AveragePooling,
    ClassToken,
    ContextPooling,
    GeneralizedMeanPooling,
    PredictedPooling,
    part_pooling,
    pose_mask,
)
from pgfl_jax.models.classifier import Classifier
from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs


class PGFL(nn.Module):
    """Pose-guided feature learning with knowledge distillation (docs/method.md, "Branches").

    Attributes:
        num_identities: classes of the identity classifiers.
        backbone: a name in :data:`pgfl_jax.models.backbones.BACKBONES`.
        pooling: MB's pooling: ``gap``, ``gem``, ``context`` (a plain mean of features that have
            seen their neighbourhood), or by a map that it predicts: ``foreground``, ``parts``; or
            ``cls``, the trunk's class token instead.
        pose_branches: False for the baseline: MB alone, in training too.
        interaction: how the branches train one another; ``shared_classifier`` gives all branches
            MB's classifier, ``cross_classifier`` adds MB's logits from the teachers' classifiers;
            the other variants change no module.
        dtype: of the computation in trunk and classifiers, and in the 3×3 convolution that predicts
            maps; None: the parameters' dtype. Pooling, BNNecks and logits are at least float32.
        remat: what the backward pass recomputes: a name in
            :data:`pgfl_jax.models.backbones.REMAT_POLICIES`, or ``none``.
        drop_path: as the backbone's attribute of that name. Above 0, training needs a key
            ``drop_path``.
    """

    num_identities: int
    backbone: str
    pooling: str = "gap"
    pose_branches: bool = True
    interaction: str = "off"
    dtype: DTypeLike | None = None
    remat: str = "none"
    drop_path: float = 0.0

    def setup(self) -> None:
        """Declare the modules; a module that a call does not use gets no parameters."""
        trunk = BACKBONES[self.backbone].copy(dtype=self.dtype, remat=self.remat)
        self.trunk = trunk.copy(drop_path=self.drop_path) if self.drop_path else trunk
        self.main_pooling = {
            "gap": AveragePooling(),
            "gem": GeneralizedMeanPooling(),
            "context": ContextPooling(self.dtype),
            "foreground": PredictedPooling(1, self.dtype),
            "parts": PredictedPooling(NUM_PARTS, self.dtype),
            "cls": ClassToken(),
        }[self.pooling]
        self.main_neck, self.foreground_neck, self.parts_neck = BNNeck(), BNNeck(), BNNeck()
        self.main_classifier = self._classifier()
        shared = self.interaction == "shared_classifier"
        self.foreground_classifier = self.main_classifier if shared else self._classifier()
        self.parts_classifier = self.main_classifier if shared else self._classifier()

    def _classifier(self) -> Classifier:
        return Classifier(self.num_identities, self.dtype)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width 3"],
        pose_maps: Float[Array, "batch height width parts"] | None = None,
        visibility: Float[Array, "batch parts"] | None = None,
        *,
        train: bool,
    ) -> PGFLOutputs:
        """Run the branches.

        Args:
            images: (B, H, W, 3), normalised.
            pose_maps: (B, h, w, G) part maps in [0, 1] at the resolution of the feature map; None
                runs MB alone.
            visibility: (B, G) part visibility in [0, 1]; given with ``pose_maps``.
            train: True: batch statistics, with classifiers; False: running statistics, without.

        Returns:
            The named outputs. Rows without a pose (visibility all 0) do not count in the batch
            statistics of FEB and SAB; their outputs there are meaningless.
        """
        features, token = self._features(images, train)
        precision = jnp.promote_types(features.dtype, jnp.float32)
        pooled = features.astype(precision)
        of_main = pooled if token is None else token.astype(precision)
        embedding, seen, map_logits, own = self.main_pooling(of_main)
        main = self._branch(embedding, self.main_neck, self.main_classifier, seen, train)
        if pose_maps is None or visibility is None or not self.pose_branches:
            return PGFLOutputs(features, main, None, None, None, map_logits, own)

        has_pose = pose_mask(visibility)
        foreground = self._branch(
            part_pooling(pooled, jnp.max(pose_maps, axis=-1, keepdims=True)),
            self.foreground_neck,
            self.foreground_classifier,
            has_pose,
            train,
        )
        parts = self._branch(
            part_pooling(pooled, pose_maps),
            self.parts_neck,
            self.parts_classifier,
            (visibility > 0).astype(pooled.dtype),
            train,
        )
        cross_logits = None
        if train and self.interaction == "cross_classifier":
            cross_logits = (
                self.foreground_classifier(main.neck),
                self.parts_classifier(main.neck),
            )
        return PGFLOutputs(features, main, foreground, parts, cross_logits, map_logits, own)

    def _features(self, images: Array, train: bool) -> tuple[Array, Array | None]:
        """The trunk's map; and its class token, if MB takes it."""
        trunk: Any = self.trunk
        if self.pooling == "cls":
            return trunk.with_class_token(images, train=train)
        return trunk(images, train=train), None

    def _branch(
        self,
        embedding: Array,
        neck: BNNeck,
        classifier: Classifier,
        mask: Array | None,
        train: bool,
    ) -> BranchOutputs:
        normalised = neck(embedding, mask, train=train)
        return BranchOutputs(embedding, normalised, classifier(normalised) if train else None)


def main_branch(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that the test-time function needs: trunk, MB's pooling and BNNeck.

    The pose branches and classifiers are left out;
    ``model.apply(main_branch(variables), images, train=False).main`` runs on images alone.
    """
    needed = ("trunk", "main_pooling", "main_neck")
    return {
        collection: {name: tree for name, tree in variables[collection].items() if name in needed}
        for collection in ("params", "batch_stats")
    }


def folded(variables: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """The same function in evaluation, with the trunk's BatchNorms inside its convolutions."""
    params, averages = dict(variables["params"]), dict(variables["batch_stats"])
    if "trunk" in averages:
        params["trunk"] = fold(params["trunk"], averages.pop("trunk"), dtype)
    return {"params": params, "batch_stats": averages}


def unit_length(neck: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
    """The retrieval embedding: BNNeck outputs scaled to unit Euclidean length."""
    return neck / jnp.maximum(jnp.linalg.norm(neck, axis=-1, keepdims=True), EPSILON)
