"""Draw a contact sheet of the synthetic data set.

python -m input_pipeline.synthetic --preview sheet.png
python -m input_pipeline.synthetic --preview query.png --split query --preset benchmark
"""

import argparse
import os
import sys

from input_pipeline.synthetic.plan import SPLITS
from input_pipeline.synthetic.settings import PRESETS
from pgfl_jax.command_line import guarded


def main() -> None:
    """Parse the flags and write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthetic", description=__doc__)
    parser.add_argument(
        "--preview",
        metavar="FILE",
        required=True,
        type=os.path.expanduser,
        help="picture file to write",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--people", type=int, default=8, help="rows: how many people")
    parser.add_argument("--images", type=int, default=5, help="columns: pictures of each person")
    flags = parser.parse_args()
    if flags.people < 1 or flags.images < 1:
        parser.error("--people and --images must be at least 1")

    from input_pipeline.synthetic.preview import save_contact_sheet

    preset = PRESETS[flags.preset]
    save_contact_sheet(flags.preview, preset, flags.split, flags.people, flags.images)
    print(f"wrote {flags.preview}")


if __name__ == "__main__":
    sys.exit(guarded(main))
