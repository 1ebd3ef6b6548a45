"""Render a split on all cores; the result does not depend on their number."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2

from input_pipeline.cores import available_cores
from input_pipeline.synthetic.plan import Shot, plan_split
from input_pipeline.synthetic.render import render
from input_pipeline.synthetic.settings import Preset

# Below this number of pixels, starting processes costs more than it saves.
_WORTH_A_PROCESS = 2_000_000
_CHUNK = 16


def render_example(preset: Preset, shot: Shot) -> dict[str, Any]:
    """One example as the data set stores it; the image is an encoded JPEG file."""
    picture = render(preset, shot)
    return {
        "image": picture.jpeg,
        "identity": shot.person,
        "camera": shot.camera,
        "keypoints": picture.keypoints,
        "occlusion": picture.occlusion,
        "filename": shot.filename,
    }


def _begin_worker() -> None:
    """Prepare a worker: it uses one OpenCV thread, and ends with its parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end; after SIGKILL, the pool would not notify its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Renderer:
    """Renders the splits of a data set, with processes that are started once, when first needed.

    Use it as a context manager, or call ``close``.
    """

    def __init__(self, preset: Preset, processes: int | None = None) -> None:
        """Take the data set and the number of processes; the default is one per core.

        With one process, or for a small split, the calling process does the rendering.
        """
        self._preset = preset
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Renderer":
        """The renderer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes and cancel unfinished work."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def split(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield all examples of a split, in the plan's order."""
        shots = plan_split(self._preset, name)
        one = functools.partial(render_example, self._preset)
        if self._count(len(shots)) == 1:
            yield from map(one, shots)
            return
        if self._pool is None:
            # Spawned, not forked: TensorFlow's threads in this process do not survive a fork.
            self._pool = ProcessPoolExecutor(
                self._count(len(shots)),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
            )
        yield from self._pool.map(one, shots, chunksize=_CHUNK)

    def _count(self, images: int) -> int:
        if self._processes is not None:
            return self._processes
        height, width = self._preset.image_shape
        small = self._pool is None and images * height * width < _WORTH_A_PROCESS
        return 1 if small else available_cores()
