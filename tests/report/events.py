"""A reader of TensorBoard's events."""

import io

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def pictures_of(workdir):
    """The pictures of the event files, by step."""
    events = EventAccumulator(str(workdir / "metrics"), {"tensors": 0}).Reload()
    found = {}
    for event in events.Tensors("queries"):
        width, height, png = event.tensor_proto.string_val
        picture = np.asarray(Image.open(io.BytesIO(png)))
        assert picture.shape == (int(height), int(width), 3)
        found[event.step] = picture
    return found
