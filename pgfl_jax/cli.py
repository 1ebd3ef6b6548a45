"""``pgfl COMMAND RUN …``: what people do with a trained run.

Each command is a function of its parsed arguments that returns the exit status; `COMMANDS` is the
table. Training is ``main.py`` in a clone of the repository.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

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
    if rest and arguments.command not in ("evaluate", "export"):  # their overrides are main.py's
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
    if not _PROGRAM.is_file():
        raise UserError(
            "pgfl evaluate reads data sets, which the wheel cannot: clone the repository and run "
            "pip install -e '.[train]' there"
        )
    _run_main("--mode=evaluate", f"--workdir={arguments.run}", *arguments.rest)


_PROGRAM = Path(__file__).parents[1] / "main.py"


def _run_main(*options: str) -> NoReturn:
    """Become the repository's ``main.py``."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(_PROGRAM), *options])


def export(arguments: argparse.Namespace) -> int:
    """Write a run's main branch in the formats of other runtimes, and verify each.

    In a clone with the extra [train] the models are verified and scored on the run's test set too;
    this is then its ``main.py --mode=export``, and options of the configuration may follow. The
    wheel alone, and ``--pictures``, verify on procedural pictures and on those given.
    """
    given = {name: getattr(arguments, name) for name in _EXPORT_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if _PROGRAM.is_file() and not arguments.pictures:
        options = [f"--{name}={value}" for name, value in given.items()]
        _run_main("--mode=export", f"--workdir={arguments.run}", *options, *arguments.rest)
    if arguments.rest:
        raise UserError(f"{arguments.rest[0]}: only where the test set is read, without --pictures")
    from pgfl_jax.export.command import Request, export_run

    return export_run(Request(arguments.run, **given), pictures=arguments.pictures)


_EXPORT_OPTIONS = ("formats", "out", "contract", "checkpoint", "parameters")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _info_arguments(parser)
    parser.add_argument(
        "--formats", help="with commas: stablehlo,onnx,saved_model,torch,litert; default: onnx"
    )
    parser.add_argument("--out", type=user_path, help="default: export in the run's folder")
    parser.add_argument("--contract", help="uint8_nhwc (default), float255_nchw or normalised_nchw")
    parser.add_argument("--checkpoint", type=_checkpoint, help="newest (default), best or a step")
    parser.add_argument("--parameters", choices=("trained", "average"), help="default: trained")
    parser.add_argument(
        "--pictures", type=user_path, help="folder with pictures to verify on, not the test set"
    )


def verify(arguments: argparse.Namespace) -> int:
    """Check an exported artifact again, with the runtimes that are installed.

    Its files are compared with their digests, its graph with the main branch's size, and its
    embeddings with JAX's, on the pictures that it contains. The exit status is 1 if anything is
    wrong, or if no runtime could be tried.
    """
    from pgfl_jax.export.verify import verify as check

    wrong = 0
    for finding in check(arguments.artifact, run=arguments.run, python=arguments.python):
        word = {True: "ok", False: "WRONG", None: "skipped"}[finding.passed]
        print(f"{word:<8}{finding.line}", flush=True)
        wrong += finding.passed is False
    return min(wrong, 1)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=user_path, metavar="DIR", help="the artifact's folder")
    parser.add_argument("--run", type=user_path, help="the run that it must be of")
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter that has the runtimes"
    )


COMMANDS: Mapping[str, tuple[Callable[..., int], Callable[[argparse.ArgumentParser], None]]] = {
    "info": (info, _info_arguments),
    "embed": (embed, _embed_arguments),
    "evaluate": (evaluate, _info_arguments),
    "export": (export, _export_arguments),
    "verify": (verify, _verify_arguments),
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
