"""The report of one or several runs: ``report/index.html``, one file, which fetches nothing."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pgfl_jax.checkpoint import checkpoint_steps
from pgfl_jax.config import Config
from pgfl_jax.embedder import load
from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing
from pgfl_jax.report import content
from pgfl_jax.report.gallery import Comparison, Source, comparisons, gallery_data, splits_of
from pgfl_jax.report.page import document, html_table, template
from pgfl_jax.report.run_files import RunFiles, read_runs
from pgfl_jax.retrieval.protocols import EvaluationData

OpenData = Callable[[Config], EvaluationData]

QUERIES = 500
"""Queries of each protocol that the gallery shows, at most."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to report.

    Attributes:
        runs: folders of runs; the first is compared with the others.
        out: the page; None: ``report/index.html`` in the first run's folder.
        queries: shown of each protocol, at most.
    """

    runs: Sequence[Path]
    out: Path | None = None
    queries: int = QUERIES

    def __post_init__(self) -> None:
        """Check the page's name: another file of a run would be overwritten.

        Raises:
            UserError: it is not that of an HTML file.
        """
        if self.out is not None and self.out.suffix != ".html":
            raise UserError(f"--out={self.out}: must end in .html")

    @property
    def page(self) -> Path:
        """The file to write."""
        return self.out or self.runs[0] / "report" / "index.html"


def write_report(request: Request, open_data: OpenData | None) -> Path:
    """Write the page of some runs.

    What a run lacks is left out: single queries, metrics, calibration; pictures where the data are
    not on this machine, and feature maps where there is no checkpoint. The page says so.

    Args:
        request: what to report.
        open_data: opens the test sets of a configuration; None where nothing can read them.

    Returns:
        The page's path.

    Raises:
        UserError: a run cannot be read, has no scores, or jinja2 is not installed.
        OSError: the page cannot be written.
    """
    jinja2 = _jinja2()
    runs = read_runs(request.runs)
    for run in runs:
        if not run.shown:
            raise UserError(f"{run.path}: has no scores yet; evaluate it first (pgfl evaluate)")
    missing: list[str] = []
    compared = [*comparisons(runs, request.queries)]
    sources = [_source(run, open_data if compared else None, missing) for run in runs]
    values = _values(runs, compared, sources, missing)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    body = environment.get_template("report.html").render(values)
    title = "Report of " + ", ".join(run.name for run in runs)
    request.page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(request.page) as beside:
        page = document(title, body, style=template("report.css"), scripts=True)
        beside.write_text(page, encoding="utf-8", errors="backslashreplace")
    return request.page


def check_report(compared: Sequence[Path]) -> None:
    """Make sure that a training can end with a report.

    Args:
        compared: folders of the runs to show beside.

    Raises:
        UserError: jinja2 is not installed, or a run cannot be read.
        FileNotFoundError: a folder holds no run.
    """
    _jinja2()
    read_runs(compared)


def _source(run: RunFiles, open_data: OpenData | None, missing: list[str]) -> Source:
    """The pictures and the main branch of a run; what is missing is added to ``missing``."""
    data, embedder = None, None
    if open_data is None:
        missing.append(f"{run.name}: no pictures, since no data set was read.")
        return Source()
    try:
        data = open_data(run.config)
    except (UserError, OSError) as error:
        missing.append(f"{run.name}: no pictures: {error}")
        return Source()
    if not checkpoint_steps(run.path):
        missing.append(f"{run.name}: no feature maps, since its folder has no checkpoint.")
        return Source(data)
    scores = next(iter(run.shown.values())).scores
    try:
        embedder = load(run.path, checkpoint=scores["step"], parameters=scores["parameters"])
    except (UserError, OSError) as error:
        missing.append(f"{run.name}: no feature maps: {error}")
    return Source(data, embedder)


def _values(
    runs: Sequence[RunFiles],
    compared: Sequence[Comparison],
    sources: Sequence[Source],
    missing: list[str],
) -> dict[str, Any]:
    """What the template shows."""
    data, shares = gallery_data(compared, runs, sources)
    data["bins"] = content.occlusion_choices(compared, runs[0].config.eval.occlusion_bins)
    missing += _left_out(runs, compared, data)
    missing += _other_data(runs, compared, sources)
    return {
        "runs": [run.name for run in runs],
        "sentences": content.headline_sentences(runs, compared),
        "missing": missing,
        "scores": content.score_rows(runs),
        "differences": content.difference_rows(runs, compared),
        "cmc": content.cmc_charts(compared, runs),
        "occlusion": content.occlusion_charts(runs),
        "attention": content.attention_tables(shares, compared, runs, data["parts"]),
        "training": content.training_charts(runs),
        "data_table": content.data_table(runs),
        "protocols": content.protocol_rows(compared),
        "cameras": content.camera_rows(compared, runs),
        "calibrations": [*content.calibrations(runs)],
        "manifests": content.manifests(runs),
        "queries": [(one.protocol, content.query_rows(one, runs)) for one in compared],
        "table": html_table,
        # "<" would end the script where a file is named so.
        "gallery": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "script": template("report.js"),
    }


def _left_out(
    runs: Sequence[RunFiles], compared: Sequence[Comparison], data: dict[str, Any]
) -> list[str]:
    """What the gallery lacks, one sentence each."""
    lines = []
    ranked = {one.protocol: one.runs for one in compared}
    for number, run in enumerate(runs):
        for protocol, shown in run.shown.items():
            if shown.queries is None:
                lines.append(
                    f"{run.name}: no results of the single queries of {protocol}; evaluate again "
                    "(pgfl evaluate)."
                )
            elif number not in ranked[protocol]:
                lines.append(
                    f"{run.name}: {protocol} was scored on other files or by other rules than in "
                    f"{runs[ranked[protocol][0]].name}, so their queries are not compared."
                )
    for one in data["protocols"]:
        if len(one["queries"]) < one["total"]:
            lines.append(
                f"{one['name']}: the gallery shows {len(one['queries']):,} of {one['total']:,} "
                "queries, "
                + (
                    "those on which the runs differ most."
                    if len(one["runs"]) > 1
                    else "chosen evenly from the worst to the best."
                )
            )
    return lines


def _other_data(
    runs: Sequence[RunFiles], compared: Sequence[Comparison], sources: Sequence[Source]
) -> list[str]:
    """The protocols whose pictures are others on this machine."""
    return [
        f"{runs[run].name}: no pictures of {one.protocol}: the data here are not those that were "
        "ranked."
        for one in compared
        for run, queries in zip(one.runs, one.queries, strict=True)
        if sources[run].data is not None and splits_of(sources[run].data, queries) is None
    ]


def _jinja2() -> ModuleType:
    """Imported late: only this command needs it."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError(
            f"the report needs jinja2 ({error}); pip install 'pgfl-jax[report]'"
        ) from error
    return jinja2
