"""What a forward pass of PGFL returns, by name."""

from typing import NamedTuple

from jaxtyping import Array, Float


class BranchOutputs(NamedTuple):
    """One branch of the network.

    Attributes:
        embedding: (B, D) pooled feature before the BNNeck; the triplet loss works on it.
        neck: (B, D) output of the BNNeck; L2-normalised it is the retrieval embedding.
        logits: (B, N rounded up) identity logits from ``neck``, -inf in the columns that only
            fill up; None when the model runs with
            ``train=False``, where no classifier is part of the function.
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
        cross_logits: MB's neck classified by the heads of FEB and SAB, each (B, N); only with
            the interaction variant ``cross_classifier``, else None.
    """

    features: Float[Array, "batch height width channels"]
    main: BranchOutputs
    foreground: BranchOutputs | None
    parts: BranchOutputs | None
    cross_logits: tuple[Float[Array, "batch identities"], Float[Array, "batch identities"]] | None
