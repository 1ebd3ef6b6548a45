"""``pgfl COMMAND RUN …``: what people do with a trained run.

Each command is a function of its parsed arguments that returns the exit status; `COMMANDS` is the
table. Training is ``main.py`` in a clone of the repository.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pgfl_jax
from pgfl_jax.command_line import guarded, user_path
from pgfl_jax.errors import UserError


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
    # The overrides of some commands are those of main.py.
    if rest and arguments.command not in ("evaluate", "export", "report"):
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
    """Embed pictures with the main branch, from images alone, into a gallery file.

    The Parquet file holds ``path``, ``identity`` and ``camera`` where a table gives them, and
    ``embedding``: float32 numbers, of length 1. An interrupted command goes on where it was when
    it is given again. Linked folders are followed, and files that are no pictures by their names
    counted. Pictures that cannot be read and broken links are listed and left out; the exit status
    is then 1.
    """
    from pgfl_jax.retrieval.search.embedding import check_output, embed_gallery, notes
    from pgfl_jax.retrieval.search.gallery import Origin
    from pgfl_jax.retrieval.search.pictures import find_pictures

    held = check_output(arguments.out, add=arguments.add)
    found = find_pictures(arguments.pictures)
    embedder = pgfl_jax.load(
        arguments.run,
        checkpoint=arguments.checkpoint,
        parameters=arguments.parameters,
        dtype=arguments.dtype,
    )
    origin = Origin.of(embedder, arguments.run)
    done = embed_gallery(
        embedder, found.pictures, arguments.out, origin, held=held, batch_size=arguments.batch_size
    )
    for line in notes(found, done):
        print(line, file=sys.stderr)
    print(f"{arguments.out}: {done.count} embeddings of {origin.channels} numbers")
    return 1 if done.unreadable else 0


_PICTURES = (
    "pictures, folders, quoted patterns ('shots/**/*.jpg'), a .txt with a path a line, or a .csv "
    "or .jsonl with the column path, and identity and camera if known"
)


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", type=user_path, metavar="PICTURES", help=_PICTURES)
    parser.add_argument("--run", required=True, type=user_path, help="the run's folder")
    parser.add_argument("--out", required=True, type=user_path, help="the .parquet file to write")
    parser.add_argument(
        "--add", action="store_true", help="embed the pictures that the file lacks, and add them"
    )
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


def search(arguments: argparse.Namespace) -> int:
    """Find the pictures of a gallery that are nearest to queries.

    Prints each query's nearest pictures with their scores, cosines of at most 1, and whether they
    show the same person by the threshold of the run's calibration, where ``pgfl evaluate`` has
    written one. Queries that cannot be read are listed; the exit status is then 1.
    """
    from pgfl_jax.retrieval.search.command import search_gallery

    return search_gallery(
        arguments.queries,
        arguments.gallery,
        run=arguments.run,
        top=arguments.top,
        far=arguments.far,
        index=arguments.index,
        out=arguments.out,
    )


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "queries",
        nargs="+",
        type=user_path,
        metavar="QUERY",
        help=f"{_PICTURES}; or a .parquet file of pgfl embed",
    )
    _gallery_argument(parser, "--gallery", required=True)
    parser.add_argument("--run", type=user_path, help="the run's folder, if it has been moved")
    parser.add_argument("--top", type=int, default=10, help="pictures per query, default: 10")
    parser.add_argument(
        "--far", type=float, default=1e-3, help="false accept rate of the verdicts, default: 0.001"
    )
    parser.add_argument(
        "--index", action="store_true", help="search the index (pgfl index), not all pictures"
    )
    parser.add_argument("--out", type=user_path, help="contact sheet, .html or .png")


def index(arguments: argparse.Namespace) -> int:
    """Build an index of a gallery, or add what the gallery has gained.

    The index makes searches of millions of pictures fast (``pgfl search --index``) and may miss
    some. The share of the exact nearest that it finds is measured, printed and stored with it.
    """
    from pgfl_jax.retrieval.search.gallery import read_gallery
    from pgfl_jax.retrieval.search.index import build_index

    description = build_index(
        read_gallery(arguments.gallery), kind=arguments.kind, recall=arguments.recall
    )
    print(description)
    return 0


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    _gallery_argument(parser, "gallery", metavar="GALLERY")
    parser.add_argument(
        "--kind",
        choices=("exact", "hnsw", "ivf"),
        help="default: exact up to 50,000 pictures, hnsw up to a million, ivf beyond",
    )
    parser.add_argument(
        "--recall", type=float, default=0.99, help="that searches must reach; default: 0.99"
    )


def _gallery_argument(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    parser.add_argument(name, type=user_path, help="a .parquet file of pgfl embed", **options)


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


def compare(arguments: argparse.Namespace) -> int:
    """Compare runs with the first one, query by query.

    Prints how much each run is better or worse in mAP, Rank-1 and Rank-5, with 95 % intervals of a
    paired bootstrap over queries. All must have been scored on the same images. A file
    ``results/*.queries.parquet`` may stand for a run.
    """
    from pgfl_jax.retrieval.compare import describe

    if len(arguments.runs) < 2:
        raise UserError("give two runs or more; the others are compared with the first")
    print(describe(arguments.runs, checkpoint=arguments.checkpoint, embedding=arguments.embedding))
    return 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="the runs' folders")
    parser.add_argument(
        "--checkpoint", default="newest", help="newest (default), best, untrained or a step"
    )
    parser.add_argument(
        "--embedding", default="main", help="main (default), foreground, parts, average or rerank"
    )


def report(arguments: argparse.Namespace) -> int:
    """Write a page that shows a run: scores, curves, every query with its nearest pictures.

    Further runs are compared with the first one. Pictures and feature maps need the test sets,
    which a clone with the extra [train] reads; options such as ``--config.data.data_dir=DIR`` may
    follow. The wheel alone, and ``--no-pictures``, write the page without them.
    """
    runs, out, queries = arguments.runs, arguments.out, arguments.queries
    if _PROGRAM.is_file() and not arguments.no_pictures:
        options = [f"--compare={run}" for run in runs[1:]] + [f"--queries={queries}"]
        options += [f"--out={out}"] if out else []
        _run_main("--mode=report", f"--workdir={runs[0]}", *options, *arguments.rest)
    if arguments.rest:
        raise UserError(f"{arguments.rest[0]}: only where the test sets are read")
    from pgfl_jax.report.report import Request, write_report

    print(f"report: {write_report(Request(runs, out, queries), None)}")
    return 0


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="the runs' folders")
    parser.add_argument("--out", type=user_path, help="default: report/index.html in the first run")
    parser.add_argument(
        "--queries", type=int, default=500, help="shown of each protocol, at most; default: 500"
    )
    parser.add_argument("--no-pictures", action="store_true", help="read no data sets")


COMMANDS: Mapping[str, tuple[Callable[..., int], Callable[[argparse.ArgumentParser], None]]] = {
    "info": (info, _info_arguments),
    "embed": (embed, _embed_arguments),
    "search": (search, _search_arguments),
    "index": (index, _index_arguments),
    "evaluate": (evaluate, _info_arguments),
    "compare": (compare, _compare_arguments),
    "report": (report, _report_arguments),
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


if __name__ == "__main__":
    sys.exit(main())
