"""What a forward pass of PGFL returns, by name."""

from typing import NamedTuple

from jaxtyping import Array, Float


class BranchOutputs(NamedTuple):
    """One branch of the network.

    Attributes:
        embedding: (B, D) pooled feature before the BNNeck, for the triplet loss.
        neck: (B, D) output of the BNNeck; L2-normalised it is the retrieval embedding.
        logits: (B, N rounded up) identity logits from ``neck``, -inf in the padding columns; None
            with ``train=False``, where the function contains no classifier.
    """

    embedding: Float[Array, "batch channels"]
    neck: Float[Array, "batch channels"]
    logits: Float[Array, "batch identities"] | None


class PGFLOutputs(NamedTuple):
    """All branches.

    Attributes:
        features: (B, h, w, C) feature map of the shared trunk.
        main: the main branch (MB), the only one at test time.
        foreground: the foreground-enhanced branch (FEB); None without pose.
        parts: the semantics-aligned branch (SAB); None without pose.
        cross_logits: MB's neck classified by the classifiers of FEB and SAB, each (B, N rounded
            up); None unless the interaction variant is ``cross_classifier``.
        map_logits: (B, h, w, P) logits of the maps that MB predicts and pools with, one per part or
            of the foreground alone; None unless its pooling is a predicted one.
        main_features: (B, h, w, C) the map that MB pools; None if it is the trunk's.
    """

    features: Float[Array, "batch height width channels"]
    main: BranchOutputs
    foreground: BranchOutputs | None
    parts: BranchOutputs | None
    cross_logits: tuple[Float[Array, "batch identities"], Float[Array, "batch identities"]] | None
    map_logits: Float[Array, "batch height width maps"] | None = None
    main_features: Float[Array, "batch height width channels"] | None = None
