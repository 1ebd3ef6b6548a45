"""``pgfl COMMAND RUN …``: what people do with a trained run.

Each command is a function of its parsed arguments that returns the exit status; `COMMANDS` is the
table. Training is ``main.py`` in a clone of the repository.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import pgfl_jax
from pgfl_jax.command_line import guarded, user_path
from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one command; a user's error is one line, exit status 1."""
    try:
        return guarded(lambda: _run(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="pgfl", description="Use a trained PGFL-JAX run.")
    parser.add_argument("--version", action="version", version=pgfl_jax.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (function, add_arguments) in COMMANDS.items():
        summary, _, description = (function.__doc__ or "").partition("\n\n")
        command = commands.add_parser(name, help=summary, description=f"{summary} {description}")
        add_arguments(command)
        command.set_defaults(function=function)
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "evaluate":  # its overrides are main.py's
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    return arguments.function(arguments)


def info(arguments: argparse.Namespace) -> int:
    """Show the network, data, checkpoints and scores of a run."""
    from pgfl_jax.report.summary import describe_run

    print(describe_run(arguments.run))
    return 0


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="the run's folder")


def embed(arguments: argparse.Namespace) -> int:
    """Embed pictures with the main branch, from images alone.

    The .npz holds ``embeddings`` (N, D) float32 of unit length and ``filenames`` (N,), relative to
    the folder where one folder is given. Linked folders are followed, and files that are no
    pictures by their names counted. Pictures that cannot be read and broken links are listed and
    left out; the exit status is then 1.
    """
    from pgfl_jax.preprocessing import list_pictures

    pictures: list[Path] = []
    names: list[str] = []
    num_others = 0
    for given in arguments.pictures:
        found, others = list_pictures(given) if given.is_dir() else ([given], [])
        pictures += found
        num_others += len(others)
        only = given.is_dir() and len(arguments.pictures) == 1
        names += [str(path.relative_to(given) if only else path) for path in found]
    _check_output(arguments.out)
    embedder = pgfl_jax.load(
        arguments.run,
        checkpoint=arguments.checkpoint,
        parameters=arguments.parameters,
        dtype=arguments.dtype,
    )
    unreadable: list[Exception] = []
    rows = embedder(pictures, batch_size=arguments.batch_size, on_unreadable=unreadable.append)
    readable = ~np.isnan(rows[:, 0])
    if not readable.any():
        raise UserError(f"none of {len(pictures)} pictures can be read; the first: {unreadable[0]}")
    with replacing(arguments.out) as path, path.open("wb") as file:
        np.savez(file, embeddings=rows[readable], filenames=np.asarray(names)[readable])
    if num_others:
        one, many = (
            "file that is no picture by its name",
            "files that are no pictures by their names",
        )
        print(f"left out: {num_others} {one if num_others == 1 else many}", file=sys.stderr)
    for error in unreadable:
        print(f"warning: left out: {error}", file=sys.stderr)
    print(f"{arguments.out}: {readable.sum()} embeddings of {embedder.dim} numbers")
    return 1 if unreadable else 0


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures", nargs="+", type=user_path, metavar="PICTURES", help="picture files or folders"
    )
    parser.add_argument("--run", required=True, type=user_path, help="the run's folder")
    parser.add_argument("--out", required=True, type=user_path, help="the .npz file to write")
    parser.add_argument(
        "--checkpoint", default="newest", type=_checkpoint, help="newest (default), best or a step"
    )
    parser.add_argument(
        "--parameters", default="trained", choices=("trained", "average"), help="default: trained"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the arithmetic; default: the run's"
    )
    parser.add_argument("--batch-size", type=int, help="default: 64 per device")


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a run on its test sets again, or on others.

    Reading data sets needs the repository and the extra [train]; this is its
    ``main.py --mode=evaluate``. Options that may be changed follow the run:
    ``--config.eval.checkpoint=best``, ``--config.eval.datasets="('occluded_reid',)"``,
    ``--config.data.data_dir=DIR``, ``--config.mesh.…``.
    """
    program = Path(__file__).parents[1] / "main.py"
    if not program.is_file():
        raise UserError(
            "pgfl evaluate reads data sets, which the wheel cannot: clone the repository and run "
            "pip install -e '.[train]' there"
        )
    workdir = f"--workdir={arguments.run}"
    command = [sys.executable, str(program), "--mode=evaluate", workdir, *arguments.rest]
    sys.stdout.flush()
    os.execv(sys.executable, command)


COMMANDS: Mapping[str, tuple[Callable[..., int], Callable[[argparse.ArgumentParser], None]]] = {
    "info": (info, _info_arguments),
    "embed": (embed, _embed_arguments),
    "evaluate": (evaluate, _info_arguments),
}


def _checkpoint(text: str) -> str | int:
    if text in ("newest", "best"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not newest, best or a step") from None


def _check_output(path: Path) -> None:
    """UserError if the file cannot be written; called before any work is done for it."""
    if path.suffix != ".npz":
        raise UserError(f"--out={path}: must end in .npz")
    if not path.parent.is_dir():
        raise UserError(f"--out={path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"--out={path}: is a folder; give a file")


if __name__ == "__main__":
    sys.exit(main())
