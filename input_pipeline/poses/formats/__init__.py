"""One module per pose format: each reads a file or folder into annotations."""

from collections.abc import Callable, Iterator
from pathlib import Path

from input_pipeline.poses.annotation import Annotation
from input_pipeline.poses.formats.alphapose import read_alphapose
from input_pipeline.poses.formats.coco import read_coco
from input_pipeline.poses.formats.kpr import read_kpr
from input_pipeline.poses.formats.mmpose import read_mmpose
from input_pipeline.poses.formats.openpifpaf import read_openpifpaf
from input_pipeline.poses.formats.openpose import read_openpose
from input_pipeline.poses.formats.pgfa import read_pgfa

FORMATS: dict[str, Callable[[Path], Iterator[Annotation]]] = {
    "coco": read_coco,
    "mmpose": read_mmpose,
    "openpose": read_openpose,
    "alphapose": read_alphapose,
    "openpifpaf": read_openpifpaf,
    "kpr": read_kpr,
    "pgfa": read_pgfa,
}
