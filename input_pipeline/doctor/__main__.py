"""Examine the data of a configuration before training.

python -m input_pipeline.doctor --config=configs/X.py [--config.a.b=...] [--output=PAGE.html]

Every image is decoded, every protocol checked. Tables, warnings and a verdict are printed; a page
shows them with sample images and their poses. The exit status is 1 if training or evaluation cannot
work with these data, else 0.
"""

from pathlib import Path

from absl import flags, logging

from pgfl_jax.command_flags import define_config, define_path
from pgfl_jax.command_line import run, writable_folder
from pgfl_jax.config import Config, parse_config
from pgfl_jax.errors import UserError


def define_flags() -> None:
    """The options."""
    define_config(None)
    define_path(
        "output",
        None,
        "The page to write; by default runs/doctor/DATASET.html, with - for / and + between sets.",
    )


def main(argv: list[str]) -> int:
    """Examine the data that the flags name; returns the exit status."""
    if argv[1:]:
        raise UserError(f"no bare arguments, please: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # TFDS logs its preparations
    return examine(parse_config(flags.FLAGS.config), flags.FLAGS.output)


def examine(config: Config, output: str | None = None) -> int:
    """Print the diagnosis and write the page.

    Args:
        config: what to look at.
        output: path of the page; None for a name after its data sets.

    Returns:
        1 if training or evaluation cannot work, else 0.

    Raises:
        UserError: ``output`` is a folder, or its folder cannot be written to.
        OSError: the page cannot be written.
    """
    path = Path(output or default_page(config))
    if path.is_dir():
        raise UserError(f"--output={path}: is a folder; name a file")
    if path.suffix not in (".html", ".htm"):  # it may be a table's name, which would be overwritten
        raise UserError(f"--output={path}: must end in .html")
    writable_folder(path.parent, "--output")

    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # nothing here needs one

    from input_pipeline.doctor.diagnosis import diagnose
    from input_pipeline.doctor.html import write_page
    from input_pipeline.doctor.text import format_text

    diagnosis = diagnose(config)
    print(format_text(diagnosis))
    write_page(diagnosis, path)
    print(f"page: {path}")
    return 1 if diagnosis.findings.errors else 0


def default_page(config: Config) -> str:
    """The page's path, after all data sets that it shows: none replaces the page of others."""
    names = dict.fromkeys((config.data.dataset, *config.eval.datasets))
    return f"runs/doctor/{'+'.join(names).replace('/', '-')}.html"


if __name__ == "__main__":
    define_flags()
    run(main, required=["config"])
