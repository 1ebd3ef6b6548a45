"""Make the pose file that training reads, from pose files or with a pose model (docs/poses.md).

python -m input_pipeline.poses import --format openpose --input DIR --dataset NAME --output F.npz
python -m input_pipeline.poses estimate --model pose.onnx --dataset NAME --output F.npz
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from input_pipeline.builders import other_source, prepared_builder
from input_pipeline.catalog import Catalog
from input_pipeline.poses.cache import is_pose_file, write_poses
from input_pipeline.poses.coverage import Coverage, coverage, format_coverage, write_left_over
from input_pipeline.poses.crop import Preprocessing
from input_pipeline.poses.estimate import estimate_poses
from input_pipeline.poses.formats import FORMATS
from input_pipeline.poses.formats.coco import read_coco
from input_pipeline.poses.images import images_of, read_catalogs
from input_pipeline.poses.importing import build_cache, join
from input_pipeline.poses.model import PoseModel
from input_pipeline.validation import check_upright
from pgfl_jax.command_line import guarded, user_path, writable_folder
from pgfl_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit status."""
    try:
        return guarded(lambda: _run(argv), lambda line: line.replace("--config.data.", "--"))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    """Make the file and say what it holds."""
    flags = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # TFDS warns that a user's table is not one of its sets
    if flags.output.is_dir():
        raise UserError(f"--output={flags.output}: is a folder; name a file")
    if flags.output.suffix != ".npz":  # it may be a table's name, which would be overwritten
        raise UserError(f"--output={flags.output}: must end in .npz")
    if flags.output.exists() and not is_pose_file(flags.output):
        raise UserError(f"--output={flags.output}: is no pose file; name another one, or delete it")
    writable_folder(flags.output.parent, "--output")
    found = flags.run(flags)
    print(format_coverage(found, _left_over_file(flags.output)))
    print(f"wrote {flags.output}")
    return 0


def _left_over_file(output: Path) -> Path:
    """The file that lists everything left over."""
    return output.with_name(output.name + ".unmatched.txt")


def _import(flags: argparse.Namespace) -> Coverage:
    """Import pose files."""
    if flags.annotations is not None and flags.format != "coco":
        raise UserError("--annotations: belongs to --format coco")
    if not flags.input.exists():
        raise UserError(f"--input={flags.input}: no such file or folder")
    catalogs = _catalogs(flags)
    images = images_of(catalogs)
    path = Path(os.path.abspath(flags.input))
    root = path if path.is_dir() else path.parent
    if flags.annotations is not None:
        read = read_coco(flags.input, flags.annotations)
    else:
        read = FORMATS[flags.format](flags.input)
    annotations = list(read)
    if not annotations:
        raise UserError(f"--input={flags.input}: it contains no pose")
    joined = join(images, annotations, root.as_posix())
    cache, warnings = build_cache(
        images,
        joined,
        estimator=flags.estimator or flags.format,
        seen_size=flags.seen_size and tuple(flags.seen_size),
        keep_distractors=flags.keep_distractors,
    )
    turned = np.concatenate([catalog.turned for catalog in catalogs.values()])
    warnings += check_upright("--dataset", images.filenames[turned]).warnings
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    found = coverage(images, cache, joined)
    write_poses(flags.output, cache)
    write_left_over(found, _left_over_file(flags.output))
    return found


def _catalogs(flags: argparse.Namespace) -> dict[str, Catalog]:
    """The data set's splits; a warning if it was prepared from another ``--manual_dir``."""
    builder = prepared_builder(flags.dataset, flags.data_dir, flags.manual_dir)
    if other := other_source(builder, flags.manual_dir):
        print(f"warning: {other}", file=sys.stderr)
    return read_catalogs(builder)


def _estimate(flags: argparse.Namespace) -> Coverage:
    """Estimate poses."""
    size = flags.input_size and tuple(flags.input_size)
    model = PoseModel(flags.model, size, udp=flags.udp)
    preprocessing = Preprocessing(
        *model.size,
        mean=tuple(flags.mean),
        std=tuple(flags.std),
        padding=flags.padding,
        bgr=flags.bgr,
    )
    catalogs = _catalogs(flags)
    cache, undecodable = estimate_poses(
        catalogs,
        model,
        preprocessing,
        batch_size=flags.batch,
        estimator=flags.estimator or model.estimator,
    )
    found = coverage(images_of(catalogs), cache, undecodable=undecodable)
    write_poses(flags.output, cache)
    write_left_over(found, _left_over_file(flags.output))
    return found


def _parser() -> argparse.ArgumentParser:
    """Both commands."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.poses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{import,estimate}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dataset", required=True, help="folder[/config] of input_pipeline/builders"
    )
    shared.add_argument(
        "--data_dir",
        default="data",
        type=os.path.expanduser,
        help="where prepared data sets are kept",
    )
    shared.add_argument(
        "--manual_dir",
        default="",
        type=os.path.expanduser,
        help="folder or zip of the data set as published",
    )
    shared.add_argument("--output", required=True, type=user_path, help="the .npz file to write")
    shared.add_argument("--estimator", help="name kept with each pose")
    _add_import(commands.add_parser("import", parents=[shared], help="from pose files"))
    _add_estimate(commands.add_parser("estimate", parents=[shared], help="with a pose model"))
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    """The options of import."""
    parser.set_defaults(run=_import)
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--input", required=True, type=user_path, help="pose file or folder")
    parser.add_argument(
        "--annotations", type=user_path, help="COCO file that names the image numbers"
    )
    parser.add_argument(
        "--seen-size",
        nargs=2,
        type=_positive(int),
        metavar=("HEIGHT", "WIDTH"),
        help="size to which the images were resized for the estimator",
    )
    parser.add_argument(
        "--keep-distractors", action="store_true", help="keep the people who are not the target"
    )


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    """The options of estimate."""
    parser.set_defaults(run=_estimate)
    parser.add_argument("--model", required=True, type=user_path, help="ONNX file")
    parser.add_argument(
        "--input-size",
        nargs=2,
        type=_positive(int),
        metavar=("HEIGHT", "WIDTH"),
        help="of the model's input, if the model leaves it open",
    )
    parser.add_argument("--batch", type=_positive(int), default=32, help="images per run")
    default = Preprocessing(1, 1)
    parser.add_argument(
        "--padding", type=_positive(float), default=default.padding, help="box / image"
    )
    for name, kind in (("mean", float), ("std", _positive(float))):
        parser.add_argument(
            f"--{name}",
            nargs=3,
            type=kind,
            default=getattr(default, name),
            help="per channel, for values of 0 … 255",
        )
    parser.add_argument("--bgr", action="store_true", help="the model's channels are B, G, R")
    parser.add_argument(
        "--udp", action="store_true", help="heat maps in UDP's convention (ViTPose)"
    )


def _positive(kind: type):
    """A parser of numbers above zero."""

    def parse(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
