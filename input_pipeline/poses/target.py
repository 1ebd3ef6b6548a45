"""Which of several people is the one that the image is of."""

import numpy as np

CONFIDENT = 0.2  # as in the training's part maps, joints below this do not count


def choose_target(people: np.ndarray, height: int, width: int) -> int:
    """The person with the most confident joints nearest the image's centre.

    Each person scores Σ c · max(0, 1 - d) over the joints of confidence c ≥ 0.2. d is the distance
    to the centre, across in half widths and down in half heights: 1 at the middle of each border.

    Args:
        people: (P, 17, 3) x, y, confidence; at least one person.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The index of the highest score, the first of equal ones.
    """
    half = np.maximum([width, height], 1) / 2
    distance = np.linalg.norm((people[..., :2] + 0.5) / half - 1.0, axis=-1)
    confidence = people[..., 2]
    scores = np.where(confidence >= CONFIDENT, confidence * np.maximum(0, 1 - distance), 0)
    return int(scores.sum(axis=1).argmax())
