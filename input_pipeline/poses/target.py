"""Which of the people in an image is its subject."""

import numpy as np
from jaxtyping import Float

CONFIDENT = 0.2  # joints below this do not count, as in the part maps of training


def choose_target(people: Float[np.ndarray, "people 17 3"], height: int, width: int) -> int:
    """The person with the most confident joints nearest the image's centre.

    Each person scores Σ c · max(0, 1 - d) over the joints of confidence c ≥ 0.2. d is the distance
    to the centre, across in half widths and down in half heights: 1 at the middle of each border.

    Args:
        people: (P, 17, 3) x, y, confidence; at least one person.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The index of the highest score; of equal scores, the first.

    >>> people = np.ones((2, 17, 3))
    >>> people[1, :, :2] = [15, 31]  # the centre of a 64 × 32 image
    >>> choose_target(people, 64, 32)
    1
    """
    half = np.maximum([width, height], 1) / 2
    distance = np.linalg.norm((people[..., :2] + 0.5) / half - 1.0, axis=-1)
    confidence = people[..., 2]
    scores = np.where(confidence >= CONFIDENT, confidence * np.maximum(0, 1 - distance), 0)
    return int(scores.sum(axis=1).argmax())
